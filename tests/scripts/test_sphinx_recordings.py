"""The line under each chapter's title, and the button that opens the chapter elsewhere."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from scripts import recordings
from scripts.environment import ROOT
from scripts.notebooks import METADATA
from scripts.sphinx_recordings import sentence

FACTS = {
    "gpu": "NVIDIA H200 <8>",
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "date": "2026-11-23T10:00:00",
}
CONFIG = """
title: A book
author: Its authors
logo: ""
only_build_toc_files: true
execute: {execute_notebooks: "off"}
repository: {url: "https://github.com/an-owner/a-book", path_to_book: book, branch: main}
launch_buttons: {colab_url: "https://colab.research.google.com"}
sphinx:
  extra_extensions: [scripts.sphinx_recordings]
  recursive_update: true
"""
TOC = """
format: jb-book
root: index
chapters: [{file: 01_fresh.ipynb}, {file: 02_stale.ipynb}, {file: 03_new.ipynb}]
"""


def chapter(title, root=None):
    cells = [
        new_markdown_cell(f"# {title}\n\nIts first words.", id="words"),
        new_code_cell("import kernels", id="code", execution_count=1),
    ]
    notebook = new_notebook(cells=cells, metadata=METADATA)
    if root:
        notebook.metadata["recording"] = FACTS | recordings.evidence(notebook, root)
    return notebook


@pytest.fixture
def project(tmp_path):
    for folder in ("book", "kernels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "kernels/__init__.py").touch()
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "book/index.md").write_text("# A book\n")
    stale = chapter("Stale", tmp_path)
    stale.cells[1].source = "import kernels as changed"
    chapters = {"01_fresh": chapter("Fresh", tmp_path), "02_stale": stale, "03_new": chapter("New")}
    for name, notebook in chapters.items():
        nbformat.write(notebook, tmp_path / f"book/{name}.ipynb")
        (tmp_path / f"book/{name}.md").write_text("# The same as Markdown\n")
    return tmp_path


def test_the_sentence_without_a_recording(tmp_path):
    assert sentence(chapter("New"), tmp_path) == "Not recorded on a GPU yet."


def build(project):
    """Builds the project's book strictly and returns each chapter's page."""
    command = "from jupyter_book.cli.main import main; main()"
    book, config, toc = project / "book", project / "_config.yml", project / "_toc.yml"
    subprocess.run(
        [
            *(sys.executable, "-c", command, "build", book, "--config", config, "--toc", toc),
            *("--path-output", project, "-W", "-n", "--keep-going", "-q"),
        ],
        cwd=ROOT,
        check=True,
    )
    return {
        page.stem: page.read_text("utf-8") for page in (project / "_build/html").glob("0*.html")
    }


def recording_line(page):
    """The line's text, which must stand between the title and the first words."""
    return re.search(r'</h1>\s*<p class="recording">(.*?)</p>\s*<p>Its first words', page)[1]


def test_pages_say_where_they_were_recorded_and_open_the_notebook(project):
    notebook = (project / "book/01_fresh.ipynb").read_bytes()
    pages = build(project)
    facts = "Recorded on NVIDIA H200 &lt;8&gt; · torch 2.11.0 · Triton 3.6.0 · 2026-11-23"
    assert recording_line(pages["01_fresh"]) == facts
    assert recording_line(pages["02_stale"]) == f"{facts} · the code has changed since"
    assert recording_line(pages["03_new"]) == "Not recorded on a GPU yet."
    for name, page in pages.items():
        address = "https://colab.research.google.com/github/an-owner/a-book/blob/main/book"
        assert f'href="{address}/{name}.ipynb"' in page

    # A change in what a chapter imports must show in the next build, with the same notebook.
    (project / "kernels/__init__.py").write_text("changed = True\n")
    assert recording_line(build(project)["01_fresh"]).endswith("the code has changed since")
    assert (project / "book/01_fresh.ipynb").read_bytes() == notebook
