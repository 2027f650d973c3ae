"""Attention that skips hidden blocks: the file to write your solution in."""

import torch
import triton
import triton.language as tl

BLOCK = 32  # queries a block, and keys a block


@triton.jit
def load_rows(matrix_ptr, row, strides, rows, HEAD_DIM: tl.constexpr):
    """Rows of a matrix, [BLOCK, HEAD_DIM]; zeros past its last row."""
    row, column = row[:, None].to(tl.int64), tl.arange(0, HEAD_DIM)[None, :]
    pointers = matrix_ptr + row * strides[0] + column.to(tl.int64) * strides[1]
    return tl.load(pointers, mask=row < rows, other=0.0)


@triton.jit
def before_the_first_key(query):
    """Maxima, sums and accumulator of a block of queries that has seen no key."""
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
    """Load one block of keys and values, and take it into maxima, sums and accumulator."""
    BLOCK: tl.constexpr = query.shape[0]
    HEAD_DIM: tl.constexpr = query.shape[1]
    row = key_block * BLOCK + tl.arange(0, BLOCK)
    key = load_rows(key_ptr, row, key_strides, seq_key, HEAD_DIM)
    value = load_rows(value_ptr, row, value_strides, seq_key, HEAD_DIM)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # [queries, keys]
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
    """One block of queries."""
    query_block = tl.program_id(0)
    row = query_block * BLOCK + tl.arange(0, BLOCK)
    query = load_rows(query_ptr, row, query_strides, seq_query, HEAD_DIM)
    running_max, running_sum, accumulator = before_the_first_key(query)

    # Your turn: the loop over the blocks of keys. Dense attention would take in all of them:
    #     for key_block in range(0, tl.cdiv(seq_key, BLOCK)):
    #         running_max, running_sum, accumulator = attend(
    #             query, key_ptr, value_ptr, key_strides, value_strides, key_block, seq_key, scale,
    #             running_max, running_sum, accumulator,
    #         )
    # take in only the blocks that row query_block of block_mask shows (find its elements by
    # mask_ptr and mask_strides), and see to it that queries without any key become zeros below.
    pass

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
    """Attention of one head, in which a block of queries sees only some blocks of keys.

    Args:
        query: (seq_query, head_dim), float16, bfloat16 or float32, any strides.
        key, value: (seq_key, head_dim), the same dtype, any strides.
        block_mask: (query blocks, key blocks), bool, any strides; True where a block is visible.
        scale: what the scores are multiplied with.

    Returns:
        (seq_query, head_dim) in the dtype of query, contiguous; zeros for a query that sees no key.
    """
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    strides = [query.stride(), key.stride(), value.stride()]
    # Your turn: the kernel needs the strides of block_mask, too, as the last of these.
    raise NotImplementedError("block_sparse_attention is not written yet")
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
        HEAD_DIM=head_dim,
        BLOCK=BLOCK,
    )
    return output
