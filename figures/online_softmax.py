"""Online softmax, step by step: one row of scores, read block by block."""

from __future__ import annotations

import math
import numbers

import traitlets

from figures._mount import STATE, Figure

SHORTEST_ROW, LONGEST_ROW = 8, 16
LARGEST_SCORE = 100
LINKED_SCORES = {"shortest": SHORTEST_ROW, "longest": LONGEST_ROW, "largest": LARGEST_SCORE}

# The maximum is set, raised, left alone and raised again as blocks of two are read.
DEFAULT_SCORES = [1.2, 2.0, 3.1, 0.9, 2.3, 2.8, 1.7, 4.6]


def checked_score(score) -> float | None:
    """A score as the figure keeps it: None, which JSON can say, stands for minus infinity."""
    if score is None:
        return None
    number = isinstance(score, numbers.Real) and not isinstance(score, bool)
    if number and score == -math.inf:
        return None
    if not number or not abs(score) <= LARGEST_SCORE:
        raise traitlets.TraitError(
            f"A score is a number from -{LARGEST_SCORE} to {LARGEST_SCORE}, or -inf (or None) "
            f"to hide it; got {score!r}."
        )
    return float(score)


class OnlineSoftmax(Figure):
    """The softmax of one row, its maximum and sum kept up to date block by block.

    A score of `-math.inf` is hidden, as a mask does it. `split` reduces two halves of the row on
    their own and merges them. `dtype` is that of the naive sum, which may overflow.
    """

    _module = "online_softmax"
    _alternative = (
        "Interactive figure: online softmax, step by step. It reads a row of scores block by block "
        "and shows the running maximum, the rescaling of the terms summed so far, and their sum."
    )

    scores = traitlets.List(DEFAULT_SCORES).tag(**STATE, link=LINKED_SCORES)
    block = traitlets.Enum([1, 2, 4, 8], 2).tag(**STATE)
    step = traitlets.Int(0).tag(**STATE)
    split = traitlets.Bool(False).tag(**STATE)
    dtype = traitlets.Enum(["fp16", "fp32"], "fp32").tag(**STATE)

    @property
    def last_step(self) -> int:
        """0 is before the first block; after the last come the merge, if any, and the division."""
        longest_part = math.ceil(len(self.scores) / 2) if self.split else len(self.scores)
        return math.ceil(longest_part / self.block) + (2 if self.split else 1)

    @traitlets.validate("scores")
    def _possible_scores(self, proposal):
        scores = proposal["value"]
        if not SHORTEST_ROW <= len(scores) <= LONGEST_ROW:
            raise traitlets.TraitError(
                f"A row has {SHORTEST_ROW} to {LONGEST_ROW} scores; got {len(scores)}."
            )
        return [checked_score(score) for score in scores]

    @traitlets.validate("step")
    def _existing_step(self, proposal):
        step = proposal["value"]
        if not 0 <= step <= self.last_step:
            raise traitlets.TraitError(
                f"step is a whole number from 0 to {self.last_step}; got {step}."
            )
        return step

    @traitlets.observe("scores", "block", "split")
    def _stay_within_the_steps(self, change):
        self.step = min(self.step, self.last_step)
