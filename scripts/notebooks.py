"""The chapters as notebooks: keep them in step with their Markdown, run them, record them on a GPU.

    python -m scripts.notebooks sync [--check]                book/NN_name.md -> book/NN_name.ipynb
    python -m scripts.notebooks run [NAME...] [--out DIR]     run them, change nothing in book/
    python -m scripts.notebooks record [NAME...] [--out DIR]  run them on this GPU, keep the outputs
    python -m scripts.notebooks status [--strict]             where recorded, and if it still holds

NAME is a chapter, or how its name begins: 01 or 01_naive_attention.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from scripts import recordings
from scripts.recordings import BOOK, ROOT, SETUP_CELL_ID

SETUP_CELL = "# setup cell"
CELL_TIMEOUT_SECONDS = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# The accelerator makes Colab open the chapter on a machine with a GPU.
METADATA = {
    "accelerator": "GPU",
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


class ChapterError(Exception):
    """What is wrong with a chapter, in one sentence for the reader of the terminal."""


def chapters(names: Iterable[str] = ()) -> list[Path]:
    """The Markdown files of the named chapters, or of all."""
    every = sorted(BOOK.glob("[0-9][0-9]_*.md"))
    if not every:
        raise ChapterError(f"There are no chapters (NN_name.md) in {BOOK}.")
    chosen = []
    for name in names:
        matches = [path for path in every if path.stem.startswith(name.removesuffix(".md"))]
        if not matches:
            known = ", ".join(path.stem for path in every)
            raise ChapterError(f"There is no chapter {name!r}; there are {known}.")
        chosen += matches
    return sorted(set(chosen)) if names else every


def notebook_path(chapter: Path) -> Path:
    return chapter.with_suffix(".ipynb")


def read_notebook(chapter: Path) -> NotebookNode:
    path = notebook_path(chapter)
    if not path.exists():
        raise ChapterError(f"{path} does not exist: python -m scripts.notebooks sync makes it.")
    return nbformat.read(path, as_version=4)


def setup_cell() -> str:
    """The first code cell of every chapter, with the repository's address filled in."""
    import yaml

    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    text = Path(__file__).with_name("first_cell.py").read_text("utf-8")
    return text.replace("{repository}", config["repository"]["url"]).rstrip("\n")


def paired(chapter: Path, setup: str) -> NotebookNode:
    """The notebook a chapter's Markdown stands for.

    A code cell whose text the present notebook has too keeps its outputs. (jupytext's own way of
    combining the two also keeps those of cells that differ in spaces, quotes or brackets.)
    """
    import jupytext

    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    notebook.cells = jupytext.reads(chapter.read_text("utf-8"), fmt="md").cells
    for cell, identity in zip(notebook.cells, recordings.cell_ids(notebook.cells), strict=True):
        cell.id = identity
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        raise ChapterError(f"{chapter}: its first line must be its title, '# ...'.")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or code[0].source != SETUP_CELL:
        raise ChapterError(f"{chapter}: its first code cell must be the line {SETUP_CELL!r}.")
    code[0].update(id=SETUP_CELL_ID, source=setup)
    for cell in code:
        if cell.source.startswith("%%"):
            magic = cell.source.split()[0]
            raise ChapterError(
                f"{chapter}: a block would become a {magic} cell; chapters have Python cells only, "
                "and commands for a terminal are fenced with ```console."
            )
    if notebook_path(chapter).exists():
        _keep_outputs(notebook, read_notebook(chapter))
    return notebook


def _keep_outputs(notebook: NotebookNode, before: NotebookNode) -> None:
    ids = recordings.cell_ids(before.cells)
    kept = {
        SETUP_CELL_ID if cell.get("id") == SETUP_CELL_ID else identity: cell
        for identity, cell in zip(ids, before.cells, strict=True)
        if cell.cell_type == "code"
    }
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id in kept:
            cell.outputs = kept[cell.id].outputs
            cell.execution_count = kept[cell.id].execution_count
    if "recording" in before.metadata:
        notebook.metadata.recording = before.metadata.recording


def sync(check: bool) -> None:
    setup = setup_cell()
    differing = []
    for chapter in chapters():
        text = nbformat.writes(paired(chapter, setup)) + "\n"
        path = notebook_path(chapter)
        if path.exists() and path.read_text("utf-8") == text:
            continue
        differing.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if check and differing:
        raise ChapterError(
            f"{', '.join(differing)} is not what its Markdown says: run "
            "python -m scripts.notebooks sync (edit the .md, never the .ipynb)."
        )


def execute(notebook: NotebookNode, name: str) -> float:
    """Run a chapter from top to bottom in book/, and return the seconds it took."""
    total = len(notebook.cells)
    running = 0

    def at_cell(cell: NotebookNode, cell_index: int) -> None:
        nonlocal running
        running = cell_index
        if sys.stdout.isatty():
            print(f"\r{name}: cell {cell_index + 1} of {total}", end="", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        kernel_name=METADATA["kernelspec"]["name"],
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(BOOK)}},
        on_cell_start=at_cell,
    )
    start = time.monotonic()
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ChapterError(f"\n{name} stops in cell {running + 1} of {total}.\n{error}") from error
    seconds = time.monotonic() - start
    start_of_line = "\r" if sys.stdout.isatty() else ""
    print(f"{start_of_line}{name}: {seconds:.1f} s, {total} cells", flush=True)
    return seconds


def run(names: list[str], out: Path | None) -> None:
    out = out or Path(tempfile.mkdtemp(prefix="attention-book-"))
    for chapter in chapters(names):
        notebook = read_notebook(chapter)
        execute(notebook, chapter.stem)
        _write(notebook, out / notebook_path(chapter).name)
    print(f"The notebooks as they ran are in {out}.")


def record(names: list[str], out: Path | None) -> None:
    environment = _gpu_environment()
    for chapter in chapters(names):
        notebook = read_notebook(chapter)
        seconds = execute(notebook, chapter.stem)
        strip(notebook)
        notebook.metadata.recording = (
            environment | {"seconds": round(seconds, 1)} | recordings.evidence(notebook, ROOT)
        )
        path = notebook_path(chapter)
        _write(notebook, out / path.name if out else path)


def _gpu_environment() -> dict:
    import torch

    if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
        raise ChapterError(
            "Recording needs a CUDA GPU that PyTorch sees and TRITON_INTERPRET unset: "
            "here, python -m scripts.notebooks run tries the chapters on the CPU."
        )
    from instruments.records import environment

    # How to repeat it, without the folder that this machine happened to write to.
    return environment() | {"command": "python -m scripts.notebooks record"}


def strip(notebook: NotebookNode) -> None:
    """Remove what only the machine that ran the notebook could show or would ever need."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = [kept for output in cell.outputs if (kept := _stripped(output))]


def _stripped(output: NotebookNode) -> NotebookNode | None:
    """The output as a reader elsewhere should see it, if at all.

    Warnings and progress bars on stderr and the frames of a traceback speak of files on this
    machine. A live widget opens elsewhere as "model not found": its static form is kept, and
    without one its bare repr goes too.
    """
    if output.output_type == "stream" and output.name == "stderr":
        return None
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]
    if WIDGET_VIEW in output.get("data", {}):
        del output.data[WIDGET_VIEW]
        if output.data.keys() <= {"text/plain"}:
            return None
    return output


def status(strict: bool) -> None:
    rows = [("chapter", "recorded on", "date", "torch", "triton", "commit", "state")]
    lacking = 0
    for chapter in chapters():
        notebook = read_notebook(chapter)
        recording = notebook.metadata.get("recording")
        if recording is None:
            lacking += 1
            rows.append((chapter.stem, *["-"] * 5, "not recorded"))
            continue
        reasons = recordings.why_stale(notebook, ROOT)
        lacking += bool(reasons)
        commit = recording.commit[:8] + (" + changes" if recording.dirty else "")
        facts = (recording.gpu, recording.date[:10], recording.torch, recording.triton, commit)
        rows.append((chapter.stem, *facts, "stale" if reasons else "fresh"))
        rows += [(f"  {reason}",) for reason in reasons]
    _print_table(rows)
    if strict and lacking:
        raise ChapterError(f"{lacking} of the chapters have no fresh recording.")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """Rows in columns; a row of one text runs on over all of them."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(text) for text in column) for column in zip(*full, strict=True)]
    for row in rows:
        columns = (text.ljust(width) for text, width in zip(row, widths, strict=False))
        print("  ".join(columns).rstrip())


def _write(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sync").add_argument("--check", action="store_true")
    for name in ("run", "record"):
        command = commands.add_parser(name)
        command.add_argument("names", nargs="*", metavar="NAME")
        command.add_argument("--out", type=Path, metavar="DIR")
    commands.add_parser("status").add_argument("--strict", action="store_true")
    arguments = vars(parser.parse_args())
    try:
        {"sync": sync, "run": run, "record": record, "status": status}[arguments.pop("command")](
            **arguments
        )
    except ChapterError as error:
        sys.exit(str(error).strip())


if __name__ == "__main__":
    main()
