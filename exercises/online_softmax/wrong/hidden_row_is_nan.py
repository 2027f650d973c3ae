# loses: test_hidden_rows
"""A row of minus infinities is divided by its sum, 0."""

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
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK).to(tl.int64)
    row_ptr = values_ptr + row * row_stride

    running_max = float("-inf")
    running_sum = 0.0
    for start in range(0, columns, BLOCK):
        column = start + offsets
        values = tl.load(
            row_ptr + column * column_stride, mask=column < columns, other=float("-inf")
        ).to(tl.float32)
        new_max = tl.maximum(running_max, tl.max(values, axis=0))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp(running_max - shift)
        running_sum = running_sum * rescale + tl.sum(tl.exp(values - shift), axis=0)
        running_max = new_max

    shift = tl.where(running_max == float("-inf"), 0.0, running_max)
    for start in range(0, columns, BLOCK):
        column = start + offsets
        values = tl.load(
            row_ptr + column * column_stride, mask=column < columns, other=float("-inf")
        ).to(tl.float32)
        tl.store(
            probabilities_ptr + row * columns + column,
            (tl.exp(values - shift) / running_sum).to(probabilities_ptr.dtype.element_ty),
            mask=column < columns,
        )


def two_pass_softmax(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    probabilities = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    two_pass_softmax_kernel[(rows,)](
        values, probabilities, values.stride(0), values.stride(1), columns, BLOCK=1024
    )
    return probabilities
