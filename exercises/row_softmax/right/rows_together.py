"""A program takes eight rows as one tile, and its exponentials are powers of two."""

import triton
import triton.language as tl


@triton.jit
def ragged_softmax_kernel(
    values_ptr,
    lengths_ptr,
    probabilities_ptr,
    row_stride,
    column_stride,
    row_count,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    lengths = tl.load(lengths_ptr + rows, mask=rows < row_count, other=0)
    addresses = values_ptr + rows * row_stride + column * column_stride
    values = tl.load(addresses, mask=column < lengths, other=0.0).to(tl.float32)
    scores = tl.where(column < lengths, values, float("-inf"))
    row_max = tl.maximum(tl.max(scores, axis=1, keep_dims=True), -1e38)
    exponentials = tl.exp2((scores - row_max) * 1.4426950408889634)
    row_sum = tl.maximum(tl.sum(exponentials, axis=1, keep_dims=True), 1.0)
    tl.store(
        probabilities_ptr + rows * columns + column,
        (exponentials / row_sum).to(probabilities_ptr.dtype.element_ty),
        mask=(rows < row_count) & (column < columns),
    )


def ragged_softmax(values, lengths):
    rows, columns = values.shape
    probabilities = values.new_empty(values.shape)
    ragged_softmax_kernel[(triton.cdiv(rows, 8),)](
        values,
        lengths,
        probabilities,
        *values.stride(),
        rows,
        columns,
        ROWS=8,
        BLOCK=triton.next_power_of_2(columns),
    )
    return probabilities
