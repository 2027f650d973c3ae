"""Row softmax in two passes: the first finds maximum and sum together, the second writes."""

import torch
import triton
import triton.language as tl


@triton.jit
def two_pass_softmax_kernel(
    values_ptr,
    probabilities_ptr,
    row_stride,
    column_stride,
    columns,
    BLOCK: tl.constexpr,
):
    """One row, which is read twice, BLOCK columns at a time."""
    ### BEGIN SOLUTION
    ### first loop over the blocks: load one (strides of the input!) and update
    ### the running maximum and the running sum, in float32;
    ### second loop: load each block again and store its probabilities.
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    row_ptr = values_ptr + row * row_stride

    running_max = float("-inf")
    running_sum = 0.0
    for start in range(0, columns, BLOCK):
        column = start + offsets
        values = tl.load(  # [BLOCK]; minus infinity is the value whose exponential is 0
            row_ptr + column * column_stride, mask=column < columns, other=float("-inf")
        ).to(tl.float32)
        new_max = tl.maximum(running_max, tl.max(values, axis=0))
        # While nothing but -inf was seen, the maximum is -inf, and -inf - -inf is NaN: subtract 0.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        # What was added so far is relative to the old maximum; make it relative to the new one.
        rescale = tl.exp(running_max - shift)
        running_sum = running_sum * rescale + tl.sum(tl.exp(values - shift), axis=0)
        running_max = new_max

    # A row of minus infinities has sum 0: with 0 and 1 in place of its pair it becomes zeros.
    shift = tl.where(running_max == float("-inf"), 0.0, running_max)
    row_sum = tl.where(running_sum == 0.0, 1.0, running_sum)
    for start in range(0, columns, BLOCK):
        column = start + offsets
        values = tl.load(
            row_ptr + column * column_stride, mask=column < columns, other=float("-inf")
        ).to(tl.float32)
        tl.store(
            probabilities_ptr + row * columns + column,
            (tl.exp(values - shift) / row_sum).to(probabilities_ptr.dtype.element_ty),
            mask=column < columns,
        )
    ### END SOLUTION


def two_pass_softmax(values: torch.Tensor) -> torch.Tensor:
    """Softmax of every row, which is read at most twice.

    Args:
        values: (rows, columns), float16, bfloat16 or float32, any strides; -inf allowed.

    Returns:
        (rows, columns) in the dtype of values, contiguous. A row of -inf becomes zeros.
    """
    ### BEGIN SOLUTION
    ### allocate the output, launch one program a row with BLOCK=1024, and return the output.
    rows, columns = values.shape
    probabilities = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    two_pass_softmax_kernel[(rows,)](
        values, probabilities, values.stride(0), values.stride(1), columns, BLOCK=1024
    )
    return probabilities
    ### END SOLUTION
