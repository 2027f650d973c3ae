"""Releasing an exercise to a class: the folder for students, and the one for instructors."""

import random
import shutil
import tomllib
from datetime import datetime
from pathlib import Path

from grading.assignment import Assignment, AssignmentError
from grading.course import Course, fresh_seed, open_course

# The variants' own file stays with the authors; solutions and hidden tests with the instructors.
_NOT_FOR_COURSES = ("right", "wrong", "__pycache__", "variants.toml")
# With the settings that `check` needs, so that students try their file on their own variant.
_FOR_STUDENTS = ("statement.md", "stub.py", "test_public.py", "exercise.toml", "grading.toml")

_README = """\
# {title}

[statement.md](statement.md) says what to write; [stub.py](stub.py) is where to begin. To run the public
tests on your file, clone the book's repository (its setup page says how), and type there

```console
.venv/bin/python -m grading check path/to/this/folder path/to/your_file.py
```

A line for each test says what is wrong and most likely why. Hidden tests come on top when it is graded.
"""


def release(
    assignment: Assignment,
    folder: Path,
    *,
    seed: int | None = None,
    due: datetime | None = None,
    late_per_day: float = 0.0,
    late_days: int = 0,
) -> Course:
    """Make the folder of a class's assignment.

    Args:
        seed: of the class: it chooses the variant of the exercise, if it has any; the exercise as it
            stands is then never chosen, because its solution is public.
        due: when it must be handed in.
        late_per_day: the share of the points that each day begun costs.
        late_days: after so many days nothing counts.

    Raises:
        AssignmentError: the folder exists and has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise AssignmentError(f"{folder} is not empty: name a new folder.")
    if not 0 <= late_per_day <= 1:
        raise AssignmentError(f"--late-per-day must be a share from 0 to 1, got {late_per_day}.")
    seed = fresh_seed() if seed is None else seed
    exercise = folder / "exercise"
    shutil.copytree(assignment.folder, exercise, ignore=shutil.ignore_patterns(*_NOT_FOR_COURSES))
    # Where there is no box but another user's, hidden tests must not be everybody's to read.
    folder.chmod(0o700)
    edits, described = variant(assignment.folder, seed)
    apply(exercise, edits)
    handout = folder / "handout"
    handout.mkdir()
    for name in _FOR_STUDENTS:
        if (exercise / name).exists():
            shutil.copyfile(exercise / name, handout / name)
    (handout / "README.md").write_text(_README.format(title=assignment.title), "utf-8")
    lines = [
        f"# {assignment.title}{f': {described}' if described else ''}",
        f"seed = {seed}",
        *([f"due = {due.isoformat(timespec='seconds')}"] if due else []),
        f"late_per_day = {late_per_day}",
        f"late_days = {late_days}",
    ]
    (folder / "assignment.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return open_course(folder)


def variant(folder: Path, seed: int) -> tuple[list[list], str]:
    """The changes to an exercise that a class's seed chooses, and what they are.

    ``variants.toml`` holds ``[[variant]]`` tables with a ``title`` and ``edits``, each a list
    ``[file, old, new]``: what stands in the file as ``old`` once becomes ``new``, or if a number
    follows, what stands there so many times. What changes in ``solution.py`` changes in
    ``stub.py`` too, where that has it.
    """
    known = variants(folder)
    if not known:
        return [], ""
    chosen = random.Random(seed).choice(known)
    return chosen["edits"], chosen["title"]


def variants(folder: Path) -> list[dict]:
    """All variants of an exercise but the plain one."""
    file = folder / "variants.toml"
    return tomllib.loads(file.read_text("utf-8"))["variant"] if file.exists() else []


def apply(folder: Path, edits: list[list]) -> None:
    """Make a variant of the exercise in a folder.

    Raises:
        AssignmentError: the exercise is not as the edits expect it.
    """
    for name, old, new, *times in edits:
        file = folder / name
        text = file.read_text("utf-8")
        expected, found = times[0] if times else 1, text.count(old)
        if found != expected:
            raise AssignmentError(
                f"A variant expects {old!r} in {name} {expected} times, and it is there {found} times."
            )
        file.write_text(text.replace(old, new), "utf-8")
        if name == "solution.py":
            stub = folder / "stub.py"
            stub.write_text(stub.read_text("utf-8").replace(old, new), "utf-8")
