"""From the last tile of keys to the first, with products of float32 whatever the inputs are."""

import torch
import triton
import triton.language as tl


@triton.jit
def tiled_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    query_strides,
    key_strides,
    value_strides,
    seq_query,
    seq_key,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM).to(tl.int64)
    in_queries = rows[:, None] < seq_query
    query = tl.load(
        query_ptr + rows[:, None] * query_strides[0] + dims[None, :] * query_strides[1],
        mask=in_queries,
        other=0.0,
    )
    # A scaled query in float32 has lost nothing.
    query = query.to(tl.float32) * scale

    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    tiles = tl.cdiv(seq_key, BLOCK_N)
    for tile in range(tiles):
        columns = (tiles - 1 - tile) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
        in_keys = columns[:, None] < seq_key
        key = tl.load(
            key_ptr + columns[:, None] * key_strides[0] + dims[None, :] * key_strides[1],
            mask=in_keys,
            other=0.0,
        ).to(tl.float32)
        value = tl.load(
            value_ptr + columns[:, None] * value_strides[0] + dims[None, :] * value_strides[1],
            mask=in_keys,
            other=0.0,
        ).to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = tl.where(columns[None, :] < seq_key, scores, float("-inf"))

        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        rescale = tl.where(new_max == running_max, 1.0, tl.exp(running_max - new_max))
        hidden = scores == float("-inf")
        exponentials = tl.where(hidden, 0.0, tl.exp(scores - new_max[:, None]))
        running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
        accumulator = accumulator * rescale[:, None]
        accumulator += tl.dot(exponentials, value, input_precision="ieee")
        running_max = new_max

    empty = (running_sum == 0.0)[:, None]
    output = tl.where(empty, 0.0, accumulator / running_sum[:, None])
    output_addresses = output_ptr + rows[:, None] * HEAD_DIM + dims[None, :]
    tl.store(output_addresses, output, mask=in_queries)


def tiled_attention(query, key, value, scale):
    seq_query, head_dim = query.shape
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    tiled_attention_kernel[(triton.cdiv(seq_query, 64),)](
        query,
        key,
        value,
        output,
        query.stride(),
        key.stride(),
        value.stride(),
        seq_query,
        key.shape[0],
        scale,
        HEAD_DIM=head_dim,
        BLOCK_M=64,
        BLOCK_N=16,
    )
    return output
