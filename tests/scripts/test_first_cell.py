"""Every chapter's first cell on a Python that has next to nothing, such as Colab's."""

import subprocess
import sys

import pytest

from scripts.environment import ROOT

CELL = (ROOT / "scripts/first_cell.py").read_text("utf-8")


@pytest.fixture
def bare(tmp_path):
    """Runs the cell in a folder, without site-packages but with stand-ins for torch and pip."""
    stubs = tmp_path / "stubs"
    (stubs / "pip").mkdir(parents=True)
    (stubs / "pip/__init__.py").touch()
    (stubs / "pip/__main__.py").write_text("import sys; print('pip', *sys.argv[1:])\n")
    (stubs / "torch.py").write_text(
        "class cuda:\n    get_device_name = staticmethod(lambda: 'a GPU')\n"
    )

    def run(folder, repository="", **installed):
        for name in installed:
            (stubs / f"{name}.py").touch()
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(stubs),
            "ATTENTION_BOOK_REPOSITORY": str(repository),
        }
        show = "\nprint(os.getcwd(), kernels.__file__)"
        command = [sys.executable, "-S", "-c", CELL + show]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)

    return run


def make_book(folder, interpreted=True):
    (folder / "book").mkdir(parents=True)
    (folder / "book/index.md").write_text("# The book\n")
    (folder / "kernels").mkdir()
    (folder / "kernels/__init__.py").write_text(f"INTERPRETED = {interpreted}\n")


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
    assert answer.stdout.splitlines() == [
        "pip install --quiet anywidget",
        "Running on the CPU through Triton's interpreter: toy sizes",
        f"{root / 'book'} {root / 'kernels/__init__.py'}",
    ]
    again = bare(work, tmp_path / "nowhere")
    assert again.stdout.splitlines()[-1] == answer.stdout.splitlines()[-1]


@pytest.mark.parametrize("start", [".", "book", "book/deeper"])
def test_inside_the_book_nothing_is_fetched_or_installed(tmp_path, bare, start):
    make_book(tmp_path / "copy", interpreted=False)
    (tmp_path / "copy/book/deeper").mkdir()
    answer = bare(tmp_path / "copy" / start, tmp_path / "nowhere", anywidget=True)
    assert answer.stdout.splitlines() == [
        "Running on a GPU",
        f"{tmp_path / 'copy/book'} {tmp_path / 'copy/kernels/__init__.py'}",
    ]


def test_a_failed_fetch_says_what_to_do(tmp_path, bare):
    answer = bare(tmp_path, tmp_path / "nowhere")
    assert answer.returncode != 0
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: Could not fetch") and "check the network" in last
