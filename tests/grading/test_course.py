"""An assignment from release to gradebook."""

import csv
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from grading import __main__, gradebook, judge, report, submissions
from grading import grade as grading
from grading.assignment import AssignmentError
from grading.box import PRACTICE
from grading.course import LateRule, open_course
from grading.release import release
from scripts.environment import ROOT
from tests.grading.conftest import DOUBLE, TIER, needs_box

RIGHT = (DOUBLE.folder / "solution.py").read_text("utf-8")
STUB = (DOUBLE.folder / "stub.py").read_text("utf-8")
PUBLIC_ONLY = "def double(values):\n    return 2 * values if values.ndim == 1 else values\n"
MARKUP = """
def double(values):
    print("<b>")
    raise ValueError("<script>alert(1)</script> \\x1b[31m")
"""


def hand_in(course, texts: dict[str, str], roster=()) -> None:
    source = course.folder.parent / f"{course.folder.name} handed in"
    source.mkdir(exist_ok=True)
    for student, text in texts.items():
        (source / f"{student}.py").write_text(text, "utf-8")
        os.utime(source / f"{student}.py", (1.8e9, 1.8e9))
    submissions.collect(course.assignment, source, course.submissions, list(roster))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class of five, graded, and two days late for all but the one who handed in nothing."""
    if TIER == PRACTICE:
        pytest.skip("needs a box")
    due = datetime.fromtimestamp(1.8e9 - 86400 - 1, UTC)
    folder = tmp_path_factory.mktemp("class") / "course"
    course = release(DOUBLE, folder, seed=5, due=due, late_per_day=0.25, late_days=3)
    texts = {"ada": RIGHT, "bob": STUB, "cy": PUBLIC_ONLY, "eve": MARKUP}
    hand_in(course, texts, roster=["ada", "zoe"])
    grading.grade(course, tier=TIER, jobs=2)
    gradebook.export(course)
    report.write(course)
    return course


def test_a_release_gives_students_no_solution_and_no_hidden_test(tmp_path):
    course = release(DOUBLE, tmp_path / "course", seed=3)
    handout = sorted(path.name for path in (tmp_path / "course/handout").iterdir())
    settings = ["exercise.toml", "grading.toml"]
    assert handout == ["README.md", *settings, "statement.md", "stub.py", "test_public.py"]
    assert (tmp_path / "course").stat().st_mode & 0o077 == 0
    assert course.seed == 3 and course.assignment.points == DOUBLE.points
    with pytest.raises(AssignmentError, match="is not empty"):
        release(DOUBLE, tmp_path / "course")


def test_scores_are_right(graded):
    reports = grading.results(graded)
    assert {name: (one["score"], one["possible"]) for name, one in reports.items()} == {
        "ada": (6, 6),
        "bob": (0, 6),
        "cy": (3, 6),
        "eve": (0, 6),
        "zoe": (0, 6),
    }
    states = {name: {r["state"] for r in one["results"]} for name, one in reports.items()}
    assert states == {
        "ada": {"passed"},
        "bob": {"not attempted"},
        "cy": {"passed", "wrong"},
        "eve": {"crashed"},
        "zoe": {"not attempted"},
    }


def test_the_gradebook_has_what_lateness_leaves(graded):
    with open(graded.folder / "gradebook.csv", encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert [rows["ada"][name] for name in ("late_days", "raw", "final", "possible")] == [
        "2",
        "6",
        "3",
        "6",
    ]
    assert (rows["cy"]["raw"], rows["cy"]["final"]) == ("3", "1.5")
    assert [rows["zoe"][name] for name in ("raw", "final", "submitted")] == ["0", "0", ""]
    data = json.loads((graded.folder / "gradebook.json").read_text("utf-8"))
    assert {row["student"]: row["final"] for row in data["students"]}["ada"] == 3.0
    assert data["reports"]["ada"]["versions"]["torch"]


def test_junit_tells_the_states_apart(graded):
    suites = ElementTree.parse(graded.folder / "junit.xml").getroot()
    found = {
        suite.get("name"): tuple(
            int(suite.get(n)) for n in ("tests", "failures", "errors", "skipped")
        )
        for suite in suites
    }
    assert found == {
        "ada": (3, 0, 0, 0),
        "bob": (3, 0, 0, 3),
        "cy": (3, 1, 0, 0),
        "eve": (3, 0, 3, 0),
        "zoe": (3, 0, 0, 3),
    }


def test_feedback_teaches_and_keeps_hidden_tests_hidden(graded):
    text = (graded.folder / "feedback/cy.md").read_text("utf-8")
    assert "**3 of 6 points**" in text and "2 days late: **1.5 points** count" in text
    assert "- ✓ **small numbers** (2/2): passed" in text
    assert "- ✗ **any numbers** (0/3): wrong\n" in text
    assert "must be" not in text and "test_any_numbers" not in text
    crashed = (graded.folder / "feedback/eve.md").read_text("utf-8")
    assert (
        "ValueError: " in crashed and "(line 4 of your code)" in crashed and "\x1b" not in crashed
    )
    assert "`line 4: raise ValueError(" in crashed and "It printed:\n\n      <b>" in crashed


def test_the_page_opens_offline_and_escapes_what_students_wrote(graded):
    page = (graded.folder / "report.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "http" not in page and "src=" not in page
    assert "5 submissions" in page and "any numbers" in page
    hardest = report.hardest(grading.results(graded))
    assert hardest[0]["name"] == "test_any_numbers" and hardest[0]["passed"] == 1


def test_a_histogram_holds_every_score():
    bins = report.histogram([0, 0.6, 5.9, 6, 6], 6)
    assert [one["count"] for one in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]


def test_a_regrade_is_exact(graded):
    before = grading.results(graded)
    assert grading.regrade(graded, ["cy"]) == []
    after = grading.results(graded)

    def timeless(one):
        return [{**result, "seconds": 0} for result in one["results"]]

    assert timeless(before["cy"]) == timeless(after["cy"])
    assert before["cy"]["seed"] == after["cy"]["seed"]


def test_a_regrade_finds_what_changed(graded):
    file = grading.result_file(graded, "cy")
    text = file.read_text("utf-8")
    data = json.loads(text)
    data["score"] = 6
    for result in data["results"]:
        result["state"] = "passed"
    file.write_text(json.dumps(data), "utf-8")
    assert grading.regrade(graded, ["cy"]) == [("cy", 6, 3)]
    with pytest.raises(AssignmentError, match="no submission of nobody"):
        grading.regrade(graded, ["nobody"])


def test_what_is_graded_is_not_graded_again(graded, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(grading, "judge_one", refuse)
    seen = []
    grading.grade(graded, tier=TIER, progress=seen.append)
    assert seen == ["ada", "bob", "cy", "eve", "zoe"]


@needs_box
def test_a_grading_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    course = release(DOUBLE, tmp_path / "course")
    hand_in(course, {"ada": RIGHT, "bob": STUB, "cy": STUB})

    def interrupt(student):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grading.grade(course, tier=TIER, progress=interrupt)
    assert list(grading.results(course)) == ["ada"]
    seed = json.loads((course.folder / "run.json").read_text())["seed"]
    judged = []
    judge_one = grading.judge_one

    def count(course, submission, run):
        judged.append(submission.student)
        judge_one(course, submission, run)

    monkeypatch.setattr(grading, "judge_one", count)
    reports = grading.grade(course, tier=TIER)
    assert {one["seed"] for one in reports.values()} == {seed}
    assert [one["score"] for one in reports.values()] == [6, 0, 0]
    # A changed submission is judged again, the others are not.
    hand_in(course, {"bob": RIGHT})
    before = grading.result_file(course, "ada").stat().st_mtime_ns
    assert grading.grade(course, tier=TIER)["bob"]["score"] == 6
    assert grading.result_file(course, "ada").stat().st_mtime_ns == before


def test_a_grader_that_ends_is_no_score(tmp_path, monkeypatch):
    course = release(DOUBLE, tmp_path / "course")
    hand_in(course, {"ada": RIGHT})
    monkeypatch.setattr(grading, "judge_one", lambda *_: os._exit(3))
    (one,) = grading.grade(course, tier="bubblewrap").values()
    assert one["score"] is None
    assert {result["state"] for result in one["results"]} == {judge.FAULT}
    (row,) = gradebook.rows(course, {"ada": one})
    assert row["raw"] is None and row["final"] is None and row["review"]


def test_practice_gives_no_gradebook(tmp_path):
    course = release(DOUBLE, tmp_path / "course")
    hand_in(course, {"ada": RIGHT})
    (one,) = grading.grade(course, tier=PRACTICE).values()
    assert one["score"] == 6 and not one["official"]
    for write in (gradebook.export, report.write):
        with pytest.raises(AssignmentError, match="practice mode, which is no official grading"):
            write(course)
    assert not (course.folder / "gradebook.csv").exists()


@pytest.mark.parametrize(
    ("hours", "days", "final"),
    [(-1, 0, 10), (0, 0, 10), (1, 1, 9), (24, 1, 9), (25, 2, 8), (49, 3, 0)],
)
def test_the_late_rule(hours, days, final):
    rule = LateRule(datetime(2026, 1, 1, tzinfo=UTC), per_day=0.1, days=2)
    submitted = datetime.fromtimestamp(rule.due.timestamp() + 3600 * hours, UTC).isoformat()
    assert rule.late_days(submitted) == days
    assert rule.final(10, submitted) == final
    assert rule.final(None, submitted) is None
    assert LateRule().final(10, submitted) == 10


def test_a_cell_is_no_formula():
    assert gradebook._cell("=1+1") == "'=1+1" and gradebook._cell("-") == "'-"
    assert gradebook._cell(-1.5) == "-1.5" and gradebook._cell(None) == ""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command here: to start a Python that imports PyTorch takes seconds."""

    def command(*arguments: object) -> tuple[int | str | None, list[str]]:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(sys, "argv", ["grading", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        return ended.value.code, capsys.readouterr().out.splitlines()

    return command


@needs_box
def test_the_commands(tmp_path, run):
    course, source = tmp_path / "course", tmp_path / "in"
    source.mkdir()
    (source / "ada.py").write_text(STUB)
    (source / "eve.txt").write_text("later")
    due = ("--due", "2027-01-31T23:59")
    assert run("release", DOUBLE.folder, course, "--class-seed", 7, *due)[0] == 0
    # What students get is enough to check a file.
    assert run("check", course / "handout", DOUBLE.folder / "solution.py")[0] == 0
    assert open_course(course).late.due == datetime(2027, 1, 31, 23, 59, tzinfo=UTC)
    assert run("collect", course, source)[1] == [
        "eve: There is no .py or .ipynb file, but .txt.",
        "2 students, 1 with a file to grade.",
    ]
    settings = f"in the tier {TIER}, seed 9; 0 not settled, 0 to be looked at."
    expected = f"2 graded, 2 of them now, {settings}"
    assert run("grade", course, "-j", 2, "--seed", 9)[1] == [expected]
    assert run("regrade", course)[1] == ["0 changed."]
    names = ["gradebook.csv", "gradebook.json", "junit.xml", "feedback", "report.html"]
    assert [line.split("/")[-1] for line in run("export", course)[1]] == names
    (source / "ada.py").write_text((DOUBLE.folder / "solution.py").read_text("utf-8"))
    run("collect", course, source)
    assert run("export", course)[1][-1] == (
        "Results are missing, or older than the submission or the tests: ada. "
        "Run grade, then export again."
    )
    changed, told = run("grade", course)[1]
    assert (
        changed.startswith("ada: 0.0 before, ") and told == f"2 graded, 1 of them now, {settings}"
    )


def test_a_day_alone_ends_at_its_end():
    assert __main__.due_date("2027-01-31") == datetime(2027, 1, 31, 23, 59, 59)
    assert __main__.due_date("2027-01-31T12:00") == datetime(2027, 1, 31, 12)


@needs_box
def test_the_command_checks_a_file(tmp_path, run):
    assert run("check", DOUBLE.folder, DOUBLE.folder / "solution.py") == (
        0,
        [
            "✓ small numbers",
            "✓ inputs unchanged",
            "2 of 2 tests passed; 3 of 3 points.",
        ],
    )
    (tmp_path / "attempt.py").write_text("def double(values):\n    return values / 0\n    oops(\n")
    assert run("check", DOUBLE.folder, tmp_path / "attempt.py") == (
        1,
        [
            "✗ every test: SyntaxError: '(' was never closed (line 3 of your code)",
            "    line 3: oops(",
            "0 of 2 tests passed; 0 of 3 points.",
        ],
    )


def test_practice_says_that_it_is_practice():
    command = [
        sys.executable,
        "-m",
        "grading",
        "check",
        DOUBLE.folder,
        DOUBLE.folder / "solution.py",
    ]
    answer = subprocess.run(
        [*command, "--tier", PRACTICE], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0 and answer.stderr == ""
    assert answer.stdout.startswith("Practice mode: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nothing", "x.py"), "x.py is not a file."),
        (("check", "nothing", ROOT / "README.md"), "There is no exercise 'nothing': give a folder"),
        (("grade", "tests"), "tests has no assignment.toml"),
        (("export", "tests"), "tests has no assignment.toml"),
    ],
    ids=["file", "exercise", "grade", "export"],
)
def test_a_mistake_is_answered_in_one_sentence(arguments, message, run):
    code, output = run(*arguments)
    assert message in code and "\n" not in code and output == []
