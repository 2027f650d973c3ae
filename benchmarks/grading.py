"""How long it takes to grade a class, and how much memory: ``python -m benchmarks.grading``.

    python -m benchmarks.grading --exercise row_softmax --submissions 300 --jobs 2

A class hands in an exercise: three in four its solution, each with a comment of its own, and the
rest the stub or a file that ends at once. The grader runs as an instructor runs it. Seconds are on
the clock, of the whole command; those of compiling are what its test took on the clock, summed over
the class. Processor seconds and memory are those of the grader's processes, looked at ten times a
second; memory that a forked process has from its parent counts for both, so it is an upper bound.
The parent's own memory is that of the one process that lives as long as the command. What else the
machine did meanwhile, in processors kept busy, says how far to trust the seconds; what comes and goes
between two looks counts there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from instruments import records

ROOT = Path(__file__).resolve().parents[1]


def hand_in(exercise: str, submissions: int, folder: Path) -> None:
    """Write a class's submissions."""
    source = ROOT / "exercises" / exercise
    texts = {name: (source / f"{name}.py").read_text("utf-8") for name in ("solution", "stub")}
    for number in range(submissions):
        text = texts["solution"] + f"# {number}\n"
        if number % 8 == 3:
            text = texts["stub"]
        elif number % 8 == 7:
            text = "raise SystemExit\n"
        (folder / f"student{number:04}.py").write_text(text, "utf-8")


def watch(command: list[str], done: Callable[[], float] = lambda: 0.0) -> dict:
    """Run a command; its time, its memory, and what else the machine did.

    Args:
        done: how much of it is done, from 0 to 1.
    """
    started, busy_before = time.monotonic(), _busy_seconds()
    parent: dict[int, int] = {}
    spent: dict[tuple, float] = {}
    most = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            held = 0
            tree = [psutil.Process(process.pid)]
            try:
                tree += tree[0].children(recursive=True)
            except psutil.Error:
                continue
            for one in tree:
                try:
                    times, memory = one.cpu_times(), one.memory_info()
                except psutil.Error:
                    continue
                spent[one.pid, one.create_time()] = times.user + times.system
                held += memory.rss - memory.shared
                if one is tree[0] and memory.rss:  # which one that has just ended has not
                    parent[next(part for part in (10, 50, 100) if 100 * done() <= part)] = (
                        memory.rss
                    )
            most = max(most, held)
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    seconds, own = time.monotonic() - started, sum(spent.values())
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(own, 2),
        "megabytes": round(most / 2**20),
        **{f"parent_megabytes_at_{part}_percent": round(n / 2**20) for part, n in parent.items()},
        "processors_busy_elsewhere": round(
            max(0.0, _busy_seconds() - busy_before - own) / seconds, 2
        ),
    }


def _busy_seconds() -> float:
    """Processor seconds that all processes of the machine have taken since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exercise", default="row_softmax")
    parser.add_argument("--submissions", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--experiment", help="save a record under this name")
    chosen = parser.parse_args()
    grader = [sys.executable, "-m", "grading"]
    with tempfile.TemporaryDirectory() as place:
        course, source = Path(place, "course"), Path(place, "handed_in")
        source.mkdir()
        hand_in(chosen.exercise, chosen.submissions, source)
        for command in (["release", chosen.exercise, course], ["collect", course, source]):
            subprocess.run(
                [*grader, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
        results = course / "results"

        def done() -> float:
            return len(list(results.glob("*.json"))) / chosen.submissions

        row = watch([*grader, "grade", str(course), "-j", str(chosen.jobs)], done)
        reports = [json.loads(file.read_text("utf-8")) for file in results.glob("*.json")]
    compiling = sum(
        result["seconds"]
        for report in reports
        for result in report["results"]
        if result["name"] == "compiles"
    )
    row = {
        "exercise": chosen.exercise,
        "submissions": chosen.submissions,
        "jobs": chosen.jobs,
        **row,
        "seconds_a_submission": round(row["seconds"] / chosen.submissions, 3),
        "of_which_compiling": round(compiling / chosen.jobs / chosen.submissions, 3),
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    if chosen.experiment:
        print(records.save(chosen.experiment, [row]))


if __name__ == "__main__":
    main()
