"""The fast Hadamard transform of one row with an outlier, step by step, and what it does to FP8's error."""

from __future__ import annotations

import traitlets

from figures._mount import STATE, Figure

CHANNELS = 16
SIZES = [2**power for power in range(11)]
STEPS = 7  # the row, its signs, four butterflies, the division by the root


class HadamardSteps(Figure):
    """A row of 16 channels, one of them an outlier, on its way through signs and butterflies.

    ``place`` is the outlier's channel and ``size`` its size; the others are around 1. ``seed`` is that of
    the signs, as ``kernels.hadamard.random_signs`` draws them. ``step`` 0 is the row, 1 the row with its
    signs, 2 to 5 are the four butterflies, and 6 is the rotated row.
    """

    _module = "hadamard_steps"
    _alternative = (
        "Interactive figure: the fast Hadamard transform. It shows how four steps of sums and differences "
        "spread an outlier over a row of 16 channels, and the error of the row in FP8 with and without it."
    )

    place = traitlets.Int(5, min=0, max=CHANNELS - 1).tag(**STATE)
    size = traitlets.Enum(SIZES, 16).tag(**STATE)
    seed = traitlets.Int(0, min=0, max=7).tag(**STATE)
    step = traitlets.Int(0, min=0, max=STEPS - 1).tag(**STATE)
