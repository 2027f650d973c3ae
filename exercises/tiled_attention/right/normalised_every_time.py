"""As Algorithm 1 prints it, the accumulator is divided in every step, and multiplied again in the next."""

import torch
import triton
import triton.language as tl


@triton.jit
def load_tile(matrix_ptr, rows, strides, number, HEAD_DIM: tl.constexpr):
    dims = tl.arange(0, HEAD_DIM)
    addresses = matrix_ptr + rows[:, None] * strides[0] + dims[None, :].to(tl.int64) * strides[1]
    return tl.load(addresses, mask=rows[:, None] < number, other=0.0)


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
    query = load_tile(query_ptr, rows, query_strides, seq_query, HEAD_DIM)
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    output = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        key = load_tile(key_ptr, columns, key_strides, seq_key, HEAD_DIM)
        value = load_tile(value_ptr, columns, value_strides, seq_key, HEAD_DIM)
        scores = scale * tl.dot(query, key.T, input_precision="ieee")
        scores = tl.where(columns[None, :] < seq_key, scores, float("-inf"))

        # As printed: statistics of this tile alone, then of all so far.
        tile_max = tl.maximum(tl.max(scores, axis=1), -3e38)
        exponentials = tl.exp(scores - tile_max[:, None])
        tile_sum = tl.sum(exponentials, axis=1)
        new_max = tl.maximum(running_max, tile_max)
        before, here = tl.exp(running_max - new_max), tl.exp(tile_max - new_max)
        new_sum = before * running_sum + here * tile_sum
        product = tl.dot(exponentials.to(value.dtype), value, input_precision="ieee")
        output = (running_sum * before)[:, None] * output + here[:, None] * product
        output /= tl.where(new_sum == 0.0, 1.0, new_sum)[:, None]
        running_max, running_sum = new_max, new_sum

    dims = tl.arange(0, HEAD_DIM)
    tl.store(
        output_ptr + rows[:, None] * HEAD_DIM + dims[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=rows[:, None] < seq_query,
    )


def tiled_attention(query, key, value, scale):
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    strides = query.stride(), key.stride(), value.stride()
    tiled_attention_kernel[(triton.cdiv(seq_query, 64),)](
        query,
        key,
        value,
        output,
        *strides,
        seq_query,
        seq_key,
        scale,
        HEAD_DIM=head_dim,
        BLOCK_M=64,
        BLOCK_N=64,
        num_stages=1,
    )
    return output
