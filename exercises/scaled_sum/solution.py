"""A scaled sum of two vectors: a program takes one block of elements, wherever they lie."""

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
    ### BEGIN SOLUTION
    ### find this program's elements, and which of them there are;
    ### load them from x and y (strides!), compute in float32, and store.
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = index < length
    x = tl.load(x_ptr + index * x_stride, mask=inside).to(tl.float32)
    y = tl.load(y_ptr + index * y_stride, mask=inside).to(tl.float32)
    tl.store(sum_ptr + index, (factor * x + y).to(sum_ptr.dtype.element_ty), mask=inside)
    ### END SOLUTION


def scaled_sum(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
    """factor * x + y, element by element.

    Args:
        x, y: (length,), both float16, bfloat16 or float32, any strides.
        factor: an int or a float.

    Returns:
        (length,) in the dtype of x, contiguous.
    """
    ### BEGIN SOLUTION
    ### allocate the output, choose BLOCK (a power of two), launch a program for every block,
    ### and return the output.
    length = x.shape[0]
    total = torch.empty(length, dtype=x.dtype, device=x.device)
    scaled_sum_kernel[(triton.cdiv(length, 256),)](
        x, y, total, factor, length, x.stride(0), y.stride(0), BLOCK=256
    )
    return total
    ### END SOLUTION
