"""The IO explorer: the bytes attention asks of HBM against its arithmetic, for four algorithms."""

from __future__ import annotations

import traitlets

from figures._gpus import DTYPES, GPUFigure
from figures._mount import STATE

SRAM_KIB = [16, 20, 24, 32, 40, 48, 64, 80, 100, 128, 164, 196, 228]
BLOCKS = [16, 32, 64, 128, 256]


class IOExplorer(GPUFigure):
    """Standard attention, FlashAttention as printed, with its loops swapped, and block-sparse.

    With `tiles="rule"` the tiles follow from `sram_kib`, the SRAM of one program, as Algorithm 1
    chooses them: B_c = ceil(M / 4d) keys and B_r = min(B_c, d) queries. With `tiles="chosen"` they
    are `block_m` queries and `block_n` keys. `visible` is the fraction of blocks that the
    block-sparse algorithm visits. `gpus` come before the datasheet's list (and replace an entry of
    the same name): put what you measured there.
    """

    _module = "io_explorer"
    _alternative = (
        "Interactive figure: the IO explorer. It shows how many bytes standard attention, "
        "FlashAttention in two loop orders and block-sparse FlashAttention ask of HBM, and where "
        "each lies on a GPU's roofline."
    )
    _first_gpu = "H200"

    sequence_length = traitlets.Enum([2**k for k in range(7, 18)], 16384).tag(**STATE)
    head_dim = traitlets.Enum([64, 128, 256], 64).tag(**STATE)
    dtype = traitlets.Enum(DTYPES, "fp16").tag(**STATE)
    tiles = traitlets.Enum(["rule", "chosen"], "rule").tag(**STATE)
    sram_kib = traitlets.Enum(SRAM_KIB, 100).tag(**STATE)
    block_m = traitlets.Enum(BLOCKS, 128).tag(**STATE)
    block_n = traitlets.Enum(BLOCKS, 64).tag(**STATE)
    visible = traitlets.Enum([0.5**k for k in range(7)], 1.0).tag(**STATE)
