"""Every chapter's first cell on a Python that has next to nothing, such as Colab's."""

import ast
import shutil
import subprocess
import sys

import pytest

from scripts import notebooks, recordings
from scripts.environment import IN_CHAPTERS, ROOT, requirements

CELL = (ROOT / "scripts/first_cell.py").read_text("utf-8")
LINES = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=set())
ORDER = [line.split("==")[0] for line in LINES]


@pytest.fixture
def bare(tmp_path):
    """Runs the cell in a folder, without site-packages but with stand-ins for torch and pip."""
    stubs = tmp_path / "stubs"
    (stubs / "pip").mkdir(parents=True)
    (stubs / "pip/__init__.py").touch()
    pip = "import os, sys; print('pip', *sys.argv[1:]); sys.exit('OFFLINE' in os.environ)\n"
    (stubs / "pip/__main__.py").write_text(pip)
    (stubs / "torch.py").write_text(
        "class cuda:\n"
        "    is_available = staticmethod(lambda: True)\n"
        "    get_device_name = staticmethod(lambda: 'a GPU')\n"
    )

    def run(folder, repository="", installed=(), torch="2.13.0", triton="3.7.1", **more):
        for name in installed:
            (stubs / f"{name}.py").touch()
        for name, version in {"torch": torch, "triton": triton}.items():
            if version:
                (stubs / f"{name}-{version}.dist-info").mkdir(exist_ok=True)
                about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                (stubs / f"{name}-{version}.dist-info/METADATA").write_text(about)
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(stubs),
            "ATTENTION_BOOK_REPOSITORY": str(repository),
        } | more
        show = "\nprint(os.getcwd(), kernels.__file__)"
        command = [sys.executable, "-S", "-c", CELL + show]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)

    return run


def make_book(folder, interpreted=True):
    (folder / "book").mkdir(parents=True)
    (folder / "book/index.md").write_text("# The book\n")
    (folder / "kernels").mkdir()
    (folder / "kernels/__init__.py").write_text(f"INTERPRETED = {interpreted}\n")
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/environment.py", folder / "scripts")
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    (folder / "requirements.txt").write_text(pins)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    make_book(folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", folder]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "The book"]):
        subprocess.run([*git, *step], check=True)
    return folder


def test_far_from_the_book_it_is_fetched_once(tmp_path, bare, repository):
    work = tmp_path / "work"
    work.mkdir()
    answer = bare(work, repository)
    assert answer.returncode == 0, answer.stderr
    root = work / "attention-book"
    installing, pip, running, where = answer.stdout.splitlines()
    assert installing.startswith("Installing numpy==")
    pins = pip.removeprefix("pip install --quiet ").split()
    assert [pin.split("==")[0] for pin in pins] == sorted(IN_CHAPTERS, key=ORDER.index)
    assert running.startswith("Running on the CPU through Triton's interpreter: toy sizes (a GPU")
    assert where == f"{root / 'book'} {root / 'kernels/__init__.py'}"
    again = bare(work, tmp_path / "nowhere")
    assert again.stdout.splitlines()[-1] == answer.stdout.splitlines()[-1]


@pytest.mark.parametrize("start", [".", "book", "book/deeper"])
def test_inside_the_book_nothing_is_fetched_or_installed(tmp_path, bare, start):
    make_book(tmp_path / "copy", interpreted=False)
    (tmp_path / "copy/book/deeper").mkdir()
    answer = bare(tmp_path / "copy" / start, tmp_path / "nowhere", installed=IN_CHAPTERS)
    assert answer.stdout.splitlines() == [
        "Running on a GPU",
        f"{tmp_path / 'copy/book'} {tmp_path / 'copy/kernels/__init__.py'}",
    ]


def test_a_failed_fetch_says_what_to_do(tmp_path, bare):
    answer = bare(tmp_path, tmp_path / "nowhere")
    assert answer.returncode != 0
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: Could not fetch") and "check the network" in last


def test_without_a_network_it_says_what_is_missing_and_goes_on(tmp_path, bare):
    make_book(tmp_path / "copy")
    present = set(IN_CHAPTERS) - {"safetensors"}
    answer = bare(tmp_path / "copy", tmp_path / "nowhere", installed=present, OFFLINE="1")
    assert answer.returncode == 0, answer.stderr
    assert "pip could not install safetensors: check the network." in answer.stdout
    assert "Running on" in answer.stdout


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        (
            {"torch": "2.9.1"},
            "has torch 2.9.1 and triton 3.7.1, and the book's kernels need torch 2.11",
        ),
        ({"triton": None}, "has torch 2.13.0 and triton (missing)"),
    ],
)
def test_a_torch_that_is_too_old_or_alone_is_told_with_the_line_that_helps(
    tmp_path, bare, versions, says
):
    make_book(tmp_path / "copy")
    answer = bare(tmp_path / "copy", tmp_path / "nowhere", **versions)
    last = answer.stderr.strip().splitlines()[-1]
    pair = " ".join(line for line in LINES if line.startswith(("torch=", "triton=")))
    assert answer.returncode != 0
    assert says in last and f"%pip install {pair}" in last


def test_whatever_a_chapter_imports_is_brought():
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    brought = {
        *IN_CHAPTERS,
        "torch",
        "triton",
        "IPython",
        "traitlets",
    }  # the last two are Jupyter's
    for chapter in notebooks.chapters():
        notebook = notebooks.read_notebook(chapter)
        texts = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        files = [ROOT / name for name in recordings.dependencies(notebook)]
        texts += [path.read_text("utf-8") for path in files if path.suffix == ".py"]
        for text in texts:
            nodes = ast.parse(text).body
            names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
            names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
            tops = {name.split(".")[0] for name in names}
            assert tops - ours - set(sys.stdlib_module_names) <= brought, chapter.stem
