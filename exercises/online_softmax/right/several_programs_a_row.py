"""Several programs share a row: their maxima and sums meet in memory between two launches."""

import torch
import triton
import triton.language as tl


@triton.jit
def load_part(values_ptr, row_stride, column_stride, columns, PART: tl.constexpr):
    column = tl.program_id(1) * PART + tl.arange(0, PART).to(tl.int64)
    addresses = values_ptr + tl.program_id(0).to(tl.int64) * row_stride + column * column_stride
    return tl.load(addresses, mask=column < columns, other=float("-inf")).to(tl.float32)


@triton.jit
def statistics_kernel(
    values_ptr, max_ptr, sum_ptr, row_stride, column_stride, columns, PART: tl.constexpr
):
    values = load_part(values_ptr, row_stride, column_stride, columns, PART)
    part_max = tl.max(values, axis=0)
    exponentials = tl.where(
        values == float("-inf"), 0.0, tl.exp2((values - part_max) * 1.442695041)
    )
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(max_ptr + part, part_max)
    tl.store(sum_ptr + part, tl.sum(exponentials, axis=0))


@triton.jit
def two_pass_softmax_kernel(
    values_ptr,
    probabilities_ptr,
    max_ptr,
    sum_ptr,
    row_stride,
    column_stride,
    columns,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.num_programs(1)
    part = tl.arange(0, PARTS)
    maxima = tl.load(max_ptr + row * parts + part, mask=part < parts, other=float("-inf"))
    sums = tl.load(sum_ptr + row * parts + part, mask=part < parts, other=0.0)
    row_max = tl.max(maxima, axis=0)
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    row_sum = tl.sum(sums * tl.exp(maxima - row_max), axis=0)

    values = load_part(values_ptr, row_stride, column_stride, columns, PART)
    column = tl.program_id(1) * PART + tl.arange(0, PART)
    probabilities = tl.where(row_sum > 0.0, tl.exp(values - row_max) / row_sum, 0.0)
    tl.store(
        probabilities_ptr + row * columns + column,
        probabilities.to(probabilities_ptr.dtype.element_ty),
        mask=column < columns,
    )


def two_pass_softmax(values):
    rows, columns = values.shape
    grid = (rows, triton.cdiv(columns, 2048))
    maxima, sums = torch.empty(2, *grid, dtype=torch.float32, device=values.device)
    probabilities = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    statistics_kernel[grid](values, maxima, sums, *values.stride(), columns, PART=2048)
    two_pass_softmax_kernel[grid](
        values,
        probabilities,
        maxima,
        sums,
        *values.stride(),
        columns,
        PART=2048,
        PARTS=triton.next_power_of_2(grid[1]),
    )
    return probabilities
