"""A repository for students on GitHub, whose workflow runs the public tests on every push.

It is practice: students can change the workflow, the tests and the grader in their repository, so
nothing that it says counts. What counts is graded elsewhere, from clones of the repositories.
"""

import re
from pathlib import Path

from grading import bundle
from grading.assignment import AssignmentError
from grading.course import Course
from grading.gradebook import STATE_WORDS
from grading.judge import PASSED

# Leading dot: collecting passes it over, where the project has functions of the same names.
_GRADER = ".grader"
_IGNORED = "__pycache__/\n.venv/\njunit.xml\n"
_MARKUP = re.compile(r"[!\"#$&'()*:<>@\[\\\]_`{|}~]")


def template(course: Course, out: Path) -> list[str]:
    """Write the repository into a new folder.

    Returns:
        The names of its files.

    Raises:
        AssignmentError: the folder exists and has something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AssignmentError(f"{out} is not empty: name a new folder.")
    handout = course.folder / "handout"
    words = {"title": course.assignment.title, "grader": _GRADER}
    grader = bundle.files(course.assignment, hidden=False)
    files = {
        ".github/workflows/grade.yml": bundle.template("github_workflow.yml", **words),
        ".gitignore": _IGNORED.encode(),
        "README.md": bundle.template("github_readme.md", **words),
        "solution.py": (handout / "stub.py").read_bytes(),
        "statement.md": (handout / "statement.md").read_bytes(),
        **{f"{_GRADER}/{name}": data for name, data in grader.items()},
    }
    for name, data in files.items():
        file = out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return sorted(files)


def summary(title: str, report: dict) -> str:
    """The results as a table in Markdown, for a job's page on GitHub."""
    results = report["results"]
    passed = sum(result["state"] == PASSED for result in results)
    score = "not settled" if report["score"] is None else f"{report['score']:g}"
    lines = [
        f"## {plain(title)}",
        "",
        f"{passed} of {len(results)} public tests passed: {score} of {report['possible']:g} points. "
        "This is practice: what counts is graded by the course team, with tests that are not here.",
        "",
        "| | Test | Points | What happened |",
        "|---|---|---:|---|",
    ]
    for result in results:
        mark = "✅" if result["state"] == PASSED else "❌"
        points = "–" if result["points"] is None else f"{result['points']:g}"
        said = [result["message"] or STATE_WORDS[result["state"]], *result["lines"]]
        lines.append(
            f"| {mark} | {plain(result['title'])} | {points}/{result['possible']:g} | "
            f"{'<br>'.join(map(plain, said))} |"
        )
    for flag in report["flags"]:
        lines += ["", f"A person would look at this: {plain(flag)}."]
    return "\n".join(lines) + "\n\n"


def plain(text: str) -> str:
    """Text in which Markdown and HTML find nothing to read."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
