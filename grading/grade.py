"""Grading a class: each submission in a process of its own, several at a time; it can be resumed."""

import json
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from grading import judge
from grading.assignment import Assignment, AssignmentError
from grading.box import OFFICIAL, SECOND_UID
from grading.course import Course, fresh_seed, write_json
from grading.submissions import Submission, read


def settings(course: Course, *, tier: str, seed: int | None = None) -> dict:
    """What all of a grading has in common; that of an earlier one if it was begun in the same way."""
    file = course.folder / "run.json"
    if file.exists() and seed is None:
        before = json.loads(file.read_text("utf-8"))
        if before["tier"] == tier:
            return before
    made = {
        "seed": fresh_seed() if seed is None else seed,
        "tier": tier,
        "official": tier in OFFICIAL,
        "versions": judge.versions(),
    }
    write_json(file, made)
    return made


def grade(
    course: Course,
    *,
    tier: str,
    jobs: int = 1,
    seed: int | None = None,
    only: Iterable[str] = (),
    again: bool = False,
    progress: Callable[[str], None] = lambda student: None,
    run_all: Callable | None = None,
) -> dict[str, dict]:
    """Judge every submission that has no result yet; all results.

    Args:
        tier: of the box.
        jobs: how many at a time.
        seed: of the tests; fresh, or that of the grading that goes on, if not given.
        only: students to grade; all if empty.
        again: judge those that have a result, too.
        progress: is told the name of each student when the result is there.
        run_all: judges submissions elsewhere, and is given the course, them, the settings, and
            ``progress``; processes of this machine judge them if not given.

    Raises:
        AssignmentError: nothing is collected, or there is no such student.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        raise RuntimeError("grading forks, which no process may do after it has used a GPU")
    run = settings(course, tier=tier, seed=seed)
    submissions = {submission.student: submission for submission in read(course.submissions)}
    unknown = set(only) - submissions.keys()
    if unknown:
        raise AssignmentError(f"There is no submission of {', '.join(sorted(unknown))}.")
    refuse_readable_tests(course, tier)
    course.results.mkdir(exist_ok=True)
    digest = course.assignment.digest()
    waiting = []
    for student in only or submissions:
        if again or not _is_done(course, submissions[student], run, digest):
            waiting.append(submissions[student])
        else:
            progress(student)
    if run_all is None:
        _run_all_here(course, waiting, run, progress, jobs=jobs)
    else:
        run_all(course, waiting, run, progress)
    return results(course)


def out_of_date(course: Course) -> list[str]:
    """The students whose result is missing, or older than their submission or the tests."""
    file = course.folder / "run.json"
    run = json.loads(file.read_text("utf-8")) if file.exists() else {"seed": None, "tier": None}
    digest = course.assignment.digest()
    return [
        submission.student
        for submission in read(course.submissions)
        if not _is_done(course, submission, run, digest)
    ]


def longest(assignment: Assignment) -> float:
    """Seconds after which a submission that is not judged yet never will be."""
    return assignment.limits.total + 300


def refuse_readable_tests(course: Course, tier: str) -> None:
    """See that students' code cannot read the tests where a tier hides no files of others."""
    folder = course.assignment.folder
    others_can_read = all(place.stat().st_mode & 0o001 for place in (folder, *folder.parents))
    if tier == SECOND_UID and others_can_read:
        raise AssignmentError(
            f"Without namespaces, students' code can read what every user can, and so the tests in "
            f"{folder}: take away the rights of others (chmod o-rwx)."
        )


def results(course: Course) -> dict[str, dict]:
    """The reports there are, by student."""
    files = sorted(course.results.glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def result_file(course: Course, student: str) -> Path:
    return course.results / f"{student}.json"


def _file(course: Course, submission: Submission) -> Path | None:
    file = course.submissions / submission.student / "solution.py"
    return file if file.is_file() and not submission.problem else None


def _is_done(course: Course, submission: Submission, run: dict, digest: str) -> bool:
    file = result_file(course, submission.student)
    if not file.exists():
        return False
    try:
        report = json.loads(file.read_text("utf-8"))
    except ValueError:
        return False
    source = _file(course, submission)
    same = {
        "digest": digest,
        "submission": judge.digest_of(source),
        "seed": run["seed"],
        "tier": run["tier"],
    }
    return {name: report.get(name) for name in same} == same and report["score"] is not None


def _run_all_here(
    course: Course,
    waiting: list[Submission],
    run: dict,
    progress: Callable[[str], None],
    *,
    jobs: int,
) -> None:
    context = multiprocessing.get_context("fork")
    waiting = waiting[::-1]
    running: dict[int, tuple] = {}
    deadline = longest(course.assignment)
    # Loaded once here, so that no process has to.
    judge.import_what_tests_import(course.assignment)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                submission = waiting.pop()
                result_file(course, submission.student).unlink(missing_ok=True)
                process = context.Process(target=judge_one, args=(course, submission, run))
                process.start()
                running[process.sentinel] = (process, submission, time.monotonic())
            multiprocessing.connection.wait(list(running), timeout=1.0)
            for sentinel, (process, submission, started) in list(running.items()):
                late = time.monotonic() - started > deadline
                if process.is_alive() and not late:
                    continue
                if late:
                    process.kill()
                process.join()
                del running[sentinel]
                if not result_file(course, submission.student).exists():
                    write_fault(course, submission, run, f"exit status {process.exitcode}")
                progress(submission.student)
    finally:
        for process, _, _ in running.values():
            process.kill()
            process.join()


def judge_one(course: Course, submission: Submission, run: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    source = _file(course, submission)
    report = judge.judge(course.assignment, source, seed=run["seed"], tier=run["tier"])
    data = report.data()
    if submission.problem:
        for result in data["results"]:
            result["message"] = submission.problem
    data |= {"student": submission.student, "submitted": submission.submitted}
    data["flags"] += submission.notes
    write_json(result_file(course, submission.student), data)


def write_fault(course: Course, submission: Submission, run: dict, reason: str) -> None:
    """A submission that took the grader down with it: no score, and a person has to look."""
    data = judge.fault(course.assignment, run, f"The grader's own process ended ({reason}).").data()
    data |= {"student": submission.student, "submitted": submission.submitted}
    write_json(result_file(course, submission.student), data)


def regrade(course: Course, students: Iterable[str], *, jobs: int = 1) -> list[tuple]:
    """Judge again exactly as it was judged; those whose score or verdicts changed, before and after."""
    file = course.folder / "run.json"
    if not file.exists():
        raise AssignmentError(f"Nothing is graded in {course.folder}: run grading grade first.")
    run = json.loads(file.read_text("utf-8"))
    before = results(course)
    after = grade(course, tier=run["tier"], jobs=jobs, only=list(students), again=True)

    def verdicts(report: dict | None) -> dict:
        return {r["name"]: r["state"] for r in (report or {}).get("results", [])}

    return [
        (student, (before.get(student) or {}).get("score"), report["score"])
        for student, report in after.items()
        if verdicts(before.get(student)) != verdicts(report)
    ]
