"""What decoding and prefill from a paged cache share: finding a tile's tokens, and attending to it.

A cache is ``(num_blocks, block_size, kv_heads, head_dim)``, for keys and values each, and a row of the
block table says which of its blocks hold a sequence, in order. A tile of BLOCK_N tokens is gathered row by
row through that table, so a block may have any size, smaller or larger than a tile.

Finding a key takes two steps in memory, one after the other: its block's number, then the key. The numbers
for a tile are therefore loaded one tile early, while keys are on their way.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.flash1 import LN_2
from kernels.online_softmax import online_softmax_update


class Pages(NamedTuple):
    """One KV head of the cache, and where one sequence lies in it.

    ``strides`` are those of the cache, which keys and values share; ``table_ptr`` is the sequence's row.
    """

    key_ptr: tl.tensor
    value_ptr: tl.tensor
    strides: tl.tuple
    table_ptr: tl.tensor


@triton.jit
def head_scale(scale_ptr, stride, kv_head):
    """What the stored keys or values of a KV head are multiplied with; 1 if nothing is."""
    return 1.0 if scale_ptr is None else tl.load(scale_ptr + kv_head * stride)


@triton.jit
def block_numbers(table_ptr, start, offsets, end, BLOCK_SIZE: tl.constexpr):
    """Which block holds each token ``start + offsets``, [BLOCK_N]; nothing is read from ``end`` on."""
    return tl.load(table_ptr + (start + offsets) // BLOCK_SIZE, mask=offsets < end - start, other=0)


@triton.jit
def load_tokens(head_ptr, places, dims, there, HEAD_DIM: tl.constexpr):
    """Keys or values at these places, [BLOCK_N, BLOCK_D]; zeros for tokens that are not ``there``.

    Zeros, because a slot without a token may hold anything, and 0 times NaN is NaN.
    """
    return tl.load(
        head_ptr + places[:, None] + dims[None, :],
        mask=within(there, dims, HEAD_DIM),
        other=0.0,
    )


@triton.jit
def within(rows_there, dims, HEAD_DIM: tl.constexpr):
    """Which elements of a tile are in memory, [ROWS, 1], or [ROWS, BLOCK_D] if a row is shorter."""
    there = rows_there[:, None]
    if dims.shape[0] != HEAD_DIM:
        there = there & (dims[None, :] < HEAD_DIM)
    return there


@triton.jit
def attend(
    start,
    stop,
    end,
    positions,
    query_tile,
    running_max,
    running_sum,
    accumulator,
    pages,
    scale_log2,
    dims,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HIDE: tl.constexpr,
):
    """Take tiles of tokens, from ``start`` until one reaches ``stop``, into the statistics of BLOCK_M rows.

    Args:
        end: the sequence has no token from here on, and no block for one.
        positions: [BLOCK_M], the last token that each row sees, before ``end``.
        HIDE: whether single scores may be hidden. If not, every row sees all tokens of all tiles.
    """
    in_n = tl.arange(0, BLOCK_N)
    blocks = block_numbers(pages.table_ptr, start, in_n, end, BLOCK_SIZE)
    for start_n in range(start, stop, BLOCK_N):
        columns = start_n + in_n  # [BLOCK_N]
        in_block = (columns % BLOCK_SIZE) * pages.strides[1]
        places = blocks.to(tl.int64) * pages.strides[0] + in_block
        blocks = block_numbers(pages.table_ptr, start_n + BLOCK_N, in_n, end, BLOCK_SIZE)
        there = in_n < (end - start_n if HIDE else BLOCK_N)
        key_tile = load_tokens(pages.key_ptr, places, dims, there, HEAD_DIM)
        value_tile = load_tokens(pages.value_ptr, places, dims, there, HEAD_DIM)

        # [BLOCK_M, BLOCK_N]; FP8 is widened, which is exact; "ieee" is for float32, not TF32.
        key_tile = key_tile.to(query_tile.dtype)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        if HIDE:
            scores = tl.where(columns[None, :] <= positions[:, None], scores, float("-inf"))
        running_max, running_sum, rescale, weights = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        value_tile = value_tile.to(query_tile.dtype)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
    return running_max, running_sum, accumulator


@triton.jit
def store_result(
    output_ptr,
    logsumexp_ptr,
    rows,
    dims,
    there,
    row_max,
    row_sum,
    accumulator,
    scale_log2,
    value_scale,
    HEAD_DIM: tl.constexpr,
):
    """Divide by the sums, and write output and logsumexp; a row that saw nothing gives zeros.

    Args:
        rows: [BLOCK_M], of the output as a contiguous matrix with HEAD_DIM columns.
        there: [BLOCK_M], which of them to write.
        value_scale: what the values were stored without.
    """
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    output = accumulator * (value_scale / divisor)[:, None]
    store_rows(output_ptr, rows, dims, there, output, HEAD_DIM)
    if logsumexp_ptr is not None:
        logsumexp = (row_max * scale_log2 + tl.log2(divisor)) * LN_2
        tl.store(logsumexp_ptr + rows, logsumexp, mask=there)


@triton.jit
def store_rows(matrix_ptr, rows, dims, there, tile, HEAD_DIM: tl.constexpr):
    """Write the rows that are ``there`` of a contiguous matrix, in the dtype it has."""
    tl.store(
        matrix_ptr + rows[:, None].to(tl.int64) * HEAD_DIM + dims[None, :],
        tile.to(matrix_ptr.dtype.element_ty),
        mask=within(there, dims, HEAD_DIM),
    )
