"""An exercise as the grader sees it: its tests, their points, and what its box holds.

The folder of an exercise has ``exercise.toml``, which its authors and readers know, and beside it,
where the grader needs more, ``grading.toml``::

    gpu = 1                GPUs that the tests themselves use, asked for on a cluster; the box has none

    [box]                  what the student's process has beside Python and the libraries
    files = ["kernels/__init__.py"]     files and folders of the project
    preload = ["kernels"]               modules imported before the student's file
    remote = ["package:function"]       functions that tests call and that run in the box,
    contexts = {"package:manager" = "package:Class"}    context managers, with what they give,
    results = ["package:Class"]         dataclasses that come back from these,
    errors = ["package:Class"]          and exceptions

    [limits]               seconds, total, memory, ... as in grading.box.Limits

    [compiles]             points for kernels that compile for a GPU, and for which
    points = 2
    architecture = 90
"""

import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from grading.box import Contents, Limits

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = ROOT / "exercises"
COMPILES = "compiles"


class AssignmentError(Exception):
    """What is wrong with an exercise or a request, in one sentence."""


@dataclass(frozen=True)
class Assignment:
    """One exercise to be graded.

    Attributes:
        folder: of the exercise.
        title, function, kernels, allowed_imports, points: as in ``exercise.toml``.
        contents, limits: of the box.
        contexts: context managers of the project that run in the box, with the class of what they give.
        results: classes of what may come out of it.
        compiles: points for kernels that compile, and the architecture; None where none are given.
        gpus: that tests use.
    """

    folder: Path
    title: str
    function: str
    kernels: list[str]
    allowed_imports: list[str]
    points: dict[str, float]
    contents: Contents
    limits: Limits
    contexts: dict[str, str] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    compiles: tuple[float, int] | None = None
    gpus: int = 0

    @property
    def name(self) -> str:
        return self.folder.name

    def tests(self, *, hidden: bool) -> list[Path]:
        """The files of tests."""
        files = [self.folder / "test_public.py"]
        if hidden and (self.folder / "test_hidden.py").exists():
            files.append(self.folder / "test_hidden.py")
        return files

    def digest(self) -> str:
        """A fingerprint of all that a score depends on, save the submission and the seed."""
        digest = hashlib.sha256()
        used = [ROOT / name for name in self.contents.files]
        for top in (self.folder, Path(__file__).parent, *used):
            paths = sorted(top.rglob("*")) if top.is_dir() else [top]
            for path in paths:
                if path.is_file() and path.suffix in (".py", ".toml", ".md"):
                    digest.update(f"{path.relative_to(top.parent)}\0".encode())
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def find(name: str) -> Assignment:
    """The exercise of the book with this name, or in this folder.

    Raises:
        AssignmentError: there is none, or its files are not as they should be.
    """
    known = sorted(path.parent.name for path in EXERCISES.glob("*/exercise.toml"))
    folder = EXERCISES / name if name in known else Path(name)
    if not (folder / "exercise.toml").is_file():
        raise AssignmentError(
            f"There is no exercise {name!r}: give a folder that has an exercise.toml, or one of "
            f"{', '.join(known)}."
        )
    try:
        return _read(folder.resolve())
    except (tomllib.TOMLDecodeError, TypeError, KeyError, AttributeError) as error:
        raise AssignmentError(f"The exercise {name!r} cannot be read: {error}.") from error


def _read(folder: Path) -> Assignment:
    exercise = tomllib.loads((folder / "exercise.toml").read_text("utf-8"))
    extra: dict = {}
    if (folder / "grading.toml").exists():
        extra = tomllib.loads((folder / "grading.toml").read_text("utf-8"))
    unknown = extra.keys() - {"box", "limits", "compiles", "gpu"}
    if unknown:
        raise KeyError(f"grading.toml has {', '.join(sorted(unknown))}")
    gpus = extra.get("gpu", 0)
    if type(gpus) is not int or gpus < 0:
        raise TypeError(f"gpu in grading.toml is a number of GPUs, and not {gpus!r}")
    box = dict(extra.get("box", {}))
    contexts = box.pop("contexts", {})
    results = tuple(box.pop("results", ()))
    box["remote"] = [*box.get("remote", ()), *contexts]
    kernels = exercise.get("kernels", [])
    contents = Contents(
        ROOT,
        kernels=tuple(kernels),
        watch=bool(kernels) and "triton" in exercise["allowed_imports"],
        **{name: tuple(value) for name, value in box.items()},
    )
    compiles = extra.get("compiles")
    return Assignment(
        folder=folder,
        title=exercise["title"],
        function=exercise["function"],
        kernels=kernels,
        allowed_imports=exercise["allowed_imports"],
        points=exercise["points"],
        contents=contents,
        limits=Limits(**extra.get("limits", {})),
        contexts=contexts,
        results=results,
        compiles=(compiles["points"], compiles["architecture"]) if compiles else None,
        gpus=gpus,
    )
