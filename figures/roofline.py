"""The roofline: the least time that a GPU's memory and its arithmetic allow a kernel."""

from __future__ import annotations

import traitlets

from figures._gpus import DTYPES, GPUFigure
from figures._mount import STATE

KERNELS = ["sum", "softmax", "standard", "product", "fused", "own"]
SIZES = [2**power for power in range(7, 16)]


class Roofline(GPUFigure):
    """A kernel's operations and bytes as a point under the roof of a GPU.

    `kernel` is one of the book's at size `size`: the sum, softmax or product of square matrices, standard
    attention of one head with d = 64, or the same with S and P on the chip ("fused"). Or it is the
    reader's "own", with 2 to the power of `operations` / 2 operations and of `moved` / 2 bytes.
    `gpus` come before the datasheet's list (and replace an entry of the same name).
    """

    _module = "roofline"
    _alternative = (
        "Interactive figure: the roofline. For a kernel's operations and bytes it shows which of the two "
        "limits it on a GPU, and the least time it can take."
    )
    _first_gpu = "H200"

    dtype = traitlets.Enum(DTYPES, "fp16").tag(**STATE)
    kernel = traitlets.Enum(KERNELS, "sum").tag(**STATE)
    size = traitlets.Enum(SIZES, 4096).tag(**STATE)
    operations = traitlets.Int(60, min=20, max=94).tag(**STATE)
    moved = traitlets.Int(54, min=20, max=76).tag(**STATE)
