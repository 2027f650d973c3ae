# loses: test_large_values
"""The row's maximum is not subtracted."""

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
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    length = tl.load(lengths_ptr + row)
    values = tl.load(
        values_ptr + row * row_stride + column.to(tl.int64) * column_stride,
        mask=column < length,
        other=float("-inf"),
    ).to(tl.float32)

    exponentials = tl.exp(values)
    row_sum = tl.where(length > 0, tl.sum(exponentials, axis=0), 1.0)

    tl.store(
        probabilities_ptr + row * columns + column,
        (exponentials / row_sum).to(probabilities_ptr.dtype.element_ty),
        mask=column < columns,
    )


def ragged_softmax(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
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
