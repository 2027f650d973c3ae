"""The rules that hold for the repository as a whole."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import notebooks
from scripts.environment import ROOT, requirements

# What each package may import of the others.
ARROWS = {
    "kernels": set(),
    "serving": {"kernels"},
    "instruments": {"kernels"},
    "figures": set(),
    "exercises": {"kernels", "serving", "instruments", "figures", "grading"},
    "benchmarks": {"kernels", "serving", "instruments", "figures"},
    "grading": set(),
    "scripts": {"kernels", "instruments", "figures"},
}


def packages(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("*/__init__.py")} - {"tests"}


def imported_packages(text: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def violations(root: Path) -> list[str]:
    ours = packages(root)
    found = []
    for package in sorted(ours):
        for path in sorted((root / package).rglob("*.py")):
            used = imported_packages(path.read_text("utf-8")) & ours - {package}
            found += [
                f"{path.relative_to(root)} imports {other}"
                for other in sorted(used - ARROWS[package])
            ]
    return found


def test_imports_follow_the_arrows():
    assert violations(ROOT) == []


def test_a_forbidden_import_is_found(tmp_path):
    for package in ("kernels", "instruments"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "instruments/fine.py").write_text("from kernels import naive\n")
    assert violations(tmp_path) == []
    (tmp_path / "kernels/wrong.py").write_text("def f():\n    from instruments.plots import plot\n")
    assert violations(tmp_path) == ["kernels/wrong.py imports instruments"]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "LICENSE",
        "LICENSE-text.md",
        "Makefile",
        "_config.yml",
        "_toc.yml",
        "requirements.txt",
        "constraints.txt",
        ".ci/run",
    ],
)
def test_the_house_has(name):
    assert (ROOT / name).read_text("utf-8").strip()


def test_licences_are_whole():
    code = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in code and "END OF TERMS AND CONDITIONS" in code
    text = (ROOT / "LICENSE-text.md").read_text("utf-8")
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in text


def project_files() -> list[Path]:
    """Every file of the project, without what its commands make."""
    made = {"attention_book.egg-info", "_build", "node_modules", "build", "__pycache__"}
    files = []
    for top in ROOT.iterdir():
        if top.name in made or (top.name.startswith(".") and top.name != ".ci"):
            continue
        below = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
        files += [
            path
            for path in below
            if not made & set(path.relative_to(ROOT).parts) and path.suffix != ".pyc"
        ]
    return files


def test_every_requirement_is_pinned_exactly_and_once():
    direct = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=set())
    brought = requirements((ROOT / "constraints.txt").read_text("utf-8"), without=set())
    for line in direct + brought:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; .+)?", line), line
    names = [{line.split("==")[0].lower() for line in lines} for lines in (direct, brought)]
    assert names[0] & names[1] == set()


def test_every_library_the_code_imports_is_a_requirement():
    lines = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=set())
    direct = {line.split("==")[0].lower() for line in lines}
    distributions = importlib.metadata.packages_distributions()
    ours = packages(ROOT) | {"tests"}
    for path in project_files():
        if path.suffix == ".py":
            names = imported_packages(path.read_text("utf-8")) - ours - sys.stdlib_module_names
            for name in names:
                offered_by = {known.lower() for known in distributions.get(name, [name])}
                assert offered_by & direct, f"{path.relative_to(ROOT)} imports {name}"


def test_make_help_names_every_command():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    public = {name for name in targets if not name.endswith("-environment")} - {"help"}
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert public == set(re.findall(r"^make ([\w-]+)", answer.stdout, re.MULTILINE))


def test_the_repository_address_has_one_home():
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == address
    assert f'Repository = "{address}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    readers = {ROOT / name for name in ("_config.yml", "CITATION.cff", "pyproject.toml")}
    readers |= set((ROOT / "book").glob("*.ipynb"))
    with_address = {path for path in project_files() if address.encode() in path.read_bytes()}
    assert with_address - readers == set()


def test_every_notebook_is_what_its_chapter_says():
    notebooks.sync(check=True)


def test_every_notebook_looks_for_the_book_at_the_repository_address():
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    for chapter in notebooks.chapters():
        cells = json.loads(notebooks.notebook_path(chapter).read_text("utf-8"))["cells"]
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        assert f'"{address}"' in "".join(first["source"]), chapter.name
