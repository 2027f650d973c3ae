"""A scaled sum of two vectors: the file to write your solution in."""

import torch
import triton
import triton.language as tl


@triton.jit
def scaled_sum_kernel(
    x_ptr,
    y_ptr,
    sum_ptr,
    factor,
    length,
    x_stride,
    y_stride,
    BLOCK: tl.constexpr,
):
    """One block of factor * x + y; the sum is contiguous."""
    # Your turn: find this program's elements, and which of them there are;
    # load them from x and y (strides!), compute in float32, and store.
    pass


def scaled_sum(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
    """factor * x + y, element by element.

    Args:
        x, y: (length,), both float16, bfloat16 or float32, any strides.
        factor: an int or a float.

    Returns:
        (length,) in the dtype of x, contiguous.
    """
    # Your turn: allocate the output, choose BLOCK (a power of two), launch a program for every block,
    # and return the output.
    raise NotImplementedError("scaled_sum is not written yet")
