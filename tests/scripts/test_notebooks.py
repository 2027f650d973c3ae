"""Chapters as notebooks: in step with their Markdown, run, recorded."""

import json
import sys

import nbformat
import pytest

from scripts import notebooks, recordings

CHAPTER = """# A title

Words.

```python
# setup cell
```

## Steps

```python
from pathlib import Path

print(Path.cwd().name)
```

```python
x = 20
x + 1
```

```console
$ make book
```
"""
GPU = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "cuda": "13.0",
    "python": "3.12.3",
    "commit": "0123456789abcdef",
    "dirty": False,
    "date": "2026-11-23T10:00:00",
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A project with one chapter, which needs nothing but Python to run."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "BOOK", tmp_path / "book")
    monkeypatch.setattr(notebooks, "setup_cell", lambda: "ready = True")
    (tmp_path / "book").mkdir()
    (tmp_path / "book/01_first.md").write_text(CHAPTER)
    return tmp_path / "book"


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(notebooks, "_gpu_environment", lambda: GPU)


def read(book):
    return nbformat.read(book / "01_first.ipynb", as_version=4)


def edit(book, old, new):
    path = book / "01_first.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_sync_makes_a_valid_notebook(book):
    notebooks.sync(check=False)
    notebook = read(book)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == [
        *("markdown", "code", "markdown", "code", "code", "markdown")
    ]
    assert notebook.cells[1].source == "ready = True"
    assert notebook.cells[1].id == "setup"
    assert notebook.cells[4].source == "x = 20\nx + 1"
    assert notebook.metadata == notebooks.METADATA


def test_sync_twice_writes_the_same(book):
    notebooks.sync(check=False)
    first = (book / "01_first.ipynb").read_bytes()
    (book / "01_first.ipynb").unlink()
    notebooks.sync(check=False)
    assert (book / "01_first.ipynb").read_bytes() == first
    notebooks.sync(check=True)


def test_check_names_what_is_out_of_step_and_writes_nothing(book):
    with pytest.raises(notebooks.ChapterError, match="01_first.ipynb is not what"):
        notebooks.sync(check=True)
    assert not (book / "01_first.ipynb").exists()
    notebooks.sync(check=False)
    edit(book, "Words.", "Other words.")
    with pytest.raises(notebooks.ChapterError, match="01_first.ipynb is not what"):
        notebooks.sync(check=True)


def test_sync_keeps_the_outputs_of_unchanged_cells_only(book, on_a_gpu):
    notebooks.sync(check=False)
    notebooks.record([], None)
    before = read(book)
    edit(book, "## Steps", "```python\nnew = True\n```")
    edit(book, "x = 20", "x  = 20")  # Spaces count: what was recorded is what is shown.
    notebooks.sync(check=False)
    after = read(book)
    kept = [(cell.source, bool(cell.outputs)) for cell in after.cells if cell.cell_type == "code"]
    assert kept == [
        ("ready = True", False),
        ("new = True", False),
        (before.cells[3].source, True),
        ("x  = 20\nx + 1", False),
    ]
    assert after.metadata.recording == before.metadata.recording


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# setup cell", "import kernels", "first code cell must be"),
        ("```console", "```bash", "%%bash cell"),
        ("# A title", "Words first", "first line must be its title"),
    ],
)
def test_sync_refuses_a_chapter_that_would_not_work(book, old, new, message):
    edit(book, old, new)
    with pytest.raises(notebooks.ChapterError, match=message):
        notebooks.sync(check=False)


def test_chapters_are_found_by_how_they_begin(book):
    (book / "02_second.md").write_text(CHAPTER)
    (book / "notes.md").write_text("# Not a chapter\n")
    assert [path.stem for path in notebooks.chapters()] == ["01_first", "02_second"]
    assert [path.stem for path in notebooks.chapters(["02"])] == ["02_second"]
    with pytest.raises(notebooks.ChapterError, match="no chapter '03'; there are 01_first"):
        notebooks.chapters(["03"])


def test_run_executes_in_the_book_and_leaves_it_alone(book, tmp_path, capsys):
    notebooks.sync(check=False)
    before = (book / "01_first.ipynb").read_bytes()
    notebooks.run(["01"], tmp_path / "out")
    assert (book / "01_first.ipynb").read_bytes() == before
    ran = json.loads((tmp_path / "out/01_first.ipynb").read_text())
    assert ran["cells"][3]["outputs"][0]["text"] == ["book\n"]
    assert ran["cells"][4]["outputs"][0]["data"]["text/plain"] == ["21"]
    assert "01_first: " in capsys.readouterr().out


def test_run_names_the_cell_that_fails(book, tmp_path):
    edit(book, "x = 20", "x = 20 / 0")
    notebooks.sync(check=False)
    with pytest.raises(notebooks.ChapterError, match="(?s)01_first stops in cell 5 of 6.*Zero"):
        notebooks.run([], tmp_path / "out")


def test_record_needs_a_gpu(book, monkeypatch):
    torch = pytest.importorskip("torch")
    notebooks.sync(check=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(notebooks.ChapterError, match="needs a CUDA GPU"):
        notebooks.record([], None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(notebooks.ChapterError, match="TRITON_INTERPRET unset"):
        notebooks.record([], None)
    assert "recording" not in read(book).metadata


def test_record_stores_outputs_that_sync_keeps_and_status_calls_fresh(book, on_a_gpu, capsys):
    notebooks.sync(check=False)
    notebooks.record([], None)
    notebooks.sync(check=True)
    notebook = read(book)
    nbformat.validate(notebook)
    assert notebook.cells[4].outputs[0].data["text/plain"] == "21"
    assert notebook.metadata.recording.items() >= GPU.items()
    assert notebook.metadata.recording.seconds > 0
    assert notebook.metadata.keys() == notebooks.METADATA.keys() | {"recording"}
    assert recordings.why_stale(recordings.read(book / "01_first.ipynb"), book.parent) == []
    capsys.readouterr()
    notebooks.status(strict=True)
    heading, row = capsys.readouterr().out.splitlines()
    assert row.split("  ")[0] == "01_first" and row.endswith("fresh")
    assert "NVIDIA H200" in row and "2026-11-23" in row and "01234567" in row


def test_record_elsewhere_leaves_the_book_alone(book, on_a_gpu, tmp_path):
    notebooks.sync(check=False)
    before = (book / "01_first.ipynb").read_bytes()
    notebooks.record(["01"], tmp_path / "out")
    assert (book / "01_first.ipynb").read_bytes() == before
    assert "recording" in json.loads((tmp_path / "out/01_first.ipynb").read_text())["metadata"]


def test_status_says_what_is_missing_and_why(book, on_a_gpu, capsys):
    notebooks.sync(check=False)
    with pytest.raises(notebooks.ChapterError, match="1 of the chapters"):
        notebooks.status(strict=True)
    assert "not recorded" in capsys.readouterr().out
    notebooks.record([], None)
    edit(book, "x = 20", "x = 21")
    notebooks.sync(check=False)
    notebooks.status(strict=False)
    with pytest.raises(notebooks.ChapterError, match="1 of the chapters"):
        notebooks.status(strict=True)
    assert "code cell 2 is new or changed" in capsys.readouterr().out


def test_an_edit_undone_is_not_fresh(book, on_a_gpu):
    """Its outputs were dropped with the edit, and text alone does not bring them back."""
    notebooks.sync(check=False)
    notebooks.record([], None)
    for old, new in (("x = 20", "x = 21"), ("x = 21", "x = 20")):
        edit(book, old, new)
        notebooks.sync(check=False)
    reasons = recordings.why_stale(read(book), book.parent)
    assert reasons == ["code cell 2 has other outputs than were recorded"]


def test_record_strips_what_opens_nowhere_else(book, on_a_gpu):
    show = """import sys, ipywidgets
from IPython.display import display
print("kept")
print("a warning from /some/folder", file=sys.stderr)
display(ipywidgets.IntSlider())
from instruments import progress
progress.PATIENCE_SECONDS = 0
assert sum(progress.progress(range(3), "a bar")) == 3
class Figure(ipywidgets.IntSlider):
    def _repr_mimebundle_(self, **options):
        return super()._repr_mimebundle_(**options) | {"text/html": "<div>static</div>"}
display(Figure())"""
    edit(book, "x = 20\nx + 1", show)
    edit(book, "print(Path.cwd().name)", "1 / 0")
    edit(book, "```python\nfrom pathlib", '```python tags=["raises-exception"]\nfrom pathlib')
    notebooks.sync(check=False)
    notebooks.record([], None)
    notebook = read(book)
    [error] = notebook.cells[3].outputs
    assert error.traceback == ["ZeroDivisionError: division by zero"]
    stream, figure = notebook.cells[4].outputs
    assert stream.text == "kept\n"
    assert figure.data["text/html"] == "<div>static</div>"
    assert notebooks.WIDGET_VIEW not in (book / "01_first.ipynb").read_text()
    assert "execution" not in notebook.cells[4].metadata
    assert "widgets" not in notebook.metadata


def test_the_command_line_ends_in_one_sentence(book, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebooks", "sync", "--check"])
    with pytest.raises(SystemExit, match="run python -m scripts.notebooks sync"):
        notebooks.main()


def test_the_setup_cell_names_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://example.org/the/book\n")
    assert '"https://example.org/the/book"' in notebooks.setup_cell()
    assert "{repository}" not in notebooks.setup_cell()
