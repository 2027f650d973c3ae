"""The book's attention kernels, one module an idea.

Importing this package decides where kernels run. With a CUDA GPU of compute capability 8.0 or newer,
Triton compiles them for it. Without one, Triton's interpreter runs the same source on the CPU, slowly and
exactly: good for toy sizes. (On an older GPU Triton uses no tensor cores and has too little shared memory.)
Set ``TRITON_INTERPRET`` to 0 or 1 before the import to decide yourself. Triton reads the variable once,
when a kernel is defined, so it cannot be changed afterwards in the same process.
"""

import os
import sys

import torch

OLDEST_GPU = (8, 0)
"""The oldest compute capability that the kernels are compiled for."""


def _has_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST_GPU


if "TRITON_INTERPRET" not in os.environ and not _has_gpu():
    if "triton.language" in sys.modules:
        raise ImportError(
            "Triton was imported before the book's kernels, so its CPU interpreter can no longer be "
            "switched on. Restart Python and import kernels first, or set TRITON_INTERPRET=1."
        )
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402 - only after the decision above

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run on the CPU through Triton's interpreter."""

if INTERPRETED:
    from kernels import _interpreter

    _interpreter.correct()


def device() -> torch.device:
    """The device on which the book creates its tensors: the GPU, or the CPU when interpreting."""
    return torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
