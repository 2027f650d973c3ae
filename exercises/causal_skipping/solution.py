"""Causal attention of one head: hidden tiles are not visited, and only tiles at an edge are masked."""

import torch
import triton
import triton.language as tl


@triton.jit
def load_rows(matrix_ptr, row, strides, rows, HEAD_DIM: tl.constexpr):
    """Rows of a matrix, one tile of them; zeros past its last row."""
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    pointers = matrix_ptr + row * strides[0] + column.to(tl.int64) * strides[1]
    return tl.load(pointers, mask=row < rows, other=0.0)


@triton.jit
def before_the_first_key(query):
    """Maxima, sums and accumulator of a tile of queries that has seen no key."""
    running_max = tl.full([query.shape[0]], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([query.shape[0]], dtype=tl.float32)
    accumulator = tl.zeros([query.shape[0], query.shape[1]], dtype=tl.float32)
    return running_max, running_sum, accumulator


@triton.jit
def attend(
    tile,
    query,
    query_row,
    key_ptr,
    value_ptr,
    key_strides,
    value_strides,
    scale,
    seq_query,
    seq_key,
    running_max,
    running_sum,
    accumulator,
    BLOCK_N: tl.constexpr,
    HIDE: tl.constexpr,
):
    """Take one tile of keys into maxima, sums and accumulator; HIDE: hide what its queries do not see."""
    HEAD_DIM: tl.constexpr = query.shape[1]
    key_row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    key = load_rows(key_ptr, key_row, key_strides, seq_key, HEAD_DIM)
    value = load_rows(value_ptr, key_row, value_strides, seq_key, HEAD_DIM)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # [queries, keys]
    if HIDE:
        visible = key_row[None, :] <= query_row[:, None] + (seq_key - seq_query)
        visible = visible & (key_row[None, :] < seq_key)
        scores = tl.where(visible, scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, axis=1))
    # A query that has seen no key yet has the maximum -inf, and -inf - -inf is NaN.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp(running_max - shift)
    exponentials = tl.exp(scores - shift[:, None])
    running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
    accumulator = accumulator * rescale[:, None]
    accumulator = tl.dot(exponentials.to(value.dtype), value, accumulator, input_precision="ieee")
    return new_max, running_sum, accumulator


@triton.jit
def tile_ranges(start_m, block_m, block_n, seq_query, seq_key):
    """What the tile of queries from start_m on must do with the tiles of keys, counted from the first.

    Returns:
        full_tiles: so many tiles are visible to every query of it, with all their block_n keys.
        visited_tiles: so many hold a key that one of its queries sees, the full ones included.
    """
    ### BEGIN SOLUTION
    ### compute both numbers; neither is negative, and queries past the end do not count.
    ### (Until now, the answer was 0 full tiles, and all of them visited:
    ### return 0, tl.cdiv(seq_key, block_n).)
    offset = seq_key - seq_query  # query r sees the keys up to r + offset
    end_m = tl.minimum(start_m + block_m, seq_query)
    # The first query sees the fewest keys and the last one, end_m - 1, the most. With more queries than
    # keys either may be negative, and a kernel divides towards zero: -1 // 32 is 0 there.
    fewest = tl.maximum(start_m + offset + 1, 0)
    most = tl.maximum(end_m + offset, 0)
    return fewest // block_n, tl.cdiv(most, block_n)
    ### END SOLUTION


@triton.jit
def causal_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    tiles_ptr,
    query_strides,
    key_strides,
    value_strides,
    scale,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of queries."""
    start_m = tl.program_id(0) * BLOCK_M
    query_row = start_m + tl.arange(0, BLOCK_M)
    query = load_rows(query_ptr, query_row, query_strides, seq_query, HEAD_DIM)
    running_max, running_sum, accumulator = before_the_first_key(query)

    full_tiles, visited_tiles = tile_ranges(start_m, BLOCK_M, BLOCK_N, seq_query, seq_key)
    ### BEGIN SOLUTION
    ### the tiles of keys. Until now all of them were visited, and all masked:
    ###     for tile in range(0, tl.cdiv(seq_key, BLOCK_N)):
    ###         running_max, running_sum, accumulator = attend(
    ###             tile, query, query_row, key_ptr, value_ptr, key_strides, value_strides, scale,
    ###             seq_query, seq_key, running_max, running_sum, accumulator, BLOCK_N, HIDE=True,
    ###         )
    ### take in the full tiles without hiding anything, and then the others that must be visited.
    for tile in range(0, full_tiles):
        running_max, running_sum, accumulator = attend(
            tile,
            query,
            query_row,
            key_ptr,
            value_ptr,
            key_strides,
            value_strides,
            scale,
            seq_query,
            seq_key,
            running_max,
            running_sum,
            accumulator,
            BLOCK_N,
            HIDE=False,
        )
    for tile in range(full_tiles, visited_tiles):
        running_max, running_sum, accumulator = attend(
            tile,
            query,
            query_row,
            key_ptr,
            value_ptr,
            key_strides,
            value_strides,
            scale,
            seq_query,
            seq_key,
            running_max,
            running_sum,
            accumulator,
            BLOCK_N,
            HIDE=True,
        )
    ### END SOLUTION

    # For the tests: the two numbers that this program went by.
    tl.store(tiles_ptr + 2 * tl.program_id(0), full_tiles)
    tl.store(tiles_ptr + 2 * tl.program_id(0) + 1, visited_tiles)

    # Queries that saw no key have accumulator 0 and sum 0, and 0 / 0 is NaN: divide by 1 there.
    output = accumulator / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]
    row, column = query_row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    tl.store(
        output_ptr + row * HEAD_DIM + column,
        output.to(output_ptr.dtype.element_ty),
        mask=row < seq_query,
    )


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    block_m: int,
    block_n: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of one head; the last query sees the last key.

    Args:
        query: (seq_query, head_dim), float16, bfloat16 or float32, any strides.
        key, value: (seq_key, head_dim), the same dtype, any strides.
        scale: what the scores are multiplied with.
        block_m, block_n: queries and keys of a tile, powers of two from 16 on.

    Returns:
        The output, (seq_query, head_dim) in the dtype of query, and what :func:`tile_ranges` told the
        program of each tile of queries, int32, (tiles of queries, 2).
    """
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    programs = triton.cdiv(seq_query, block_m)
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    tiles = torch.empty((programs, 2), dtype=torch.int32, device=query.device)
    causal_attention_kernel[(programs,)](
        query,
        key,
        value,
        output,
        tiles,
        query.stride(),
        key.stride(),
        value.stride(),
        scale,
        seq_query,
        seq_key,
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
    )
    return output, tiles
