"""Grading on a cluster: Slurm chooses where each submission is judged, and nothing else.

A grading is a job array with a task for each submission, so that a task that dies takes no other with
it. A task calls what a grading on one machine calls, and writes its result into the course's folder,
which all nodes share: a grading can begin here, go on there, and be interrupted in either.

A task that ends without a result is judged again; after ``ATTEMPTS`` times the grader is at fault.
"""

import contextlib
import getpass
import hashlib
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import submitit

from grading.assignment import Assignment, AssignmentError
from grading.box import TIERS, best_tier
from grading.course import Course
from grading.grade import judge_one, longest, refuse_readable_tests, result_file, write_fault
from grading.submissions import Submission

ATTEMPTS = 3
# At a time, in an array.
JOBS = 100
# Tasks in one array: Slurm's MaxArraySize is 1001 where a site has not changed it.
_ARRAY = 1000
# What the grader needs beside the student's code: tests, PyTorch, and the box's own process.
_OWN_MEMORY = 2 << 30
_SECONDS_BETWEEN_QUESTIONS = 20.0


def resources(
    assignment: Assignment,
    *,
    jobs: int,
    minutes: int | None = None,
    gigabytes: float | None = None,
    cpus: int = 1,
    gpus: int | None = None,
    partition: str | None = None,
    options: dict[str, str | bool] | None = None,
) -> dict:
    """What a task asks Slurm for, in submitit's words; what is None comes from the assignment."""
    gpus = assignment.gpus if gpus is None else gpus
    memory = assignment.limits.memory + _OWN_MEMORY if gigabytes is None else gigabytes * 2**30
    made = {
        "time": minutes or math.ceil(longest(assignment) / 60),
        "mem": f"{math.ceil(memory / 2**20)}M",
        "cpus_per_task": cpus,
        "array_parallelism": jobs,
        # Who lost a task is told here, and how often it is tried again is decided here.
        "additional_parameters": {"no-requeue": True, **(options or {})},
        # Before a test imports Triton; not every site hands the environment on.
        "setup": ["export TRITON_INTERPRET=1"],
    }
    if gpus:
        made["gpus_per_node"] = gpus
    if partition:
        made["partition"] = partition
    return made


def on_slurm(course: Course, parameters: dict) -> Callable:
    """What :func:`grading.grade.grade` takes to judge on a cluster, with these resources.

    Raises:
        AssignmentError: Slurm, or its accounting, is not there.
    """
    for program in ("sbatch", "srun", "sacct", "scancel"):
        if shutil.which(program) is None:
            raise AssignmentError(
                f"There is no {program} here: --slurm is for a machine from which jobs are submitted."
            )
    answer = subprocess.run(["sacct", "--noheader", "--jobs=1"], capture_output=True, text=True)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AssignmentError(
            f"Slurm's accounting, which tells of tasks that died, does not answer: {reason}."
        )
    name = job_name(course)

    def run_all(course, waiting, run, progress) -> None:
        executor = submitit.SlurmExecutor(course.folder / "slurm")
        executor.update_parameters(job_name=name, **parameters)
        _cancel(name)  # what a grading left that was killed
        try:
            judge_all(course, waiting, run, progress, executor)
        finally:
            _cancel(name)

    return run_all


def job_name(course: Course) -> str:
    """What all jobs of a course are called, and no others."""
    return f"grading-{hashlib.sha256(str(course.folder.resolve()).encode()).hexdigest()[:12]}"


def _cancel(name: str) -> None:
    command = ["scancel", "--quiet", f"--name={name}", f"--user={getpass.getuser()}"]
    subprocess.run(command, stderr=subprocess.DEVNULL)


def judge_all(
    course: Course,
    waiting: list[Submission],
    run: dict,
    progress: Callable[[str], None],
    executor: submitit.Executor,
) -> None:
    """Judge submissions where the executor runs them, those that are lost again."""
    course = replace(course, folder=course.folder.resolve())
    reasons: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        reasons = _judge_once(course, waiting, run, progress, executor)
        waiting = [submission for submission in waiting if submission.student in reasons]
    for submission in waiting:
        write_fault(course, submission, run, reasons[submission.student])
        progress(submission.student)


def _judge_once(
    course: Course,
    waiting: list[Submission],
    run: dict,
    progress: Callable[[str], None],
    executor: submitit.Executor,
) -> dict[str, str]:
    """Judge each submission once; who was lost, and why."""
    running = {}
    for start in range(0, len(waiting), _ARRAY):
        part = waiting[start : start + _ARRAY]
        for submission in part:
            result_file(course, submission.student).unlink(missing_ok=True)
        for job, submission in zip(_submit(executor, course, part, run), part, strict=True):
            running[job] = submission
    lost = {}
    asked = time.monotonic()
    while running:
        time.sleep(max(1.0, len(running) / 100))
        if time.monotonic() - asked > _SECONDS_BETWEEN_QUESTIONS:
            # One question tells about all; left alone, submitit asks less and less often.
            next(iter(running)).get_info()
            asked = time.monotonic()
        over = [job for job in running if _is_over(job)]
        # Only now: what is over has written its result.
        there = _results_there(course)
        for job in over:
            submission = running.pop(job)
            if result_file(course, submission.student) in there:
                progress(submission.student)
            else:
                lost[submission.student] = _reason(job, course)
    return lost


def _submit(
    executor: submitit.Executor, course: Course, part: list[Submission], run: dict
) -> list[submitit.Job]:
    count = len(part)
    try:
        return executor.map_array(_task, [course] * count, part, [run] * count)
    except submitit.core.utils.FailedJobError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise AssignmentError(f"Slurm did not take the jobs: {reason}.") from error


def _task(course: Course, submission: Submission, run: dict) -> None:
    """On the node: judge one submission, in the strongest tier there up to the one that is wanted."""
    # submitit would raise an exception in the midst of a test when the end of the time is near, and
    # would go on after a request to end.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tier = max(run["tier"], best_tier(), key=TIERS.index)
    refuse_readable_tests(course, tier)
    judge_one(course, submission, run | {"tier": tier})


def _is_over(job: submitit.Job) -> bool:
    # submitit expects what was preempted to come back, and --no-requeue says that it does not.
    return job.done() or job.state.startswith("PREEMPTED")


def _results_there(course: Course) -> set[Path]:
    """The files of results. A network file system looks again after a change to the folder."""
    with contextlib.suppress(PermissionError):  # it is somebody else's
        course.results.chmod(course.results.stat().st_mode)
    return set(course.results.glob("*.json"))


def _reason(job: submitit.Job, course: Course) -> str:
    how = "an exception" if job.paths.result_pickle.exists() else job.state
    return f"{how}, {ATTEMPTS} times; see {job.paths.stderr.relative_to(course.folder)}"
