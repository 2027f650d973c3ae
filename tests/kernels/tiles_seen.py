"""The helper that bounds the tiles a kernel visits, run by a kernel of its own."""

import torch
import triton
import triton.language as tl

import kernels
from kernels.score_options import tiles_seen


@triton.jit
def bounds_kernel(bounds_ptr, start, stop, before, after, length, BLOCK: tl.constexpr):
    """Store the four bounds."""
    bounds = tiles_seen(start, stop, before, after, length, BLOCK)
    for place in tl.static_range(4):
        tl.store(bounds_ptr + place, bounds[place])


def bounds(start: int, stop: int, before: int, after: int, length: int, block: int) -> list[int]:
    """First tile seen, first and last seen whole, last seen; the ends are exclusive."""
    found = torch.empty(4, dtype=torch.int32, device=kernels.device())
    bounds_kernel[(1,)](found, start, stop, before, after, length, BLOCK=block)
    return found.tolist()
