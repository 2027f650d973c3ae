"""An autograder for Gradescope: the zip that is uploaded, and what runs there for each submission.

Gradescope unpacks the zip into ``/autograder/source``, runs ``setup.sh`` once, and for each
submission ``run_autograder``, whose result is ``/autograder/results/results.json``. Its containers
refuse namespaces, so the box there is that of the second user. Without a ``results.json`` Gradescope says
that the autograder failed and takes no score from it. That is what becomes of a grader's fault here,
because every score in the file, 0 too, would count.
"""

import json
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from grading import bundle, submissions
from grading.assignment import AssignmentError
from grading.box import OFFICIAL, Limits, best_tier
from grading.course import Course, fresh_seed, open_course, write_json
from grading.grade import grade
from grading.gradebook import STATE_WORDS, told
from grading.judge import PASSED

HIDDEN = ("after_published", "after_due_date", "hidden")
# What Gradescope gives a submission unless the assignment's settings say otherwise.
MINUTES = 10
_STUDENT = "student"


def pack(
    course: Course, out: Path, *, hidden: str = HIDDEN[0], minutes: int = MINUTES
) -> list[str]:
    """Write the zip.

    Args:
        course: the assignment, as ``grading release`` made it.
        out: the zip file.
        hidden: when students see what came of hidden tests, in Gradescope's words.
        minutes: the timeout in the settings of the assignment on Gradescope.

    Returns:
        The names of the files in it.

    Raises:
        AssignmentError: the time is too short for one test.
    """
    _total_seconds(course.assignment.limits, minutes)
    files = {
        name.replace("exercise/", "assignment/exercise/", 1)
        if name.startswith("exercise/")
        else name: data
        for name, data in bundle.files(course.assignment, hidden=True).items()
    }
    files["assignment/assignment.toml"] = (course.folder / "assignment.toml").read_bytes()
    files["settings.json"] = json.dumps({"hidden": hidden, "minutes": minutes}).encode()
    files["setup.sh"] = bundle.template("gradescope_setup.sh")
    files["run_autograder"] = bundle.template("gradescope_run.sh", seconds=60 * minutes - 20)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            information = zipfile.ZipInfo(name)  # of a fixed date: the same files, the same zip
            information.compress_type = zipfile.ZIP_DEFLATED
            executable = name in ("setup.sh", "run_autograder")
            information.external_attr = (0o755 if executable else 0o644) << 16
            archive.writestr(information, data)
    return sorted(files)


def _total_seconds(limits: Limits, minutes: int) -> float:
    """What is left for all tests, when the last, its compilation and the grader's start take longest."""
    left = 60 * minutes - 2 * limits.wall - 60
    if left <= 0:
        least = int((2 * limits.wall + 60) // 60) + 1
        raise AssignmentError(
            f"--minutes must be at least {least} for this exercise, whose tests may take "
            f"{limits.wall:g} s each; got {minutes}."
        )
    return min(limits.total, left)


def run(root: Path) -> bool:
    """Judge the submission in ``root/submission`` and write ``root/results/results.json``.

    What is printed is for the course team. Returns whether there is a score; if not, there is no
    file.
    """
    file = root / "results" / "results.json"
    file.unlink(missing_ok=True)
    settings = json.loads((root / "source" / "settings.json").read_text("utf-8"))
    course = open_course(root / "source" / "assignment")
    limits = course.assignment.limits
    limits = replace(limits, total=_total_seconds(limits, settings["minutes"]))
    course = replace(course, assignment=replace(course.assignment, limits=limits))
    metadata = json.loads((root / "submission_metadata.json").read_text("utf-8"))
    _collect(course, root / "submission", datetime.fromisoformat(metadata["created_at"]))
    tier = best_tier()
    if tier not in OFFICIAL:
        raise AssignmentError(
            "There is no box here: the grader must run as root, and have setpriv."
        )
    reports = grade(course, tier=tier, seed=fresh_seed(), again=True)
    report = reports[_STUDENT]
    print(f"Judged in the tier {report['tier']} with seed {report['seed']}.")
    for result in report["results"]:
        print(f"{result['state']}: {result['title']} {result['message']}".rstrip())
    for flag in report["flags"]:
        print(f"A person should look at this: {flag}.")
    if report["score"] is None:
        print("The grader is at fault, so there is no score: repair it and run it again.")
        return False
    write_json(file, results(course, report, settings["hidden"]))
    return True


def _collect(course: Course, source: Path, submitted: datetime) -> None:
    """Take in the submission under one name; its files have the time at which it was handed in."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, _STUDENT)
        shutil.copytree(source, copy, symlinks=True)
        for path in copy.rglob("*"):
            os.utime(path, 2 * (submitted.timestamp(),), follow_symlinks=False)
        submissions.collect(course.assignment, Path(folder), course.submissions, [_STUDENT])
    # Who handed in nothing usable is as late as all others.
    file = course.submissions / "submissions.json"
    found = json.loads(file.read_text("utf-8"))
    found[0]["submitted"] = submitted.astimezone(UTC).isoformat(timespec="seconds")
    write_json(file, found)


def results(course: Course, report: dict, hidden: str) -> dict:
    """The contents of results.json."""
    final = course.late.final(report["score"], report["submitted"])
    late = course.late.late_days(report["submitted"])
    output = ""
    if final != report["score"]:
        days = f"{late} day{'s' if late > 1 else ''}"
        output = f"Handed in {days} late: {final:g} of {report['score']:g} points count."
    return {
        "score": final,
        "execution_time": round(report["seconds"]),
        "output": output,
        # Nothing that a student's code says is ever taken for HTML.
        **{f"{name}_format": "text" for name in ("output", "test_output", "test_name")},
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [
            {
                "name": result["title"],
                "score": result["points"],
                "max_score": result["possible"],
                "status": "passed" if result["state"] == PASSED else "failed",
                "output": _output(result),
                "visibility": hidden if result["visibility"] == "hidden" else "visible",
            }
            for result in told(report)
        ],
        "extra_data": {
            name: report[name] for name in ("seed", "tier", "digest", "versions", "flags")
        },
    }


def _output(result: dict) -> str:
    if result["state"] == PASSED:
        return ""
    lines = [f"{STATE_WORDS[result['state']]}. {result['message']}".strip(), *result["lines"]]
    if result["printed"]:
        lines += ["", "It printed:", result["printed"]]
    return "\n".join(lines)


if __name__ == "__main__":
    # Before a test imports Triton: kernels are interpreted, here and in the box.
    os.environ["TRITON_INTERPRET"] = "1"
    sys.exit(not run(Path(sys.argv[1])))
