# loses: test_head_dims
"""Columns after the 32nd are left out."""

import torch
import triton
import triton.language as tl

BLOCK = 32


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
    query,
    key_ptr,
    value_ptr,
    key_strides,
    value_strides,
    key_block,
    seq_key,
    scale,
    running_max,
    running_sum,
    accumulator,
):
    BLOCK: tl.constexpr = query.shape[0]
    HEAD_DIM: tl.constexpr = query.shape[1]
    row = key_block * BLOCK + tl.arange(0, BLOCK)
    key = load_rows(key_ptr, row, key_strides, seq_key, HEAD_DIM)
    value = load_rows(value_ptr, row, value_strides, seq_key, HEAD_DIM)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(row[None, :] < seq_key, scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, axis=1))
    rescale = tl.exp(running_max - new_max)
    exponentials = tl.exp(scores - new_max[:, None])
    running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
    accumulator = accumulator * rescale[:, None]
    accumulator = tl.dot(exponentials.to(value.dtype), value, accumulator, input_precision="ieee")
    return new_max, running_sum, accumulator


@triton.jit
def block_sparse_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    output_ptr,
    query_strides,
    key_strides,
    value_strides,
    mask_strides,
    scale,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    query_block = tl.program_id(0)
    row = query_block * BLOCK + tl.arange(0, BLOCK)
    query = load_rows(query_ptr, row, query_strides, seq_query, HEAD_DIM)
    running_max, running_sum, accumulator = before_the_first_key(query)

    for key_block in range(0, tl.cdiv(seq_key, BLOCK)):
        visible = tl.load(mask_ptr + query_block * mask_strides[0] + key_block * mask_strides[1])
        if visible:
            running_max, running_sum, accumulator = attend(
                query,
                key_ptr,
                value_ptr,
                key_strides,
                value_strides,
                key_block,
                seq_key,
                scale,
                running_max,
                running_sum,
                accumulator,
            )
    running_sum = tl.where(running_sum == 0.0, 1.0, running_sum)

    output = accumulator / running_sum[:, None]
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    tl.store(
        output_ptr + row * HEAD_DIM + column,
        output.to(output_ptr.dtype.element_ty),
        mask=row < seq_query,
    )


def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    strides = [query.stride(), key.stride(), value.stride()]
    strides.append(block_mask.stride())
    block_sparse_kernel[(triton.cdiv(seq_query, BLOCK),)](
        query,
        key,
        value,
        block_mask,
        output,
        *strides,
        scale,
        seq_query,
        seq_key,
        HEAD_DIM=min(head_dim, 32),
        BLOCK=BLOCK,
    )
    return output
