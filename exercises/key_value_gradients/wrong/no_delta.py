# loses: test_delta, test_16_bit_inputs
"""delta is not subtracted."""

import torch
import triton
import triton.language as tl

BLOCK_M = 32
BLOCK_N = 32


@triton.jit
def load_rows(matrix_ptr, row, strides, rows, HEAD_DIM: tl.constexpr):
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    pointers = matrix_ptr + row * strides[0] + column.to(tl.int64) * strides[1]
    return tl.load(pointers, mask=row < rows, other=0.0)


@triton.jit
def store_rows(matrix_ptr, row, rows, tile):
    HEAD_DIM: tl.constexpr = tile.shape[1]
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    tile = tile.to(matrix_ptr.dtype.element_ty)
    tl.store(matrix_ptr + row * HEAD_DIM + column, tile, mask=row < rows)


@triton.jit
def first_query(start_n, seq_query, seq_key, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr):
    first = 0
    if CAUSAL:
        first = tl.maximum(start_n + seq_query - seq_key, 0) // BLOCK_M * BLOCK_M
    return first


@triton.jit
def key_value_gradients_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_output_ptr,
    logsumexp_ptr,
    delta_ptr,
    grad_key_ptr,
    grad_value_ptr,
    query_strides,
    key_strides,
    value_strides,
    grad_output_strides,
    scale,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    start_n = tl.program_id(0) * BLOCK_N
    key_row = start_n + tl.arange(0, BLOCK_N)
    key = load_rows(key_ptr, key_row, key_strides, seq_key, HEAD_DIM)
    value = load_rows(value_ptr, key_row, value_strides, seq_key, HEAD_DIM)
    grad_key = tl.zeros(key.shape, dtype=tl.float32)
    grad_value = tl.zeros(value.shape, dtype=tl.float32)

    first_m = first_query(start_n, seq_query, seq_key, CAUSAL, BLOCK_M)
    for start_m in range(first_m, seq_query, BLOCK_M):
        query_row = start_m + tl.arange(0, BLOCK_M)
        query = load_rows(query_ptr, query_row, query_strides, seq_query, HEAD_DIM)
        grad_output = load_rows(
            grad_output_ptr, query_row, grad_output_strides, seq_query, HEAD_DIM
        )
        logsumexp = tl.load(logsumexp_ptr + query_row, mask=query_row < seq_query, other=0.0)

        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
        probabilities = tl.exp(scores - logsumexp[None, :])
        if CAUSAL:
            visible = key_row[:, None] <= query_row[None, :] + (seq_key - seq_query)
            probabilities = tl.where(visible, probabilities, 0.0)
        grad_value = tl.dot(
            probabilities.to(query.dtype), grad_output, grad_value, input_precision="ieee"
        )

        grad_probabilities = tl.dot(value, tl.trans(grad_output), input_precision="ieee")
        grad_scores = probabilities * grad_probabilities
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision="ieee")
    grad_key *= scale

    store_rows(grad_key_ptr, key_row, seq_key, grad_key)
    store_rows(grad_value_ptr, key_row, seq_key, grad_value)


def key_value_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_output: torch.Tensor,
    logsumexp: torch.Tensor,
    delta: torch.Tensor,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    grad_key = torch.empty((seq_key, head_dim), dtype=key.dtype, device=key.device)
    grad_value = torch.empty((seq_key, head_dim), dtype=key.dtype, device=key.device)
    key_value_gradients_kernel[(triton.cdiv(seq_key, BLOCK_N),)](
        query,
        key,
        value,
        grad_output,
        logsumexp,
        delta,
        grad_key,
        grad_value,
        query.stride(),
        key.stride(),
        value.stride(),
        grad_output.stride(),
        scale,
        seq_query,
        seq_key,
        HEAD_DIM=head_dim,
        CAUSAL=causal,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
    )
    return grad_key, grad_value
