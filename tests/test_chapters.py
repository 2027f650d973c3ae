"""Every chapter runs from top to bottom on this machine, in the time it promises its reader."""

import pytest

from scripts import notebooks

kernels = pytest.importorskip("kernels", reason="the chapters need torch and triton")

SECONDS = 60 if kernels.INTERPRETED else 90


@pytest.mark.parametrize("chapter", notebooks.chapters(), ids=lambda path: path.stem)
def test_it_runs(chapter):
    notebook = notebooks.read_notebook(chapter)
    assert notebooks.execute(notebook, chapter.stem) < SECONDS
