# loses: test_scale, test_scores_in_float32
"""The scale is not used."""

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
    query = tl.load(
        query_ptr + rows[:, None] * query_strides[0] + dims[None, :] * query_strides[1],
        mask=rows[:, None] < seq_query,
        other=0.0,
    )

    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        in_keys = columns < seq_key
        key = tl.load(
            key_ptr + columns[:, None] * key_strides[0] + dims[None, :] * key_strides[1],
            mask=in_keys[:, None],
            other=0.0,
        )
        value = tl.load(
            value_ptr + columns[:, None] * value_strides[0] + dims[None, :] * value_strides[1],
            mask=in_keys[:, None],
            other=0.0,
        )

        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = tl.where(in_keys[None, :], scores, float("-inf"))

        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        exponentials = tl.exp(scores - shift[:, None])
        rescale = tl.exp(running_max - shift)
        running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
        accumulator = accumulator * rescale[:, None] + tl.dot(
            exponentials.to(value.dtype), value, input_precision="ieee"
        )
        running_max = new_max

    output = accumulator / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]
    tl.store(
        output_ptr + rows[:, None] * HEAD_DIM + dims[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=rows[:, None] < seq_query,
    )


def tiled_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    seq_query, head_dim = query.shape
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(seq_query, 64),)
    tiled_attention_kernel[grid](
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
        BLOCK_N=32,
        num_stages=2,
    )
    return output
