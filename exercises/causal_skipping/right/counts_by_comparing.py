"""Counts the tiles one by one, and needs no division."""

import torch
import triton
import triton.language as tl


@triton.jit
def load_rows(matrix_ptr, row, strides, rows, HEAD_DIM: tl.constexpr):
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    pointers = matrix_ptr + row * strides[0] + column.to(tl.int64) * strides[1]
    return tl.load(pointers, mask=row < rows, other=0.0)


@triton.jit
def before_the_first_key(query):
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
    HEAD_DIM: tl.constexpr = query.shape[1]
    key_row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    key = load_rows(key_ptr, key_row, key_strides, seq_key, HEAD_DIM)
    value = load_rows(value_ptr, key_row, value_strides, seq_key, HEAD_DIM)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if HIDE:
        visible = key_row[None, :] <= query_row[:, None] + (seq_key - seq_query)
        visible = visible & (key_row[None, :] < seq_key)
        scores = tl.where(visible, scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, axis=1))
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp(running_max - shift)
    exponentials = tl.exp(scores - shift[:, None])
    running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
    accumulator = accumulator * rescale[:, None]
    accumulator = tl.dot(exponentials.to(value.dtype), value, accumulator, input_precision="ieee")
    return new_max, running_sum, accumulator


@triton.jit
def tile_ranges(start_m, block_m, block_n, seq_query, seq_key):
    offset = seq_key - seq_query
    last_m = tl.minimum(start_m + block_m, seq_query) - 1
    full_tiles, visited_tiles = 0, 0
    for tile in range(0, tl.cdiv(seq_key, block_n)):
        first_n = tile * block_n
        full_tiles += (first_n + block_n - 1 <= start_m + offset).to(tl.int32)
        visited_tiles += (first_n <= last_m + offset).to(tl.int32)
    return full_tiles, visited_tiles


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
    start_m = tl.program_id(0) * BLOCK_M
    query_row = start_m + tl.arange(0, BLOCK_M)
    query = load_rows(query_ptr, query_row, query_strides, seq_query, HEAD_DIM)
    running_max, running_sum, accumulator = before_the_first_key(query)

    full_tiles, visited_tiles = tile_ranges(start_m, BLOCK_M, BLOCK_N, seq_query, seq_key)
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

    tl.store(tiles_ptr + 2 * tl.program_id(0), full_tiles)
    tl.store(tiles_ptr + 2 * tl.program_id(0) + 1, visited_tiles)

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
