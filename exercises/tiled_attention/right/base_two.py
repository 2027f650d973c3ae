"""Larger tiles, powers of 2 instead of e, and keys that are loaded transposed."""

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
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    dim = tl.arange(0, HEAD_DIM).to(tl.int64)
    query = tl.load(
        query_ptr + row * query_strides[0] + dim[None, :] * query_strides[1],
        mask=row < seq_query,
        other=0.0,
    )
    # A program's statistics and accumulator of a row of -inf stay finite: -3e38 is no score.
    running_max = tl.full([BLOCK_M, 1], -3e38, dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M, 1], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    for tile in range(tl.cdiv(seq_key, BLOCK_N)):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
        key = tl.load(
            key_ptr + column[None, :] * key_strides[0] + dim[:, None] * key_strides[1],
            mask=column[None, :] < seq_key,
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee") * scale_log2
        scores += tl.where(column[None, :] < seq_key, 0.0, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1, keep_dims=True))
        accumulator *= tl.exp2(running_max - new_max)
        running_sum *= tl.exp2(running_max - new_max)
        running_max = new_max

        exponentials = tl.exp2(scores - new_max)
        running_sum += tl.sum(exponentials, axis=1, keep_dims=True)
        value = tl.load(
            value_ptr + column[:, None] * value_strides[0] + dim[None, :] * value_strides[1],
            mask=column[:, None] < seq_key,
            other=0.0,
        )
        accumulator = tl.dot(
            exponentials.to(value.dtype), value, accumulator, input_precision="ieee"
        )
    tl.store(
        output_ptr + row * HEAD_DIM + dim[None, :],
        accumulator / tl.where(running_sum > 0.0, running_sum, 1.0),
        mask=row < seq_query,
    )


def tiled_attention(query, key, value, scale):
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tiled_attention_kernel[(triton.cdiv(query.shape[0], 128),)](
        query,
        key,
        value,
        output,
        query.stride(),
        key.stride(),
        value.stride(),
        query.shape[0],
        key.shape[0],
        scale * 1.4426950408889634,
        HEAD_DIM=query.shape[1],
        BLOCK_M=128,
        BLOCK_N=32,
        num_warps=8,
        num_stages=1,
    )
    return output
