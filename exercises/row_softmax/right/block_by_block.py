"""The row is read block by block, once for maximum and sum and once for the probabilities."""

import torch
import triton
import triton.language as tl


@triton.jit
def load_block(row_ptr, column_stride, columns, length):
    mask = columns < length
    block = tl.load(row_ptr + columns * column_stride, mask=mask, other=float("-inf"))
    return block.to(tl.float32)


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
    length = tl.load(lengths_ptr + row)
    row_ptr = values_ptr + row * row_stride
    offsets = tl.arange(0, BLOCK).to(tl.int64)

    running_max = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, length, BLOCK):
        block = load_block(row_ptr, column_stride, start + offsets, length)
        new_max = tl.maximum(running_max, block)
        # Where a lane has seen nothing yet, -inf - -inf would be NaN.
        seen = new_max > float("-inf")
        running_sum = tl.where(
            seen, running_sum * tl.exp(running_max - new_max) + tl.exp(block - new_max), 0.0
        )
        running_max = new_max
    row_max = tl.max(running_max, axis=0)
    row_sum = tl.sum(running_sum * tl.exp(running_max - row_max), axis=0)

    for start in range(0, columns, BLOCK):
        block = load_block(row_ptr, column_stride, start + offsets, length)
        inside = start + offsets < length
        probabilities = tl.where(inside, tl.exp(block - row_max) / row_sum, 0.0)
        tl.store(
            probabilities_ptr + row * columns + start + offsets,
            probabilities.to(probabilities_ptr.dtype.element_ty),
            mask=start + offsets < columns,
        )


def ragged_softmax(values, lengths):
    probabilities = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
    ragged_softmax_kernel[(values.shape[0],)](
        values, lengths, probabilities, *values.stride(), values.shape[1], BLOCK=256
    )
    return probabilities
