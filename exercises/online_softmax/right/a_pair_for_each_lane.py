"""Each of 2048 lanes keeps a maximum and a sum of its own; they meet after the first pass."""

import triton
import triton.language as tl


@triton.jit
def load_block(row_ptr, column, column_stride, columns):
    addresses = row_ptr + column.to(tl.int64) * column_stride
    return tl.load(addresses, mask=column < columns, other=float("-inf")).to(tl.float32)


@triton.jit
def finite(maximum):
    return tl.maximum(maximum, -3e38)


@triton.jit
def two_pass_softmax_kernel(
    values_ptr,
    probabilities_ptr,
    row_stride,
    column_stride,
    columns,
    LANES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = values_ptr + row * row_stride
    lane_max = tl.full([LANES], float("-inf"), dtype=tl.float32)
    lane_sum = tl.zeros([LANES], dtype=tl.float32)
    for start in range(0, columns, LANES):
        values = load_block(row_ptr, start + tl.arange(0, LANES), column_stride, columns)
        new_max = tl.maximum(lane_max, values)
        lane_sum = lane_sum * tl.exp(lane_max - finite(new_max)) + tl.exp(values - finite(new_max))
        lane_max = new_max
    row_max = finite(tl.max(lane_max, axis=0))
    row_sum = tl.sum(lane_sum * tl.exp(lane_max - row_max), axis=0)

    # A sum is 0, or at least the 1 that the maximum adds to it.
    factor = 1 / tl.maximum(row_sum, 0.5)
    for start in range(0, columns, LANES):
        column = start + tl.arange(0, LANES)
        values = load_block(row_ptr, column, column_stride, columns)
        probabilities = tl.exp(values - row_max) * factor
        tl.store(
            probabilities_ptr + row * columns + column,
            probabilities.to(probabilities_ptr.dtype.element_ty),
            mask=column < columns,
        )


def two_pass_softmax(values):
    rows, columns = values.shape
    probabilities = values.new_zeros(rows, columns)
    two_pass_softmax_kernel[(rows,)](values, probabilities, *values.stride(), columns, LANES=2048)
    return probabilities
