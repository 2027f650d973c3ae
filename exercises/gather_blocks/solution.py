"""Decoding from pages: a program has one query, and gathers its keys and values through a block table."""

import torch
import triton
import triton.language as tl

BLOCK_N = 32  # tokens a tile


@triton.jit
def take_tile(
    start,
    query,
    running_max,
    running_sum,
    accumulator,
    key_cache_ptr,
    value_cache_ptr,
    tables_ptr,
    cache_strides,
    tables_strides,
    sequence,
    head,
    length,
    block_size,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Take BLOCK_N tokens of a sequence, from ``start`` on, into what its query has seen so far.

    Args:
        query: [BLOCK_D], with zeros from HEAD_DIM on.
        running_max, running_sum: [1]; minus infinity and 0 at first.
        accumulator: [BLOCK_D], the sum of weighted values.
        sequence, head: int64.
        length: how many tokens the sequence has, more than ``start``.

    Returns:
        The new ``running_max``, ``running_sum`` and ``accumulator``.
    """
    ### BEGIN SOLUTION
    ### find the block of each of the tile's tokens in the sequence's row of the table, and the
    ### token's place in it; load keys and values, [BLOCK_N, BLOCK_D], and take them in, as in an online
    ### softmax. No token from length on counts.
    tokens = start + tl.arange(0, BLOCK_N)
    is_token = tokens < length
    blocks = tl.load(
        tables_ptr + sequence * tables_strides[0] + tokens // block_size * tables_strides[1],
        mask=is_token,
        other=0,
    ).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    slots = blocks * cache_strides[0] + tokens % block_size * cache_strides[1]
    places = slots[:, None] + head * cache_strides[2] + dims[None, :] * cache_strides[3]
    inside = is_token[:, None] & (dims < HEAD_DIM)[None, :]
    keys = tl.load(key_cache_ptr + places, mask=inside, other=0.0)
    values = tl.load(value_cache_ptr + places, mask=inside, other=0.0)

    scores = tl.sum(query[None, :] * keys, axis=1) * scale
    scores = tl.where(is_token, scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, axis=0))
    rescale = tl.exp(running_max - new_max)
    weights = tl.exp(scores - new_max)
    running_sum = running_sum * rescale + tl.sum(weights, axis=0)
    accumulator = accumulator * rescale + tl.sum(weights[:, None] * values, axis=0)
    running_max = new_max
    ### END SOLUTION
    return running_max, running_sum, accumulator


@triton.jit
def decode_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    tables_ptr,
    lengths_ptr,
    output_ptr,
    query_strides,
    cache_strides,
    tables_strides,
    scale,
    heads,
    block_size,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One query: of sequence program_id(0) and head program_id(1). The output is contiguous."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    query_row = query_ptr + sequence * query_strides[0] + head * query_strides[1]
    query = tl.load(query_row + dims * query_strides[2], mask=dims < HEAD_DIM, other=0.0)
    length = tl.load(lengths_ptr + sequence)
    running_max = tl.full([1], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([1], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        running_max, running_sum, accumulator = take_tile(
            start,
            query,
            running_max,
            running_sum,
            accumulator,
            key_cache_ptr,
            value_cache_ptr,
            tables_ptr,
            cache_strides,
            tables_strides,
            sequence,
            head,
            length,
            block_size,
            scale,
            HEAD_DIM,
            BLOCK_N,
            BLOCK_D,
        )
    # A sequence without tokens has sum 0 and accumulator 0.
    output = accumulator / tl.where(running_sum == 0.0, 1.0, running_sum)
    output_row = output_ptr + (sequence * heads + head) * HEAD_DIM
    tl.store(output_row + dims, output, mask=dims < HEAD_DIM)


def decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
) -> torch.Tensor:
    """Attention of one query a sequence and head over all tokens of the sequence.

    Args:
        query: (batch, heads, head_dim), float32, any strides.
        key_cache, value_cache: (num_blocks, block_size, heads, head_dim), float32, any strides, the same.
        block_tables: (batch, max_blocks), int32, any strides: the blocks of each sequence, in order.
        context_lengths: (batch,), int32, contiguous: how many tokens each sequence has.

    Returns:
        (batch, heads, head_dim), float32, contiguous; zeros for a sequence without tokens.
    """
    batch, heads, head_dim = query.shape
    output = torch.empty((batch, heads, head_dim), dtype=torch.float32, device=query.device)
    decode_kernel[(batch, heads)](
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lengths,
        output,
        query.stride(),
        key_cache.stride(),
        block_tables.stride(),
        head_dim**-0.5,
        heads,
        key_cache.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_N=BLOCK_N,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return output
