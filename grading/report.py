"""A page for the instructor that opens offline: the class, each test, each student."""

import statistics
from collections import Counter
from pathlib import Path

import jinja2

from grading.bundle import TEMPLATES
from grading.course import Course
from grading.gradebook import official_reports, rows
from grading.judge import CRASHED, FAULT, NOT_ATTEMPTED, PASSED, STATES, WRONG

_BINS = 10
# What a state looks like without colour.
_MARKS = {PASSED: "✓", WRONG: "✗", CRASHED: "!", NOT_ATTEMPTED: "–", FAULT: "?"}


def histogram(scores: list[float], possible: float) -> list[dict]:
    """How many scores lie in each tenth of what is possible; the last tenth holds the full score."""
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(_BINS * score / possible)) if possible else 0] += 1
    return [
        {"from": possible * i / _BINS, "to": possible * (i + 1) / _BINS, "count": count}
        for i, count in enumerate(counts)
    ]


def hardest(reports: dict[str, dict]) -> list[dict]:
    """The tests, the one that fewest passed first, with what was said of it most often."""
    tests: dict[str, dict] = {}
    for report in reports.values():
        for result in report["results"]:
            test = tests.setdefault(
                result["name"],
                {
                    "name": result["name"],
                    "title": result["title"],
                    "visibility": result["visibility"],
                    "possible": result["possible"],
                    "states": Counter(),
                    "messages": Counter(),
                },
            )
            test["states"][result["state"]] += 1
            if result["state"] in (WRONG, CRASHED) and result["message"]:
                test["messages"][result["message"]] += 1
    for test in tests.values():
        test["passed"] = test["states"][PASSED]
        test["said"] = test["messages"].most_common(3)
    return sorted(tests.values(), key=lambda test: (test["passed"], test["name"]))


def write(course: Course) -> Path:
    """Write report.html."""
    reports = official_reports(course)
    table = rows(course, reports)
    scores = [row["final"] for row in table if row["final"] is not None]
    possible = max(row["possible"] for row in table)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: f"{round(value, 2):g}"
    page = environment.get_template("report.html.jinja").render(
        assignment=course.assignment,
        late=course.late,
        rows=table,
        reports=reports,
        scores=scores,
        mean=statistics.mean(scores) if scores else None,
        median=statistics.median(scores) if scores else None,
        possible=possible,
        histogram=histogram(scores, possible),
        tests=hardest(reports),
        states=STATES,
        marks=_MARKS,
        passed=PASSED,
        run=next(iter(reports.values())),
    )
    file = course.folder / "report.html"
    file.write_text(page, "utf-8")
    return file
