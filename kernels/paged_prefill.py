"""Prefill over a paged cache: several new queries a sequence, ragged, over all of its tokens.

The new tokens' keys and values are in the cache already, behind those of earlier chunks, so a long prompt
can come in pieces, and one whose beginning is cached brings only the rest. The queries of a sequence are
its last tokens: the causal mask is aligned at the bottom right.

Sequences lie one after the other in ``query``, each as long as it is. Rows of a tile are queries and the
query heads of one KV head, so that short chunks fill a tile too, and tiles of keys are shared.

Source: Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*
(2023), section 4; chunks: Agrawal et al., *Sarathi-Serve* (2024).
"""

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.flash2_forward import architecture, block_sizes
from kernels.paged_attention import Pages, attend, head_scale, store_result, within
from kernels.score_options import LOG2_E_CONSTANT


@triton.jit(do_not_specialize=("kv_heads", "group", "blocks_m"))
def prefill_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    table_ptr,
    query_starts_ptr,
    context_ptr,
    key_scale_ptr,
    value_scale_ptr,
    output_ptr,
    query_strides,
    cache_strides,
    scale_strides,
    table_stride,
    scale,
    kv_heads,
    group,
    blocks_m,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M rows of one sequence and one KV head: row r is query r // group, head r % group.

    The last rows see the most tokens and go first; of all KV heads, since none is longer than another.
    """
    index = tl.program_id(0)
    kv_head = index % kv_heads
    start_m = (blocks_m - 1 - index // kv_heads % blocks_m) * BLOCK_M
    sequence = (index // (kv_heads * blocks_m)).to(tl.int64)
    first_query = tl.load(query_starts_ptr + sequence)
    queries = tl.load(query_starts_ptr + sequence + 1) - first_query
    if start_m >= queries * group:
        return  # this sequence is shorter than the longest

    in_m = start_m + tl.arange(0, BLOCK_M)
    query = in_m // group  # [BLOCK_M], within the sequence
    tokens = first_query + query
    heads = kv_head * group + in_m % group
    there = query < queries
    dims = tl.arange(0, BLOCK_D)
    query_tile = tl.load(
        query_ptr
        + tokens[:, None].to(tl.int64) * query_strides[0]
        + heads[:, None].to(tl.int64) * query_strides[1]
        + dims[None, :] * query_strides[2],
        mask=within(there, dims, HEAD_DIM),
        other=0.0,
    )
    head_offset = tl.cast(kv_head, tl.int64) * cache_strides[2]
    pages = Pages(
        key_cache_ptr + head_offset,
        value_cache_ptr + head_offset,
        cache_strides,
        table_ptr + sequence * table_stride,
    )
    scale_log2 = scale * head_scale(key_scale_ptr, scale_strides[0], kv_head) * LOG2_E_CONSTANT

    context = tl.load(context_ptr + sequence)
    positions = query + (context - queries)  # [BLOCK_M]
    # Every row sees the tokens up to the first row's; after the last row's there is nothing to see.
    seen_by_all = start_m // group + (context - queries) + 1
    last_query = tl.minimum((start_m + BLOCK_M - 1) // group, queries - 1)
    end = last_query + (context - queries) + 1
    whole = tl.maximum(seen_by_all // BLOCK_N * BLOCK_N, 0)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for HIDE in tl.static_range(2):
        row_max, row_sum, accumulator = attend(
            whole if HIDE else 0,
            end if HIDE else whole,
            end,
            positions,
            query_tile,
            row_max,
            row_sum,
            accumulator,
            pages,
            scale_log2,
            dims,
            HEAD_DIM,
            BLOCK_SIZE,
            BLOCK_N,
            HIDE == 1,
        )
    store_result(
        output_ptr,
        None,
        tokens.to(tl.int64) * kv_heads * group + heads,
        dims,
        there,
        row_max,
        row_sum,
        accumulator,
        scale_log2,
        head_scale(value_scale_ptr, scale_strides[1], kv_head),
        HEAD_DIM,
    )


def prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lengths: torch.Tensor,
    max_query_length: int,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
) -> torch.Tensor:
    """Launch :func:`prefill_kernel`; arguments as :func:`kernels.paged.prefill` has checked them."""
    heads, head_dim = query.shape[1:]
    block_size, kv_heads = key_cache.shape[1:3]
    group = heads // kv_heads
    rows = max_query_length * group
    constants, options = prefill_blocks(key_cache.dtype, head_dim, rows, architecture(query))
    blocks_m = triton.cdiv(rows, constants["BLOCK_M"])
    # Zeros for tokens of no sequence, which may fill up a batch.
    output = query.new_zeros(query.shape)
    key_scale, value_scale = scales or (None, None)
    programs = blocks_m * kv_heads * len(context_lengths)
    if programs:
        with launch_device(query):
            prefill_kernel[(programs,)](
                query,
                key_cache,
                value_cache,
                block_tables,
                query_starts,
                context_lengths,
                key_scale,
                value_scale,
                output,
                query.stride(),
                key_cache.stride(),
                tuple(x.stride(0) for x in scales) if scales else (0, 0),
                block_tables.stride(0),
                scale,
                kv_heads,
                group,
                blocks_m,
                HEAD_DIM=head_dim,
                BLOCK_SIZE=block_size,
                **constants,
                **options,
            )
    return output


def prefill_blocks(
    dtype: torch.dtype, head_dim: int, rows: int, architecture: int
) -> tuple[dict, dict]:
    """Tile sizes, warps and stages of :func:`prefill_kernel`.

    Args:
        dtype: of the cache.
        rows: of the longest sequence: queries times query heads a KV head.
        architecture: compute capability, 90 for Hopper.
    """
    block_d = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return block_sizes(16, 32 if block_d <= 128 else 16, block_d, 8, 2)
    fewest = max(16, triton.next_power_of_2(rows))
    if block_d <= 128:
        block_m = min(128, fewest)
        block_n = 64 if block_d <= 64 or architecture == 90 else 32
        return block_sizes(block_m, block_n, block_d, 8 if block_m == 128 else 4, 3)
    # What FP8 is widened into takes registers too.
    return block_sizes(min(32 if dtype.itemsize == 1 else 64, fewest), 32, block_d, 8, 2)
