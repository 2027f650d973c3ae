"""A page for the instructor that opens offline: the class, each test, each student."""

from collections import Counter
from pathlib import Path

import jinja2

from grading.bundle import TEMPLATES
from grading.course import Course
from grading.gradebook import official_reports, rows
from grading.judge import CRASHED, PASSED, STATES, WRONG

_BINS = 10


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
    """The tests, the one that fewest passed first."""
    tests: dict[str, dict] = {}
    for report in reports.values():
        for result in report["results"]:
            test = tests.setdefault(
                result["name"],
                {"title": result["title"], "states": Counter(), "messages": Counter()},
            )
            test["states"][result["state"]] += 1
            if result["state"] in (WRONG, CRASHED) and result["message"]:
                test["messages"][result["message"]] += 1
    for name, test in tests.items():
        test["name"] = name
        test["passed"] = test["states"][PASSED]
        test["most"] = test["messages"].most_common(1)[0] if test["messages"] else None
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
    page = environment.get_template("report.html.jinja").render(
        assignment=course.assignment,
        rows=table,
        reports=reports,
        histogram=histogram(scores, possible),
        tests=hardest(reports),
        mean=sum(scores) / len(scores) if scores else None,
        possible=possible,
        states=STATES,
        run=next(iter(reports.values())),
    )
    file = course.folder / "report.html"
    file.write_text(page, "utf-8")
    return file
