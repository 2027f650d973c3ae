"""The rows of the status page, and the stamp in the footer."""

import datetime
import json
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from scripts import recordings
from scripts.sphinx_status import chapter_row, record_row, shortened, stamp, table

FACTS = {
    "gpu": "NVIDIA H200",
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "python": "3.12.3",
    "date": "2026-11-23T10:00:00",
    "commit": "520caa57c8fd",
    "dirty": False,
    "command": "python -m benchmarks.softmax",
}
WITH = "torch 2.11.0, Triton 3.6.0, Python 3.12.3"


def test_a_notebooks_row(tmp_path):
    notebook = new_notebook(cells=[new_code_cell("1", id="code", execution_count=1)])
    path = tmp_path / "01_a.ipynb"

    def row():
        nbformat.write(notebook, path)
        return chapter_row(path, tmp_path)

    assert row() == ("[](01_a.ipynb)", "**not recorded**", "–", "–", "–")
    notebook.metadata["recording"] = (
        FACTS | {"seconds": 61.9} | recordings.evidence(notebook, tmp_path)
    )
    ran = ("NVIDIA H200, 2026-11-23, 62\N{NO-BREAK SPACE}s", WITH, "commit `520caa5`")
    assert row() == ("[](01_a.ipynb)", "**fresh**", *ran)
    notebook.cells[0].source = "2"
    assert row() == ("[](01_a.ipynb)", "**stale**: code cell 1 is new or changed", *ran)


@pytest.mark.parametrize(
    ("reasons", "said"),
    [(["a"], "a"), (["a", "b"], "a, and 1 more reason"), (["a"] * 4, "a, and 3 more reasons")],
)
def test_one_reason_is_enough(reasons, said):
    assert shortened(reasons) == said


def test_a_records_row(tmp_path):
    path = tmp_path / "softmax.json"
    path.write_text(json.dumps({"environment": FACTS, "rows": []}))
    measured = ("`softmax`", "NVIDIA H200, 2026-11-23", WITH)
    command = "`python -m benchmarks.softmax`"
    assert record_row(path) == (*measured, "commit `520caa5`", command)
    path.write_text(json.dumps({"environment": FACTS | {"gpu": "cpu", "dirty": True}, "rows": []}))
    assert record_row(path)[1] == "CPU, 2026-11-23"
    assert record_row(path)[3] == "commit `520caa5` + changes"


def test_a_table_is_markdown():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| -- | -- |\n| 1 | 2 |"


def test_the_stamp_with_and_without_git(tmp_path):
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    today = datetime.date.today().isoformat()
    assert stamp(tmp_path) == f"Version 1.2.3 · built {today}"

    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True)

    git("init", "-q")
    assert stamp(tmp_path) == f"Version 1.2.3 · built {today}"
    git("add", "CITATION.cff")
    git("commit", "-q", "-m", "First", "--date", "2026-01-02T00:00:00")
    name = subprocess.run(
        ["git", "-C", tmp_path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    clean = stamp(tmp_path)
    assert clean.startswith(f"Version 1.2.3 · commit {name} · 20")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3 # changed\n")
    assert stamp(tmp_path) == clean.replace(name, f"{name} + changes")
