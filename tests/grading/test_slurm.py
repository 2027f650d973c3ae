"""Grading on a cluster: with a private Slurm where its programs are, and without one."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit

from grading import __main__, assignment, box, gradebook, judge, slurm
from grading import grade as grading
from grading.assignment import AssignmentError
from grading.course import open_course
from grading.release import release
from grading.submissions import read
from tests.grading import private_slurm
from tests.grading.conftest import DOUBLE, TIER, needs_box
from tests.grading.test_course import MARKUP, PUBLIC_ONLY, RIGHT, STUB, hand_in

needs_slurm = [
    pytest.mark.skipif(
        bool(private_slurm.MISSING), reason=f"needs {', '.join(private_slurm.MISSING)}"
    ),
    needs_box,
    pytest.mark.timeout(1200),
]
# A test of the assignment that ends the grader's own process, as a lack of memory would, for those
# submissions that ask for it. The submissions' code itself cannot: it is in a box.
ENDING = """

@pytest.mark.points(1)
def test_what_becomes_of_the_grader(student):
    import os, pathlib, signal, time

    wish = int(student.double(torch.zeros(1)))
    begun = pathlib.Path(__file__).with_name(f"begun-{wish}")
    first = not begun.exists()
    begun.touch()
    if wish == 1 and first or wish == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == 3 and first:
        time.sleep(3600)
"""
ENDS_ONCE, ENDS_ALWAYS, WAITS_ONCE = (
    f"def double(values):\n    return values + {wish} if values.shape == (1,) else 2 * values\n"
    for wish in (1, 2, 3)
)


def make_class(folder: Path, texts: dict[str, str], roster=()):
    course = release(DOUBLE, folder, seed=5)
    with open(folder / "exercise/test_hidden.py", "a", encoding="utf-8") as file:
        file.write(ENDING)
    course = open_course(folder)
    hand_in(course, texts, roster)
    return course


def verdicts(report: dict) -> dict:
    """A report without what differs from one grading to the next."""
    results = [{**result, "seconds": 0} for result in report["results"]]
    return {**report, "seconds": 0, "results": results}


def graded_here(course, folder: Path) -> dict[str, dict]:
    """The reports on the same class, graded on this machine with the same settings."""
    shutil.copytree(course.folder, folder, ignore=shutil.ignore_patterns("results", "slurm"))
    return grading.grade(open_course(folder), tier=TIER, jobs=2)


# With a Slurm.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm that the commands of this process reach."""
    with private_slurm.running(tmp_path_factory.mktemp("slurm")) as configuration:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", configuration)
            patch.setattr(slurm, "_SECONDS_BETWEEN_QUESTIONS", 1.0)
            yield


def queue(*options: str) -> list[str]:
    answer = subprocess.run(["squeue", "-h", *options], capture_output=True, text=True, check=True)
    return answer.stdout.split()


def cancel_when_alone(course) -> None:
    """Cancel the task that waits, when it has begun to and no other is left."""
    while not (course.folder / "exercise/begun-3").exists() or len(left := queue("-r", "-o%i")) > 1:
        time.sleep(0.2)
    subprocess.run(["scancel", *left], check=True)


def on_slurm(course, jobs: int = 2):
    asked = slurm.resources(course.assignment, jobs=jobs)
    return slurm.on_slurm(course, asked)


@pytest.fixture(scope="module")
def graded(cluster, tmp_path_factory):
    """A class of seven, graded on the cluster, where one task is cancelled and one ends each time."""
    folder = tmp_path_factory.mktemp("on a cluster") / "course"
    texts = {"ada": RIGHT, "bob": STUB, "cy": PUBLIC_ONLY, "eve": MARKUP}
    texts |= {"fay": WAITS_ONCE, "gus": ENDS_ALWAYS}
    course = make_class(folder, texts, roster=["zoe"])
    thread = threading.Thread(target=cancel_when_alone, args=(course,), daemon=True)
    thread.start()
    told: list[str] = []
    grading.grade(course, tier=TIER, progress=told.append, run_all=on_slurm(course))
    thread.join()
    return course, told


class TestOnACluster:
    pytestmark = needs_slurm

    def test_the_verdicts_are_those_of_this_machine(self, graded, tmp_path):
        course, told = graded
        there, here = grading.results(course), graded_here(course, tmp_path / "here")
        assert sorted(told) == sorted(here) == ["ada", "bob", "cy", "eve", "fay", "gus", "zoe"]
        assert {name: one["score"] for name, one in here.items()} == {
            "ada": 7,
            "bob": 0,
            "cy": 4,
            "eve": 0,
            "fay": 7,
            "gus": None,
            "zoe": 0,
        }
        del there["gus"], here["gus"]  # who died how is told in other words
        assert {name: verdicts(one) for name, one in there.items()} == {
            name: verdicts(one) for name, one in here.items()
        }

    def test_a_task_that_is_cancelled_is_judged_again(self, graded):
        course, _ = graded
        answer = subprocess.run(
            ["sacct", "-nX", "--format=State%20"], capture_output=True, text=True, check=True
        )
        assert sum(
            line.startswith("CANCELLED") for line in map(str.strip, answer.stdout.split("\n"))
        )
        assert grading.results(course)["fay"]["score"] == 7

    def test_a_task_that_always_ends_is_no_score(self, graded):
        course, _ = graded
        report = grading.results(course)["gus"]
        assert report["score"] is None
        assert {result["state"] for result in report["results"]} == {judge.FAULT}
        message = report["results"][0]["message"]
        assert f"(FAILED, {slurm.ATTEMPTS} times; see slurm/" in message
        log = message.split("see ")[1].split(")")[0]
        assert (course.folder / log).is_file()

    def test_an_interrupted_grading_goes_on(self, cluster, tmp_path):
        course = make_class(tmp_path / "course", {"ada": RIGHT, "bob": STUB, "cy": RIGHT})

        def interrupt(student):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            grading.grade(course, tier=TIER, progress=interrupt, run_all=on_slurm(course, jobs=1))
        first = {name: one["seconds"] for name, one in grading.results(course).items()}
        assert 0 < len(first) < 3
        assert empties("--states=PENDING,RUNNING")
        # What a command left that was killed is cancelled before anything else is judged.
        name = slurm.job_name(course)
        subprocess.run(["sbatch", f"--job-name={name}", "--wrap=sleep 3600"], check=True)
        reports = grading.grade(course, tier=TIER, run_all=on_slurm(course))
        assert empties()
        assert {one["seed"] for one in reports.values()} == {
            json.loads((course.folder / "run.json").read_text())["seed"]
        }
        assert {name: reports[name]["seconds"] for name in first} == first
        assert [one["score"] for one in reports.values()] == [7, 0, 7]

    def test_the_command(self, cluster, tmp_path, monkeypatch, capsys):
        course = make_class(tmp_path / "course", {"ada": RIGHT})
        options = ["--time", "20", "--memory", "2.5", "--sbatch", "comment=a class"]
        monkeypatch.setattr(
            sys,
            "argv",
            ["grading", "grade", str(course.folder), "--slurm", "--seed", "9", *options],
        )
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == 0
        assert capsys.readouterr().out == (
            "1 graded, 1 of them now, in the tier bubblewrap, seed 9; 0 not settled, 0 to be looked at.\n"
        )
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--partition", "gold", "--seed", "8"])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert str(ended.value.code).startswith("Slurm did not take the jobs: ")
        assert "artition" in ended.value.code and "\n" not in ended.value.code


def empties(*options: str) -> bool:
    """Whether nothing is left in the queue as soon as Slurm has ended what it was told to."""
    deadline = time.monotonic() + 120
    while queue(*options) and time.monotonic() < deadline:
        time.sleep(0.5)
    return not queue(*options)


# Without one.


@needs_box
def test_tasks_elsewhere_judge_as_here(tmp_path):
    course = make_class(tmp_path / "course", {"ada": PUBLIC_ONLY, "fay": ENDS_ONCE})
    executor = submitit.LocalExecutor(course.folder / "slurm")
    executor.update_parameters(timeout_min=60, setup=["export TRITON_INTERPRET=1"])

    def run_all(*arguments):
        slurm.judge_all(*arguments, executor)

    there = grading.grade(course, tier=TIER, run_all=run_all)
    here = graded_here(course, tmp_path / "here")
    assert [one["score"] for one in there.values()] == [4, 7]
    assert {name: verdicts(one) for name, one in there.items()} == {
        name: verdicts(one) for name, one in here.items()
    }


class _Lost:
    """A job that ends and leaves nothing."""

    def __init__(self, folder: Path, state: str) -> None:
        self.state = state
        self.paths = submitit.core.utils.JobPaths(folder, job_id="7_0")

    def done(self) -> bool:
        return self.state != "PREEMPTED"  # submitit waits for these


class _Loser:
    """An executor that loses every task but those of one student."""

    def __init__(self, folder: Path, state: str) -> None:
        self.folder, self.state, self.given = folder, state, []

    def map_array(self, task, courses, submissions, runs) -> list[_Lost]:
        self.given.append([submission.student for submission in submissions])
        for course, submission in zip(courses, submissions, strict=True):
            if submission.student == "ada":
                grading.result_file(course, "ada").write_text("{}")
        return [_Lost(self.folder, self.state) for _ in submissions]


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "PREEMPTED"])
def test_what_is_lost_is_judged_again_and_then_no_score(tmp_path, monkeypatch, state):
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    course = make_class(tmp_path / "course", {"ada": RIGHT, "bob": RIGHT})
    course.results.mkdir()
    run = grading.settings(course, tier=TIER, seed=3)
    told, executor = [], _Loser(course.folder / "slurm", state)
    slurm.judge_all(course, read(course.submissions), run, told.append, executor)
    assert executor.given == [["ada", "bob"], ["bob"], ["bob"]]
    assert told == ["ada", "bob"]
    report = grading.results(course)["bob"]
    assert report["score"] is None and report["seed"] == 3
    assert {result["state"] for result in report["results"]} == {judge.FAULT}
    assert report["results"][0]["message"] == (
        f"The grader's own process ended ({state}, 3 times; see slurm/7_0_0_log.err)."
    )


def test_a_class_larger_than_an_array_is_several(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_ARRAY", 2)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    course = make_class(tmp_path / "course", dict.fromkeys("abcde", RIGHT))
    course.results.mkdir()
    executor = _Loser(course.folder / "slurm", "NODE_FAIL")
    run = grading.settings(course, tier=TIER)
    slurm.judge_all(course, read(course.submissions), run, lambda student: None, executor)
    assert executor.given == 3 * [["a", "b"], ["c", "d"], ["e"]]


def test_a_node_without_a_box_gives_no_official_verdict(tmp_path, monkeypatch):
    course = make_class(tmp_path / "course", {"ada": RIGHT})
    course.results.mkdir()
    run = grading.settings(course, tier=box.BUBBLEWRAP, seed=3)
    monkeypatch.setattr(slurm, "best_tier", lambda: box.PRACTICE)
    (submission,) = read(course.submissions)
    # In a process of its own: a task sets its process's signals.
    process = multiprocessing.get_context("fork").Process(
        target=slurm._task, args=(course, submission, run)
    )
    process.start()
    process.join()
    report = grading.results(course)["ada"]
    assert (report["tier"], report["official"], report["score"]) == (box.PRACTICE, False, 7)
    assert run["official"]
    with pytest.raises(AssignmentError, match="practice mode"):
        gradebook.export(course)
    waiting = []
    grading.grade(course, tier=run["tier"], run_all=lambda *given: waiting.extend(given[1]))
    assert waiting == [submission]


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Programs with the names of Slurm's, which do what a test says."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def program(name: str, script: str = "exit 0") -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    for name in ("sbatch", "srun", "sacct", "scancel"):
        program(name)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    return program


def test_what_slurm_is_asked_for(tmp_path, pretended):
    course = make_class(tmp_path / "course", {"ada": RIGHT, "bob": RIGHT})
    with open(course.folder / "exercise/grading.toml", "r+", encoding="utf-8") as file:
        text = file.read()
        file.seek(0)
        file.write("gpu = 1\n" + text)
    course = open_course(course.folder)
    kept = tmp_path / "asked.sh"
    pretended("sbatch", f"cp $1 '{kept}'; echo 'sbatch: error: invalid partition' >&2; exit 1")
    asked = slurm.resources(course.assignment, jobs=8, partition="gold", options={"qos": "low"})
    limits = course.assignment.limits
    with pytest.raises(
        AssignmentError, match="^Slurm did not take the jobs: .*invalid partition.$"
    ):
        grading.grade(course, tier=TIER, run_all=slurm.on_slurm(course, asked))
    lines = kept.read_text().splitlines()
    for line in (
        "--array=0-1%2",
        f"--time={-(-(limits.total + 300) // 60):.0f}",
        f"--mem={limits.memory // 2**20 + 2048}M",
        "--cpus-per-task=1",
        "--gpus-per-node=1",
        "--partition=gold",
        "--qos=low",
        "--no-requeue",
        f"--job-name={slurm.job_name(course)}",
    ):
        assert f"#SBATCH {line}" in lines
    own = slurm.resources(course.assignment, jobs=1, minutes=7, gigabytes=1.5, cpus=2, gpus=3)
    assert (own["time"], own["mem"], own["cpus_per_task"], own["gpus_per_node"]) == (
        *(7, "1536M"),
        *(2, 3),
    )


def test_a_number_of_gpus_is_a_number(tmp_path):
    course = make_class(tmp_path / "course", {})
    (course.folder / "exercise/grading.toml").write_text("gpu = 'one'\n")
    with pytest.raises(AssignmentError, match="gpu in grading.toml is a number of GPUs, and not"):
        assignment.find(str(course.folder / "exercise"))


def test_a_machine_without_slurm_is_told_so(tmp_path, monkeypatch, pretended):
    course = make_class(tmp_path / "course", {"ada": RIGHT})
    pretended("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    with pytest.raises(AssignmentError, match="accounting.* Slurm accounting storage is disabled"):
        on_slurm(course)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssignmentError, match="There is no sbatch here"):
        on_slurm(course)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition", "gold"], "--partition is for a cluster: give --slurm, too."),
        (["--slurm", "--time", "0"], "a whole number from 1 is wanted; got '0'"),
        (["--slurm", "--memory", "much"], "a number of gigabytes is wanted; got 'much'"),
        (["--slurm", "--sbatch", "--qos=low"], "expected one argument"),
        (["--slurm", "--sbatch=--qos=low"], "an option of sbatch without its dashes is wanted"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    course = make_class(tmp_path / "course", {"ada": RIGHT})
    monkeypatch.setattr(sys, "argv", ["grading", "grade", str(course.folder), *options])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert message in str(ended.value.code) + capsys.readouterr().err
