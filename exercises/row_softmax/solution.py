"""Row softmax over a ragged matrix: one program a row, the whole row in registers."""

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
    ### BEGIN SOLUTION
    ### load this program's length and its row (strides of the input!),
    ### compute the softmax in float32, and store all `columns` elements of the output row.
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)  # [BLOCK]
    length = tl.load(lengths_ptr + row)
    values = tl.load(  # [BLOCK]; minus infinity is the value whose exponential is 0
        values_ptr + row * row_stride + column.to(tl.int64) * column_stride,
        mask=column < length,
        other=float("-inf"),
    ).to(tl.float32)

    # An empty row has maximum -inf and sum 0: with 0 and 1 in their place it becomes zeros, not NaN.
    row_max = tl.where(length > 0, tl.max(values, axis=0), 0.0)
    exponentials = tl.exp(values - row_max)  # [BLOCK]
    row_sum = tl.where(length > 0, tl.sum(exponentials, axis=0), 1.0)

    tl.store(
        probabilities_ptr + row * columns + column,
        (exponentials / row_sum).to(probabilities_ptr.dtype.element_ty),
        mask=column < columns,
    )
    ### END SOLUTION


def ragged_softmax(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Softmax of the first `lengths[i]` elements of every row i, zeros after them.

    Args:
        values: (rows, columns), float16, bfloat16 or float32, any strides.
        lengths: (rows,), int32 or int64, each from 0 to columns.

    Returns:
        (rows, columns) in the dtype of values, contiguous.
    """
    ### BEGIN SOLUTION
    ### allocate the output, choose BLOCK (a power of two, at least `columns`),
    ### launch one program a row, and return the output.
    rows, columns = values.shape
    probabilities = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    ragged_softmax_kernel[(rows,)](
        values,
        lengths,
        probabilities,
        values.stride(0),
        values.stride(1),
        columns,
        BLOCK=triton.next_power_of_2(columns),
    )
    return probabilities
    ### END SOLUTION
