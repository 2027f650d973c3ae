"""The states of a test are never mixed: what is not the student's is the grader's, and no score."""

import pytest

from grading import assignment, box, judge
from grading.assignment import AssignmentError
from tests.grading.conftest import DOUBLE, TIER, needs_box

RIGHT = (DOUBLE.folder / "solution.py").read_text("utf-8")


@pytest.fixture
def exercise(tmp_path):
    """An exercise with these tests."""

    def make(tests: str, points: dict[str, int], extra: str = "") -> assignment.Assignment:
        folder = tmp_path / "made"
        folder.mkdir()
        table = "\n".join(f"{name} = {number}" for name, number in points.items())
        head = (DOUBLE.folder / "exercise.toml").read_text("utf-8").split("[points]")[0]
        (folder / "exercise.toml").write_text(f"{head}[points]\n{table}\n")
        (folder / "grading.toml").write_text((DOUBLE.folder / "grading.toml").read_text() + extra)
        (folder / "test_public.py").write_text(f"import pytest\nimport torch\n\n{tests}")
        return assignment.find(str(folder))

    return make


def states(report: judge.Report) -> dict[str, str]:
    return {result.name: result.state for result in report.results}


FAULTS = """
def test_raises(student):
    student.double(torch.ones(2))
    raise ValueError("a mistake of the test")

def test_raises_before(student):
    {}["missing"]

def test_asserts_elsewhere(student):
    import unittest
    unittest.TestCase().assertEqual(1, 2)

def test_skips(student):
    pytest.skip("not here")

def test_exits(student):
    raise SystemExit(0)

def test_passes(student):
    assert student.double(torch.ones(1)) == 2, "not doubled"

@pytest.fixture
def broken():
    raise OSError("no disk")

def test_has_a_broken_fixture(student, broken):
    pass

@pytest.fixture
def ends_badly(student):
    yield
    raise OSError("no disk")

def test_ends_badly(ends_badly):
    pass
"""


@needs_box
def test_mistakes_of_tests_are_grader_faults(exercise, submit):
    names = [line.split("(")[0][4:] for line in FAULTS.splitlines() if line.startswith("def test_")]
    report = submit(RIGHT, exercise(FAULTS, dict.fromkeys(names, 1)), fresh=True)
    assert states(report) == {name: judge.FAULT for name in names} | {"test_passes": judge.PASSED}
    assert report.score is None
    assert [result.points for result in report.results if result.name == "test_passes"] == [1]
    assert "not here" in next(r.message for r in report.results if r.name == "test_skips")


@needs_box
@pytest.mark.parametrize(
    "tests", ["", "def test_a(:", "raise RuntimeError", "import no_such_library"]
)
def test_tests_that_are_missing_are_grader_faults(exercise, submit, tests):
    report = submit(RIGHT, exercise(tests, {"test_a": 2}), fresh=True)
    assert states(report) == {"test_a": judge.FAULT} and report.score is None


CASES = """
@pytest.mark.parametrize("number", [1, 2, 3])
def test_cases(student, number):
    assert number != 2 and student.double(number) == 2 * number, f"{number} is wrong"

def test_catches(student):
    try:
        student.double()
    except Exception as error:
        raise AssertionError("a hint") from error

def test_fails_by_hand(student):
    pytest.fail("no")
"""


@needs_box
def test_one_wrong_case_decides_and_is_told(exercise, submit):
    report = submit(RIGHT, exercise(CASES, {"test_cases": 1, "test_catches": 1}), fresh=True)
    assert states(report) == {
        "test_cases": judge.WRONG,
        "test_catches": judge.WRONG,
        "test_fails_by_hand": judge.WRONG,
    }
    assert [result.message for result in report.results] == ["2 is wrong", "a hint", "no"]


LAST_HAS_CASES = """
@pytest.mark.parametrize("number", [1, 2, 3])
def test_cases(student, number):
    assert student.double(torch.full((1,), number)) == 2 * number
"""
HIDDEN = """
import pytest
import torch

@pytest.mark.points(1, visibility="hidden", title="five")
def test_five(student):
    assert student.double(torch.full((1,), 5)) == 10
"""


@needs_box
def test_hidden_tests_follow_a_case_that_failed(exercise, submit):
    found = exercise(LAST_HAS_CASES, {"test_cases": 1})
    (found.folder / "test_hidden.py").write_text(HIDDEN)
    report = submit(
        "def double(values):\n    return values * (2 if values[0] == 5 else 3)\n", found
    )
    assert states(report) == {"test_cases": judge.WRONG, "test_five": judge.PASSED}
    assert report.score == 1


def test_who_has_no_tmp_of_their_own_has_a_home(tmp_path):
    file = tmp_path / "solution.py"
    file.write_text(
        "import os, tempfile\n"
        "def double(values):\n"
        "    home = os.path.expanduser('~')\n"
        "    assert home == tempfile.gettempdir() != '/tmp'\n"
        "    open(os.path.join(home, 'a file of this box'), 'w').close()\n"
        "    return 2 * values\n"
    )
    report = judge.judge(DOUBLE, file, seed=1, tier=box.PRACTICE)
    assert {result.state for result in report.results} == {judge.PASSED}


SEEDS = """
import random

@pytest.mark.parametrize("case", [1, 2])
def test_seed(student, seed, case):
    raise AssertionError(f"{seed} {random.random()} {torch.rand(1).item()}")
"""


@needs_box
def test_everything_random_follows_the_seed(exercise, submit):
    found = exercise(SEEDS, {"test_seed": 1})
    said = [submit(RIGHT, found, fresh=True, seed=seed).results[0].message for seed in (1, 1, 2)]
    assert said[0] == said[1] and not set(said[0].split()) & set(said[2].split())


@needs_box
def test_nothing_handed_in_is_not_attempted():
    report = judge.judge(DOUBLE, None, seed=1, tier=TIER)
    assert report.score == 0 and set(states(report).values()) == {judge.NOT_ATTEMPTED}


@needs_box
def test_what_a_student_prints_is_kept(submit):
    report = submit("def double(values):\n    print('here', values.sum())\n    return 2 * values\n")
    assert "here tensor" in report.results[0].printed


@needs_box
def test_a_file_without_the_function_is_not_attempted(submit):
    report = submit("def triple(values):\n    return 3 * values\n")
    assert set(states(report).values()) == {judge.NOT_ATTEMPTED}
    assert "the file has no function double" in report.results[0].message


@needs_box
def test_a_shared_result_is_flagged(submit):
    report = submit(
        "import torch\nkept = torch.empty(100)\n\n\ndef double(values):\n"
        "    return torch.mul(values.flatten(), 2, out=kept[: values.numel()])"
        ".view(values.shape)\n"
    )
    assert report.score == 6 and report.flags == []
    report = submit("def double(values):\n    values *= 2\n    return values\n")
    assert report.score == 0
    assert report.flags == ["a result shares its memory with an argument"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("[nonsense]\n", "nonsense"),
        ("[box]\nnonsense = []\n", "nonsense"),
        ("[compiles]\npoints = 1\n", "architecture"),
        ("[box", "cannot be read"),
    ],
)
def test_settings_that_are_wrong_are_named(exercise, extra, message):
    with pytest.raises(AssignmentError, match=message):
        exercise("", {}, extra)


@needs_box
def test_libraries_may_lie_in_tmp(tmp_path, monkeypatch, submit):
    # As where the project was cloned into it; the box has a /tmp of its own.
    tmp_path.chmod(0o755)
    (tmp_path / "installed.txt").write_text("here")
    (tmp_path / "installed.txt").chmod(0o644)
    libraries = [*box._libraries(), tmp_path]
    monkeypatch.setattr(box, "_libraries", lambda: libraries)
    reads = f"assert open({str(tmp_path / 'installed.txt')!r}).read() == 'here'\n"
    assert set(states(submit(reads + RIGHT, fresh=True)).values()) == {"passed"}
