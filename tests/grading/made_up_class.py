"""A class of hostile names and messages whose reports were never judged, and its page."""

from datetime import UTC, datetime
from pathlib import Path

from grading import gradebook, judge, report
from grading.course import write_json
from grading.release import release
from tests.grading.conftest import DOUBLE

HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title=1 <!-- & {{ 7 * 7 }}'
LONG = "x" * 80
# For each student: what came of the three tests, and flags.
CLASS = {
    "ada": (["passed", "passed", "passed"], []),
    "bob": (["not attempted"] * 3, []),
    "cy": (["passed", "wrong", "passed"], []),
    "eve": (["crashed", "crashed", "passed"], [f"it imports {HOSTILE}"]),
    HOSTILE: (["passed", "wrong", "wrong"], []),
    LONG: (["passed", "passed", "grader fault"], []),
}
POINTS = {"test_values": 2, "test_any_numbers": 3, "test_inputs_unchanged": 1}


def write_results(course, students: dict) -> None:
    """The reports of a class that was never judged."""
    course.results.mkdir()
    for student, (states, flags) in students.items():
        results = [
            judge.Result(
                name,
                name.replace("_", " "),
                "hidden" if points == 3 else "public",
                points,
                state,
                "" if state == "passed" else f"{state}: {HOSTILE} {LONG}",
                [f"line 3: {HOSTILE}"] if state == "crashed" else [],
                f"{HOSTILE}\n{LONG * 3}" if state == "wrong" else "",
            )
            for (name, points), state in zip(POINTS.items(), states, strict=True)
        ]
        made = judge.Report(
            "double", "0123456789abcdef", "", 7, "bubblewrap", judge.versions(), results, flags, 1.0
        )
        submitted = "2026-11-21T10:00:00+00:00" if student in ("cy", "eve") else ""
        data = made.data() | {"student": student, "submitted": submitted}
        write_json(course.results / f"{student}.json", data)


def write_page(folder: Path) -> Path:
    """The page of the class, in a new folder."""
    due = datetime(2026, 11, 20, 23, 59, tzinfo=UTC)
    course = release(DOUBLE, folder, seed=5, due=due, late_per_day=0.5, late_days=2)
    write_results(course, CLASS)
    gradebook.export(course)
    return report.write(course)
