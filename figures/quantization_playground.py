"""What a scale, its sharing and a rotation do to the error of FP8."""

from __future__ import annotations

import traitlets

from figures._mount import STATE, Figure

# How many times an ordinary element's standard deviation an outlier is.
OUTLIERS = [factor * 10**power for power in range(6) for factor in (1, 2, 5)] + [10**6]
ROWS, CHANNELS = 16, 64


class QuantizationPlayground(Figure):
    """A matrix of 16 rows of 64 channels, rounded to FP8 and looked at element by element.

    ``distribution`` says what the elements are drawn from: "gaussian", standard normal; "heavy
    tail", the same with one element in fifty ``outlier`` times as large; "outlier channel", one
    column that many times as large; "outlier element", one element of that size. ``format`` is
    "e4m3" or "e5m2". ``sharing`` says which elements share a scale: "none", there is no scale;
    "tensor"; "block", four rows; or "row". ``rotated`` multiplies every row by random signs and a
    Hadamard matrix before it is rounded. ``line`` draws the numbers of the format "evenly" or by
    "powers" of two; ``element`` is the one that is followed, counted along the rows; ``seed`` is
    that of the draw.
    """

    _module = "quantization_playground"
    _alternative = (
        "Interactive figure: rounding a matrix to FP8. It shows the numbers of the format, where the "
        "elements lie among them once they are scaled, the error of each, and what a scale of its own "
        "for every row, or a rotation of the rows, does about an outlier."
    )

    distribution = traitlets.Enum(
        ["gaussian", "heavy tail", "outlier channel", "outlier element"], "outlier channel"
    ).tag(**STATE)
    outlier = traitlets.Enum(OUTLIERS, 10).tag(**STATE)
    format = traitlets.Enum(["e4m3", "e5m2"], "e4m3").tag(**STATE)
    sharing = traitlets.Enum(["none", "tensor", "block", "row"], "tensor").tag(**STATE)
    rotated = traitlets.Bool(False).tag(**STATE)
    line = traitlets.Enum(["evenly", "powers"], "evenly").tag(**STATE)
    element = traitlets.Int(6 * CHANNELS + 21, min=0, max=ROWS * CHANNELS - 1).tag(**STATE)
    seed = traitlets.Int(0, min=0, max=2**31 - 1).tag(**STATE)
