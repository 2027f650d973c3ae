"""What a grading leaves behind: gradebooks for people and machines, and what each student gets back.

Only an official grading gives a gradebook: in practice mode nothing keeps a student's code from the
tests.
"""

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

from grading.assignment import AssignmentError
from grading.course import Course, write_json
from grading.grade import results
from grading.judge import CRASHED, FAULT, NOT_ATTEMPTED, PASSED, STATES, WRONG

_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
STATE_WORDS = {
    PASSED: "passed",
    WRONG: "wrong",
    CRASHED: "stopped by an error",
    NOT_ATTEMPTED: "not attempted",
    FAULT: "not judged: the course team looks at it",
}


def rows(course: Course, reports: dict[str, dict]) -> list[dict]:
    """One row a student: score, what lateness made of it, and what a person should look at."""
    made = []
    for student, report in reports.items():
        states = [result["state"] for result in report["results"]]
        submitted = report["submitted"]
        made.append(
            {
                "student": student,
                "submitted": submitted,
                "late_days": course.late.late_days(submitted),
                "raw": report["score"],
                "final": course.late.final(report["score"], submitted),
                "possible": report["possible"],
                **{state.replace(" ", "_"): states.count(state) for state in STATES},
                "review": FAULT in states or bool(report["flags"]),
                "flags": "; ".join(report["flags"]),
            }
        )
    return made


def official_reports(course: Course) -> dict[str, dict]:
    """All reports.

    Raises:
        AssignmentError: there are none, or they were made in practice mode.
    """
    reports = results(course)
    if not reports:
        raise AssignmentError(f"Nothing is graded in {course.folder}: run grading grade first.")
    practice = [student for student, report in reports.items() if not report["official"]]
    if practice:
        raise AssignmentError(
            f"{len(practice)} of {len(reports)} results were made in practice mode, which is no official "
            "grading: grade again where bubblewrap or a second user id works."
        )
    return reports


def export(course: Course) -> list[Path]:
    """Write gradebook.csv, gradebook.json, junit.xml and a page of feedback for each student."""
    reports = official_reports(course)
    folder = course.folder
    table = rows(course, reports)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    (folder / "gradebook.csv").write_text(text.getvalue(), "utf-8")
    late = course.late
    write_json(
        folder / "gradebook.json",
        {
            "exercise": course.assignment.name,
            "due": late.due.isoformat() if late.due else None,
            "late_per_day": late.per_day,
            "late_days": late.days,
            "students": table,
            "reports": reports,
        },
    )
    write_junit(folder / "junit.xml", reports)
    (folder / "feedback").mkdir(exist_ok=True)
    for student, report in reports.items():
        (folder / "feedback" / f"{student}.md").write_text(feedback(course, report), "utf-8")
    names = ["gradebook.csv", "gradebook.json", "junit.xml", "feedback"]
    return [folder / name for name in names]


def _cell(value: object) -> object:
    """A cell that no table program takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return value


def write_junit(file: Path, reports: dict[str, dict]) -> None:
    file.write_bytes(ElementTree.tostring(junit_tree(reports), "utf-8", xml_declaration=True))


def junit_tree(reports: dict[str, dict]) -> ElementTree.Element:
    """Results as JUnit has them: wrong is a failure, crashed and grader faults are errors."""
    root = ElementTree.Element("testsuites")
    for student, report in reports.items():
        states = [result["state"] for result in report["results"]]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=student,
            tests=str(len(states)),
            failures=str(states.count(WRONG)),
            errors=str(states.count(CRASHED) + states.count(FAULT)),
            skipped=str(states.count(NOT_ATTEMPTED)),
            time=f"{report['seconds']:.3f}",
        )
        for result in report["results"]:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=report["exercise"],
                name=result["name"],
                time=f"{result['seconds']:.3f}",
            )
            if result["state"] != PASSED:
                tag = {WRONG: "failure", NOT_ATTEMPTED: "skipped"}.get(result["state"], "error")
                message = _XML.sub("?", result["message"])
                ElementTree.SubElement(case, tag, type=result["state"], message=message)
    return root


def feedback(course: Course, report: dict) -> str:
    """What a student gets back. Of a hidden test it tells the title, and whether it is passed."""
    assignment = course.assignment
    score = report["score"]
    final = course.late.final(score, report["submitted"])
    lines = [f"# {assignment.title}", ""]
    if score is None:
        lines.append(
            "The score is not settled: the course team looks at what the grader could not judge."
        )
    else:
        lines.append(f"**{score:g} of {report['possible']:g} points**")
        if final != score:
            late = course.late.late_days(report["submitted"])
            days = f"{late} day{'s' if late > 1 else ''}"
            lines.append(f"Handed in {days} late: **{final:g} points** count.")
    lines.append("")
    for result in told(report):
        points = "–" if result["points"] is None else f"{result['points']:g}"
        mark = "✓" if result["state"] == PASSED else "✗"
        lines.append(
            f"- {mark} **{result['title']}** ({points}/{result['possible']:g}): "
            f"{STATE_WORDS[result['state']]}"
        )
        if result["message"]:
            lines.append(f"  {result['message']}")
        lines += [f"  `{line}`" for line in result["lines"]]
        if result["printed"] and result["state"] != PASSED:
            lines += [
                "  It printed:",
                "",
                *(f"      {line}" for line in result["printed"].split("\n")),
            ]
    return "\n".join(lines) + "\n"


def told(report: dict) -> list[dict]:
    """The results as the student may see them."""
    hidden = {"message": "", "lines": [], "printed": ""}
    return [
        {**result, **hidden} if result["visibility"] == "hidden" else result
        for result in report["results"]
    ]
