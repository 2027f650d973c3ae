"""The sum of two vectors."""

import torch
import triton
import triton.language as tl


@triton.jit
def add_kernel(left_ptr, right_ptr, sum_ptr, length, BLOCK: tl.constexpr):
    """BLOCK of the numbers."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(left_ptr + index, mask=index < length)
    right = tl.load(right_ptr + index, mask=index < length)
    tl.store(sum_ptr + index, left + right, mask=index < length)


def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum of two float32 vectors."""
    result = torch.empty_like(left)
    add_kernel[(triton.cdiv(len(left), 64),)](left, right, result, len(left), BLOCK=64)
    return result
