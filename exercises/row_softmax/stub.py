"""Row softmax over a ragged matrix: the file to write your solution in."""

import torch
import triton
import triton.language as tl


@triton.jit
def ragged_softmax_kernel(
    values_ptr,
    lengths_ptr,
    probabilities_ptr,
    row_stride,
    column_stride,
    columns,
    BLOCK: tl.constexpr,
):
    """One row: softmax of its first `length` values, zeros after them."""
    # Your turn: load this program's length and its row (strides of the input!),
    # compute the softmax in float32, and store all `columns` elements of the output row.
    pass


def ragged_softmax(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Softmax of the first `lengths[i]` elements of every row i, zeros after them.

    Args:
        values: (rows, columns), float16, bfloat16 or float32, any strides.
        lengths: (rows,), int32 or int64, each from 0 to columns.

    Returns:
        (rows, columns) in the dtype of values, contiguous.
    """
    # Your turn: allocate the output, choose BLOCK (a power of two, at least `columns`),
    # launch one program a row, and return the output.
    raise NotImplementedError("ragged_softmax is not written yet")
