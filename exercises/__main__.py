"""The exercises in a terminal.

    python -m exercises list                          the exercises and their points
    python -m exercises check row_softmax my_file.py  run the public tests on a file
    python -m exercises stubs [--check]               write every stub.py from its solution.py

`check` ends with status 1 if a test fails, `stubs --check` if a stub is not what its solution says.
"""

import argparse
import sys
from pathlib import Path

from exercises import catalogue, practice, stubs
from exercises.catalogue import ExerciseError


def list_exercises() -> None:
    for name in catalogue.names():
        exercise = catalogue.find(name)
        points = sum(exercise.points.values())
        print(f"{name}: {exercise.title} ({exercise.chapter}, {points} points)")


def check(name: str, file: Path) -> None:
    exercise = catalogue.find(name)
    if not practice.report(practice.run_tests(exercise, practice.load(file))):
        sys.exit(1)


def write_stubs(check: bool) -> None:
    stale = []
    for name in catalogue.names():
        exercise = catalogue.find(name)
        path = exercise.folder / "stub.py"
        text = stubs.stub(exercise)
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(f"{name}/stub.py")
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if check and stale:
        raise ExerciseError(
            f"{', '.join(stale)} is not what solution.py says: run python -m exercises stubs."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m exercises",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    command = commands.add_parser("check")
    command.add_argument("name", metavar="NAME")
    command.add_argument("file", type=Path, metavar="FILE")
    commands.add_parser("stubs").add_argument("--check", action="store_true")
    arguments = vars(parser.parse_args())
    run = {"list": list_exercises, "check": check, "stubs": write_stubs}[arguments.pop("command")]
    try:
        run(**arguments)
    except ExerciseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
