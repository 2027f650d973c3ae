"""Tiles of a matrix in memory: their addresses, loading and storing them, and which scores count."""

import triton
import triton.language as tl


@triton.jit
def tile_pointers(base, rows, columns, row_stride, column_stride):
    """Addresses of a tile, [ROWS, COLUMNS], in 64 bits: S alone can pass 2³¹ elements."""
    return (
        base
        + rows[:, None].to(tl.int64) * row_stride
        + columns[None, :].to(tl.int64) * column_stride
    )


@triton.jit
def load_tile(head_ptr, start, offsets, dims, strides, seq, HEAD_DIM: tl.constexpr):
    """Rows ``start + offsets`` of Q, K, V or O of one head, [ROWS, BLOCK_D]; zeros past row ``seq``.

    Only the address of row ``start`` depends on ``start``. In a loop over tiles the offsets from it are
    computed once, and a step costs one 64-bit addition in place of one product an element.
    """
    first = head_ptr + tl.cast(start, tl.int64) * strides[2]
    return tl.load(
        tile_pointers(first, offsets, dims, strides[2], strides[3]),
        mask=_inside(offsets, dims, seq - start, HEAD_DIM),
        other=0.0,
    )


@triton.jit
def store_tile(head_ptr, rows, dims, tile, seq, HEAD_DIM: tl.constexpr):
    """Write rows of one head of a contiguous matrix, [ROWS, BLOCK_D], in the dtype it has."""
    tl.store(
        tile_pointers(head_ptr, rows, dims, HEAD_DIM, 1),
        tile.to(head_ptr.dtype.element_ty),
        mask=_inside(rows, dims, seq, HEAD_DIM),
    )


@triton.jit
def _inside(rows, dims, seq, HEAD_DIM: tl.constexpr):
    inside = rows[:, None] < seq
    if dims.shape[0] != HEAD_DIM:
        inside = inside & (dims[None, :] < HEAD_DIM)
    return inside


@triton.jit
def hide_scores(scores, rows, columns, seq_query, seq_key, CAUSAL: tl.constexpr):
    """Scores [BLOCK_M, BLOCK_N] with minus infinity past the last key and, if CAUSAL, for later keys.

    Causal is aligned at the bottom right: the last query sees the last key.
    """
    visible = columns[None, :] < seq_key
    if CAUSAL:
        visible = visible & (columns[None, :] <= rows[:, None] + (seq_key - seq_query))
    return tl.where(visible, scores, float("-inf"))
