"""What the tests of the grader share."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from grading import assignment, box, judge

collect_ignore = ["add", "double"]  # exercises, whose tests are for students
TIER = box.best_tier()
needs_box = pytest.mark.skipif(
    TIER not in box.OFFICIAL, reason="needs bubblewrap, or root and a Python that all users can run"
)
DOUBLE = assignment.find(str(Path(__file__).with_name("double")))
ADD = assignment.find(str(Path(__file__).with_name("add")))
# For those that never end. All others get more time than they need on the slowest machine.
IMPATIENT = replace(DOUBLE, limits=replace(DOUBLE.limits, seconds=1, wall=5.0))


class Kept(box.Box):
    """A box that stays open from one submission to the next: to start one takes more than a second.

    The grader never does this. Here it also shows that whatever one submission does harms no other.
    """

    def submit(self, file: Path, limits: box.Limits) -> "Kept":
        (self._folder / "student" / "solution.py").write_bytes(file.read_bytes())
        self.limits, self.spent = limits, 0.0
        return self

    def __exit__(self, *_) -> None:
        pass

    def close(self) -> None:
        super().__exit__()


@pytest.fixture(scope="session")
def kept_boxes():
    boxes: dict = {}
    yield boxes
    for one in boxes.values():
        one.close()


@pytest.fixture
def submit(tmp_path, monkeypatch, kept_boxes):
    """Judge a text as a submission; a fresh box is for those that leave something in it."""

    def run(
        text: str, found=DOUBLE, *, fresh: bool = False, hidden: bool = True, seed: int = 11
    ) -> judge.Report:
        file = tmp_path / "handed_in.py"
        file.write_text(text, "utf-8")

        def kept(file, contents, limits, tier):
            key = (found.name, contents.compile)
            if key not in kept_boxes:
                kept_boxes[key] = Kept(file, contents, limits, tier)
                kept_boxes[key].__enter__()
            made = kept_boxes[key].submit(file, limits)
            return _Entered(made)

        if not fresh:
            monkeypatch.setattr(judge, "Box", kept)
        return judge.judge(found, file, seed=seed, tier=TIER, hidden=hidden)

    return run


class _Entered:
    def __init__(self, made: Kept) -> None:
        self.made = made

    def __enter__(self) -> Kept:
        return self.made

    def __exit__(self, *_) -> None:
        pass


@pytest.fixture(autouse=True)
def a_secret(monkeypatch):
    """What no student may find."""
    monkeypatch.setitem(os.environ, "GRADING_TEST_SECRET", "right-" + "answers")
