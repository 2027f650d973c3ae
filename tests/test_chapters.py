"""Every chapter runs from top to bottom on this machine, as a learner would run it."""

import pytest

from scripts import notebooks

pytest.importorskip("kernels", reason="the chapters need torch and triton")


@pytest.mark.parametrize("chapter", notebooks.chapters(), ids=lambda path: path.stem)
def test_it_runs(chapter):
    notebooks.execute(notebooks.read_notebook(chapter), chapter.stem)
