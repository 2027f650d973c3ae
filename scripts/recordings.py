"""What a chapter's recorded outputs depend on, and whether they still hold.

A recording is the entry `notebook["metadata"]["recording"]` that `scripts.notebooks record` writes:
the environment it ran in, and digests of everything its outputs depend on. That is every code cell,
every module of this project that the cells import (what those import and the JSON files they name
included) and every result file the cells name. Only the standard library is used, so that the
website's build needs nothing else.
"""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
# The first cell only finds the book and says where it runs: no result depends on it.
SETUP_CELL_ID = "setup"


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def source(cell: dict) -> str:
    """A cell's text; a notebook file may hold it as one string or as a list of lines."""
    return "".join(cell["source"])


def cell_ids(cells: Iterable[dict]) -> list[str]:
    """An id for each cell that depends on nothing but its type and text.

    Equal cells are numbered. So the same chapter always becomes the same notebook, and an output
    kept under its cell's id is kept exactly as long as the cell's text does not change.
    """
    seen = Counter()
    ids = []
    for cell in cells:
        digest = _digest(f"{cell['cell_type']}\n{source(cell)}".encode())[:8]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def code_cells(notebook: dict) -> dict[str, dict]:
    """The code cells whose outputs count, by `cell_ids`, in order."""
    cells = notebook["cells"]
    return {
        identity: cell
        for identity, cell in zip(cell_ids(cells), cells, strict=True)
        if cell["cell_type"] == "code" and cell.get("id") != SETUP_CELL_ID
    }


def dependencies(notebook: dict, root: Path = ROOT) -> dict[str, str]:
    """The project's files that the code cells depend on, each with its digest."""
    trees = [_parse(source(cell)) for cell in code_cells(notebook).values()]
    files = _import_closure(trees, root)
    names = {text for tree in trees for text in _strings(tree)}
    files |= {path for path in (root / "benchmarks/results").glob("*/*.json") if path.stem in names}
    # What an exercise shows and checks; its wrong and right attempts are for its own tests.
    files |= {
        path
        for path in (root / "exercises").glob("*/*.*")
        if path.is_file() and path.parent.name in names
    }
    return {path.relative_to(root).as_posix(): _digest(path.read_bytes()) for path in sorted(files)}


def code_hash(notebook: dict, root: Path = ROOT) -> str:
    """One digest of the code cells, in order, and all their `dependencies`."""
    return _digest(json.dumps([list(code_cells(notebook)), dependencies(notebook, root)]).encode())


def evidence(notebook: dict, root: Path = ROOT) -> dict:
    """The part of a recording that later tells whether the notebook still holds."""
    return {
        "code_hash": code_hash(notebook, root),
        "files": dependencies(notebook, root),
        "cells": {name: _outputs_digest(cell) for name, cell in code_cells(notebook).items()},
    }


def why_stale(notebook: dict, root: Path = ROOT) -> list[str]:
    """What makes the notebook's recording stale, in words; nothing if it is fresh."""
    recording = notebook["metadata"]["recording"]
    reasons = []
    for number, (name, cell) in enumerate(code_cells(notebook).items(), start=1):
        if name not in recording["cells"]:
            reasons.append(f"code cell {number} is new or changed")
        elif recording["cells"][name] != _outputs_digest(cell):
            reasons.append(f"code cell {number} has other outputs than were recorded")
    before, now = recording["files"], dependencies(notebook, root)
    for path in sorted(before.keys() | now.keys()):
        if path not in now:
            reasons.append(f"{path} is no longer used")
        elif path not in before:
            reasons.append(f"{path} is new")
        elif before[path] != now[path]:
            reasons.append(f"{path} has changed")
    if not reasons and recording["code_hash"] != code_hash(notebook, root):
        reasons.append("the code cells were removed or reordered")
    return reasons


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _outputs_digest(cell: dict) -> str:
    def joined(value):
        """Multi-line text as one string, however the file split it."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return "".join(value)
        if isinstance(value, list):
            return [joined(item) for item in value]
        if isinstance(value, dict):
            return {key: joined(item) for key, item in value.items()}
        return value

    # The count too: a cell that prints nothing must still have run.
    state = [cell["execution_count"], joined(cell["outputs"])]
    return _digest(json.dumps(state, sort_keys=True).encode())


def _parse(text: str) -> ast.AST:
    """A cell's syntax tree; lines for IPython alone (%magic, !command) count as nothing."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE))


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _import_closure(trees: list[ast.AST], root: Path) -> set[Path]:
    """The modules that the trees import, those that these import in turn, and their data."""
    found = set()
    pending = {path for tree in trees for path in _imported_files(tree, [], root)}
    while pending:
        path = pending.pop()
        found.add(path)
        if path.suffix != ".py":
            continue
        package = list(path.relative_to(root).parent.parts)
        pending |= _imported_files(ast.parse(path.read_bytes()), package, root) - found
    return found


def _imported_files(tree: ast.AST, package: list[str], root: Path) -> set[Path]:
    """The project's files that a module in `package` needs.

    They are what it imports, what it names in a string (to run a module by itself), and the JSON
    files beside it that it names.
    """
    names = {text for text in _strings(tree) if re.fullmatch(r"\w+(\.\w+)+", text)}
    data = {root.joinpath(*package, name) for name in names if name.endswith(".json")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # What is imported from a package may be a module of its own.
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    modules = {path for name in names for path in _files_of(name.split("."), root)}
    return modules | {path for path in data if path.is_file()}


def _files_of(parts: list[str], root: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs: each package's __init__, then the module."""
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                yield path
