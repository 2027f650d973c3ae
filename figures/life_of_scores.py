"""The life of S and P: what standard attention moves, holds and waits for, per kernel."""

from __future__ import annotations

import traitlets

from figures._gpus import DTYPES, GPUFigure
from figures._mount import STATE


class LifeOfScores(GPUFigure):
    """S = scale·QKᵀ, P = softmax(S), O = PV as three kernels with S and P in HBM.

    `gpus` come before the datasheet's list (and replace an entry of the same name): put what you
    measured there. `gpu` names the one that is shown first.
    """

    _module = "life_of_scores"
    _alternative = (
        "Interactive figure: the life of S and P. It shows the bytes that standard attention's "
        "three kernels move, the memory they hold, and their time at the roofline."
    )
    _first_gpu = "H100 SXM"

    sequence_length = traitlets.Enum([2**k for k in range(7, 18)], 4096).tag(**STATE)
    head_dim = traitlets.Enum([16, 32, 64, 128, 256], 64).tag(**STATE)
    dtype = traitlets.Enum(DTYPES, "fp16").tag(**STATE)
    batch_heads = traitlets.Enum([2**k for k in range(10)], 16).tag(**STATE)
