"""The autograder for Gradescope, in folders laid out as Gradescope's."""

import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from grading import __main__, bundle, gradescope, judge
from grading.assignment import AssignmentError, find
from grading.box import PRACTICE
from grading.course import open_course
from grading.release import release
from scripts.environment import ROOT, requirements
from tests.grading.conftest import ADD, DOUBLE, needs_box

RIGHT = (DOUBLE.folder / "solution.py").read_text("utf-8")
PUBLIC_ONLY = """
def double(values):
    print("<b>")
    if values.ndim == 2:
        raise ValueError("<script>")
    return 2 * values + (len(values) == 5)
"""
# What Gradescope documents: the fields of a result and of a test, and the words for visibility.
FIELDS = {
    *("score", "execution_time", "output", "output_format", "test_output_format"),
    *("test_name_format", "visibility", "stdout_visibility", "extra_data", "tests", "leaderboard"),
}
TEST_FIELDS = {
    *("score", "max_score", "status", "name", "name_format", "number", "output"),
    *("output_format", "tags", "visibility", "extra_data"),
}
VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course that was due a day before what :func:`unpack` says was handed in."""
    folder = tmp_path_factory.mktemp("class") / "course"
    made = release(DOUBLE, folder, seed=5, late_per_day=0.25, late_days=3)
    with open(folder / "assignment.toml", "a", encoding="utf-8") as file:
        file.write("due = 2026-11-19T23:00:00+00:00\n")
    return open_course(made.folder)


@pytest.fixture(scope="module")
def autograder(course, tmp_path_factory):
    file = tmp_path_factory.mktemp("zip") / "autograder.zip"
    gradescope.pack(course, file)
    return file


def unpack(autograder: Path, root: Path, submission: dict[str, str]) -> Path:
    """What Gradescope makes of the zip and of a submission, with ``root`` for ``/autograder``."""
    with zipfile.ZipFile(autograder) as archive:
        archive.extractall(root / "source")
    for name in ("submission", "results"):
        (root / name).mkdir()
    for name, text in submission.items():
        (root / "submission" / name).write_text(text, "utf-8")
    (root / "run_autograder").write_bytes((root / "source/run_autograder").read_bytes())
    (root / "run_autograder").chmod(0o755)
    metadata = {
        "id": 123456,
        "created_at": "2026-11-20T14:22:32.365935-07:00",
        "assignment": {"due_date": "2026-11-20T23:00:00.000000-07:00", "late_due_date": None},
        "submission_method": "upload",
        "users": [{"email": "ada@example.org", "id": 1234, "name": "Ada"}],
        "previous_submissions": [],
    }
    (root / "submission_metadata.json").write_text(json.dumps(metadata))
    return root


def check_format(results: dict) -> None:
    assert results.keys() <= FIELDS
    assert {results["visibility"], results["stdout_visibility"]} <= VISIBILITY
    assert isinstance(results["score"], int | float) and isinstance(results["output"], str)
    for test in results["tests"]:
        assert test.keys() <= TEST_FIELDS and test["visibility"] in VISIBILITY
        assert 0 <= test["score"] <= test["max_score"]
        assert test["status"] in ("passed", "failed") and isinstance(test["output"], str)


@needs_box
def test_a_submission_is_judged(autograder, tmp_path):
    submission = {"solution.py": PUBLIC_ONLY, "notes.txt": "", "test_mine.py": RIGHT}
    root = unpack(autograder, tmp_path / "autograder", submission)
    (root / "results/results.json").write_text('{"score": 6}')
    answer = subprocess.run(
        ["./run_autograder"],
        cwd=root,
        env={**os.environ, "GRADING_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    results = json.loads((root / "results/results.json").read_text("utf-8"))
    check_format(results)
    assert results["score"] == 0.75
    assert results["output"] == "Handed in 1 day late: 0.75 of 1 points count."
    assert results["stdout_visibility"] == "hidden" and results["test_output_format"] == "text"
    tests = {test["name"]: test for test in results["tests"]}
    assert {name: (test["score"], test["max_score"]) for name, test in tests.items()} == {
        "small numbers": (0, 2),
        "inputs unchanged": (1, 1),
        "any numbers": (0, 3),
    }
    assert tests["small numbers"]["output"] == (
        "wrong. Each number must be twice what it was.\n\nIt printed:\n<b>\n"
    )
    # A student learns of a hidden test when grades are published, and then no more than its end.
    assert tests["any numbers"]["visibility"] == "after_published"
    assert tests["any numbers"]["output"] == "stopped by an error."
    # The course team reads all of it.
    assert "crashed: any numbers ValueError: <script>" in answer.stdout
    assert "test_mine.py is left out" in answer.stdout
    assert f"seed {results['extra_data']['seed']}" in answer.stdout


def run_here(root: Path, monkeypatch) -> bool:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return gradescope.run(root)


@needs_box
def test_a_fault_of_the_grader_is_no_score(autograder, tmp_path, monkeypatch, capsys):
    root = unpack(autograder, tmp_path / "autograder", {"solution.py": RIGHT})
    (root / "results/results.json").write_text('{"score": 6}')
    tests = root / "source/assignment/exercise/test_public.py"
    tests.write_text(tests.read_text("utf-8").replace("torch.ones(3)", "torch.one(3)"))
    assert not run_here(root, monkeypatch)
    assert list((root / "results").iterdir()) == []
    printed = capsys.readouterr().out
    assert "passed: small numbers" in printed and "no score" in printed
    assert "grader fault: inputs unchanged AttributeError: " in printed


def test_without_a_box_there_is_no_score(autograder, tmp_path, monkeypatch):
    root = unpack(autograder, tmp_path / "autograder", {"solution.py": RIGHT})
    monkeypatch.setattr(gradescope, "best_tier", lambda: PRACTICE)
    with pytest.raises(AssignmentError, match="There is no box here: "):
        run_here(root, monkeypatch)
    assert list((root / "results").iterdir()) == []


@needs_box
def test_nothing_usable_is_a_zero_with_its_reason(autograder, tmp_path, monkeypatch):
    root = unpack(autograder, tmp_path / "autograder", {"essay.txt": "later"})
    (root / "submission/solution.py").symlink_to("/etc/hostname")
    assert run_here(root, monkeypatch)
    results = json.loads((root / "results/results.json").read_text("utf-8"))
    check_format(results)
    assert results["score"] == 0 and results["output"] == ""
    assert {test["output"] for test in results["tests"] if test["visibility"] == "visible"} == {
        "not attempted. student/solution.py is a link, which is not followed."
    }


def test_the_order_in_which_files_arrive_does_not_matter(autograder, course, tmp_path):
    files = {"exercise.py": RIGHT, "attempt.py": PUBLIC_ONLY}
    root = unpack(autograder, tmp_path / "autograder", files)
    os.utime(root / "submission/attempt.py", (2e9, 2e9))
    here = replace(course, folder=tmp_path)
    gradescope._collect(here, root / "submission", datetime(2027, 1, 15, tzinfo=UTC))
    assert (here.submissions / "student/solution.py").read_text("utf-8") == RIGHT


def test_the_zip_has_what_gradescope_asks_for(autograder, course, tmp_path):
    with zipfile.ZipFile(autograder) as archive:
        members = {member.filename: member for member in archive.infolist()}
        texts = {name: archive.read(name).decode() for name in members}
    for name in ("setup.sh", "run_autograder"):
        assert members[name].external_attr >> 16 & 0o111 and texts[name].startswith("#!")
        subprocess.run(["bash", "-n"], input=texts[name], text=True, check=True)
        assert "<<" not in texts[name]
    assert "timeout --kill-after=10 580 " in texts["run_autograder"]
    assert "assignment/exercise/test_hidden.py" in members
    assert not [name for name in members if "solution" in name or name.startswith("tests/")]
    pinned = (ROOT / "requirements.txt").read_text("utf-8")
    lines = requirements(texts["requirements.txt"], without=set())
    assert set(lines) <= set(requirements(pinned, without=set()))
    assert {line.split("==")[0] for line in lines} >= {"torch", "triton", "pytest", "nbformat"}
    assert "jupyterlab" not in texts["requirements.txt"]
    gradescope.pack(course, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == autograder.read_bytes()


def test_students_see_hidden_tests_when_the_instructor_says(course, tmp_path):
    report = judge.fault(course.assignment, {"seed": 1, "tier": "bubblewrap"}, "").data()
    report |= {"submitted": "", "score": 0.0}
    report["results"][0] |= {"visibility": "hidden", "points": 0.0}
    assert {
        word: gradescope.results(course, report, word)["tests"][0]["visibility"]
        for word in gradescope.HIDDEN
    } == {word: word for word in gradescope.HIDDEN}
    assert set(gradescope.HIDDEN) <= VISIBILITY


def test_the_grader_ends_before_gradescope_ends_it(course, tmp_path):
    limits = replace(DOUBLE.limits, wall=120.0, total=900.0)
    assert gradescope._total_seconds(limits, 10) == 300.0
    assert gradescope._total_seconds(limits, 40) == 900.0
    slow = replace(course, assignment=replace(course.assignment, limits=limits))
    with pytest.raises(AssignmentError, match="--minutes must be at least 6 for this exercise"):
        gradescope.pack(slow, tmp_path / "a.zip", minutes=5)
    assert gradescope._total_seconds(limits, 6) > 0


def test_the_command_writes_the_zip(course, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = tmp_path / "autograder.zip"
    options = ["--hidden", "hidden", "--minutes", "40"]
    arguments = ["grading", "gradescope", str(course.folder), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert not ended.value.code and capsys.readouterr().out.startswith(
        f"Upload {out} to Gradescope"
    )
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("settings.json")) == {"hidden": "hidden", "minutes": 40}


def test_a_bundle_is_complete(tmp_path):
    """In a bundle, the tests find all that they import, and nothing of it is outside."""
    for assignment in (ADD, find("ring_of_tiles")):
        for name, data in bundle.files(assignment, hidden=True).items():
            file = tmp_path / assignment.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    assert not (tmp_path / "add/instruments").exists()
    program = """
import sys
from pathlib import Path
bundle, root = sys.argv[1:]
sys.path = [bundle, *(place for place in sys.path if Path(place or ".").resolve() != Path(root))]
from grading import assignment, judge
run = judge._Run(assignment.find(bundle + "/exercise"), 0)
run.collect_only(hidden=True)
assert run.results, "no tests"
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
ours = ("grading", "kernels", "instruments", "exercises")
print(*sorted({file for file in files if file.startswith(tuple(f"{root}/{n}/" for n in ours))}))
"""
    arguments = [str(tmp_path / "ring_of_tiles"), str(ROOT)]
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stdout) == (0, "\n"), answer.stderr


def test_imports_are_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    texts = {
        "a/__init__.py": "",
        "a/one.py": "from . import two\nfrom .deep.three import f\nimport b\n",
        "a/two.py": "import json, loose\n",
        "a/deep/__init__.py": "from ..two import x\n",
        "a/deep/three.py": "def f():\n    from b.four import y\n",
        "a/unused.py": "",
        "b/__init__.py": "import a.one\n",
        "b/four.py": "",
        "loose.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {path.relative_to(tmp_path).as_posix() for path in bundle.modules(["a.one", "torch"])}
    assert found == texts.keys() - {"a/unused.py", "loose.py"}


def test_the_setup_pins_its_installer():
    text = bundle.template("gradescope_setup.sh").decode()
    assert re.search(r"pip install -q uv==\d+\.\d+\.\d+\n", text)
    assert "--constraint /autograder/source/constraints.txt" in text
