"""What the grader needs elsewhere: its own code, one exercise, and what the exercise's tests import."""

import ast
import importlib.metadata
from collections.abc import Iterable, Iterator
from pathlib import Path

import jinja2

from grading.assignment import ROOT, Assignment

TEMPLATES = Path(__file__).with_name("templates")
# On a machine that others provide. The libraries are those of requirements.txt.
_INSTALLED = {"python": "3.12", "uv": "uv==0.13.8"}
_NOT_NEEDED = ("solution.py", "variants.toml")


def files(assignment: Assignment, *, hidden: bool) -> dict[str, bytes]:
    """The files, by their paths in the bundle; the exercise is in ``exercise``, without its solution.

    Args:
        hidden: whether the hidden tests come along.
    """
    made = {f"exercise/{name}": data for name, data in _exercise(assignment, hidden)}
    code = set((ROOT / "grading").rglob("*.py")) | modules(_starts(assignment, hidden))
    for name in assignment.contents.files:
        place = ROOT / name
        code |= set(place.rglob("*.py")) if place.is_dir() else {place}
    made |= {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in code}
    sources = [data.decode() for name, data in made.items() if name.endswith(".py")]
    made["requirements.txt"] = _requirements(sources).encode()
    made["constraints.txt"] = (ROOT / "constraints.txt").read_bytes()
    return dict(sorted(made.items()))


def template(name: str, **words: object) -> bytes:
    """A file for a machine elsewhere; ``<< word >>`` in it is filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # The usual braces mean something in a workflow and in Bash.
        variable_start_string="<<",
        variable_end_string=">>",
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name).render(**_INSTALLED, **words).encode()


def modules(names: Iterable[str]) -> set[Path]:
    """The project's files among these modules and all that they import."""
    found: set[Path] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or file in found:
            continue
        found.add(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [name.rpartition(".")[0], *_imports(file.read_text("utf-8"), package)]
    return found


def _exercise(assignment: Assignment, hidden: bool) -> Iterator[tuple[str, bytes]]:
    for path in sorted(assignment.folder.iterdir()):
        left_out = path.name in _NOT_NEEDED or (path.name == "test_hidden.py" and not hidden)
        if path.is_file() and not left_out:
            yield path.name, path.read_bytes()


def _starts(assignment: Assignment, hidden: bool) -> Iterator[str]:
    """The modules that the tests import, and those that grading.toml names."""
    for file in assignment.tests(hidden=hidden):
        yield from _imports(file.read_text("utf-8"), "")
    contents = assignment.contents
    yield from contents.preload
    named = (*contents.remote, *contents.errors, *assignment.results)
    for path in (*named, *assignment.contexts, *assignment.contexts.values()):
        yield path.partition(":")[0]


def _file(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    if not module or not (ROOT / module.partition(".")[0] / "__init__.py").is_file():
        return None
    choices = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in choices if file.is_file()), None)


def _imports(text: str, package: str) -> Iterator[str]:
    """The names of the modules that a file imports, and of what may be one: ``from a import b``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*(above if node.level else []), *([node.module] if node.module else [])]
            module = ".".join(parts)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _requirements(sources: list[str]) -> str:
    """The lines of requirements.txt whose libraries these files import."""
    imported = {name.partition(".")[0] for text in sources for name in _imports(text, "")}
    offered = importlib.metadata.packages_distributions()
    needed = {name.lower() for module in imported for name in offered.get(module, [])}
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.partition("==")[0].lower() in needed)
