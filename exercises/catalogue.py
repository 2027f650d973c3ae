"""Which exercises there are, and what the ``exercise.toml`` of each says."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent


class ExerciseError(Exception):
    """What is wrong with a request, in one sentence for the learner."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        folder: holds ``statement.md``, ``solution.py``, ``stub.py`` (made from the solution) and
            ``test_public.py``, and in ``wrong`` and ``right`` the solutions that test the tests.
        title: its name for a reader.
        chapter: the chapter it belongs to, such as ``01_naive_attention``.
        function: what the learner writes and the tests call.
        kernels: the Triton kernels that a solution must have.
        allowed_imports: the modules that a solution may import.
        points: what each test of ``test_public.py`` is worth.
    """

    folder: Path
    title: str
    chapter: str
    function: str
    kernels: list[str]
    allowed_imports: list[str]
    points: dict[str, int]

    @property
    def name(self) -> str:
        return self.folder.name

    def read(self, file: str) -> str:
        return (self.folder / file).read_text("utf-8")


def names() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("*/exercise.toml"))


def find(name: str) -> Exercise:
    if name not in names():
        raise ExerciseError(f"There is no exercise {name!r}; there are: {', '.join(names())}.")
    folder = ROOT / name
    return Exercise(folder, **tomllib.loads((folder / "exercise.toml").read_text("utf-8")))
