"""The solutions that test an exercise's tests: each is the exercise's own solution, with changes.

A file in ``wrong`` or ``right`` of an exercise's folder holds one of them::

    why = "The row's maximum is not subtracted."       what is wrong, or else different
    loses = ["test_large_values"]                      in `wrong`: the tests that must fail
    instead = '''def helper(...): ...'''               definitions that replace those of the same names

    [[edits]]
    old = "tl.exp(values - row_max)"                   stands once in solution.py
    new = "tl.exp(values)"                             and becomes this
"""

import ast
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from exercises import catalogue
from exercises.catalogue import Exercise


class AttemptError(Exception):
    """What is wrong with the file of an attempt, in one sentence that names it."""


@dataclass(frozen=True)
class Edit:
    """What stands once in a solution, and what it becomes."""

    old: str
    new: str


@dataclass(frozen=True)
class Attempt:
    """One solution of an exercise, right or wrong.

    Attributes:
        exercise: what it is a solution of.
        kind: ``"wrong"`` or ``"right"``.
        name: the name of its file.
        why: what is wrong with it, or else different from the exercise's own solution.
        loses: the tests that it must lose.
        instead: definitions that take the place of the solution's.
        edits: the changes within the solution.
    """

    exercise: Exercise
    kind: str
    name: str
    why: str
    loses: list[str] = field(default_factory=list)
    instead: str = ""
    edits: list[Edit] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.exercise.name}/{self.kind}/{self.name}.toml"

    def text(self) -> str:
        """The whole solution.

        Raises:
            AttemptError: it changes nothing, or something that is not in ``solution.py`` just once.
        """
        solution = self.exercise.read("solution.py")
        text = solution
        # From the last to the first, so that what one of them brings is not taken for the old text.
        for edit in sorted(self.edits, key=lambda edit: -solution.find(edit.old)):
            found = solution.count(edit.old)
            if found != 1:
                raise AttemptError(
                    f"{self} expects {edit.old!r} once in solution.py and it is there {found} times: "
                    "adapt it to the solution."
                )
            start = solution.index(edit.old)
            text = text[:start] + edit.new + text[start + len(edit.old) :]
        if self.instead:
            text = f"{_without(text, _defined(self.instead))}\n\n{self.instead}"
        if text == solution:
            raise AttemptError(f"{self} changes nothing of the solution.")
        return text

    def write(self, folder: Path) -> Path:
        """Write the whole solution to a file: Triton reads a kernel's source from where it is."""
        path = folder / f"{self.exercise.name}_{self.name}.py"
        path.write_text(self.text(), "utf-8")
        return path


def attempts(exercise: Exercise, kind: str) -> list[Attempt]:
    """All of an exercise, wrong or right."""
    return [find(exercise, kind, path.stem) for path in _files(exercise, kind)]


def find(exercise: Exercise, kind: str, name: str) -> Attempt:
    try:
        fields = tomllib.loads(exercise.read(f"{kind}/{name}.toml"))
        edits = [Edit(**edit) for edit in fields.pop("edits", [])]
        return Attempt(exercise, kind, name, edits=edits, **fields)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise AttemptError(
            f"{exercise.name}/{kind}/{name}.toml cannot be read: {error}."
        ) from error


def all_attempts(kind: str) -> list[Attempt]:
    """Those of every exercise."""
    return [
        attempt for name in catalogue.names() for attempt in attempts(catalogue.find(name), kind)
    ]


def _files(exercise: Exercise, kind: str) -> list[Path]:
    return sorted((exercise.folder / kind).glob("*.toml"))


def _defined(text: str) -> set[str]:
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def _without(text: str, names: set[str]) -> str:
    """A module's text without the functions of these names."""
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            del lines[first - 1 : node.end_lineno]
    return "".join(lines).rstrip() + "\n"
