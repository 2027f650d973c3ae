"""How long it takes to grade a class, and how much memory: ``python -m benchmarks.grading``.

    python -m benchmarks.grading --exercise row_softmax --submissions 300 --jobs 2

A class hands in an exercise: three in four its solution, each with a comment of its own, and the
rest the stub or a file that ends at once. The grader runs as an instructor runs it. Seconds are on
the clock, of the whole command; processor seconds and memory are those of its processes, looked at
ten times a second; memory that a forked process has from its parent counts for both, so it is an
upper bound.
"""

import argparse
import subprocess
import sys
import tempfile
import time
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


def watch(command: list[str]) -> dict:
    """Run a command; seconds, processor seconds, and the most memory that its processes held at a time."""
    started = time.monotonic()
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
            most = max(most, held)
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    return {
        "seconds": round(time.monotonic() - started, 2),
        "processor_seconds": round(sum(spent.values()), 2),
        "megabytes": round(most / 2**20),
    }


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
        row = watch([*grader, "grade", str(course), "-j", str(chosen.jobs)])
    row = {
        "exercise": chosen.exercise,
        "submissions": chosen.submissions,
        "jobs": chosen.jobs,
        **row,
        "seconds_a_submission": round(row["seconds"] / chosen.submissions, 3),
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    if chosen.experiment:
        print(records.save(chosen.experiment, [row]))


if __name__ == "__main__":
    main()
