"""Decoding from a paged cache: one query a sequence and head, all tokens of the sequence.

A step of decoding reads every key and value once and does little with them, so its time is that of memory.

* All query heads that share a KV head are rows of one tile: keys and values are loaded once for all.
* A sequence's tokens are divided between programs, so that even a single long one keeps every SM loading.
  Each program leaves a maximum, a sum and an accumulator, and :func:`merge_kernel` puts them together: the
  monoid of :mod:`kernels.online_softmax`. With one split there is no second kernel.
* Several tiles of keys and values are on their way at any time.

The grid follows from shapes alone, because to read a length the host would have to wait for the GPU. So
every sequence is divided into the same number of splits, each its own length, and a CUDA graph can hold a
call whatever the lengths will be.

Sources: Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*
(2023), section 4.1; Dao et al., *Flash-Decoding* (2023).
"""

import functools
import math

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.flash2_forward import architecture, block_sizes
from kernels.online_softmax import merge_statistics
from kernels.paged_attention import Pages, attend, head_scale, store_result, store_rows, within
from kernels.score_options import LOG2_E_CONSTANT

MAX_SPLITS = 128
# What fewer tokens take does not pay for merging: as long as SMs are idle, and when each has a program.
LEAST_TOKENS, LEAST_TOKENS_WHEN_BUSY = 256, 1024
# How many programs fit on an SM, by the stages of their pipeline.
PROGRAMS_AN_SM = {3: 3, 4: 2}


@triton.jit(do_not_specialize=("splits", "kv_heads", "group"))
def decode_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    table_ptr,
    context_ptr,
    key_scale_ptr,
    value_scale_ptr,
    output_ptr,
    logsumexp_ptr,
    max_ptr,
    sum_ptr,
    query_strides,
    cache_strides,
    scale_strides,
    table_stride,
    scale,
    splits,
    kv_heads,
    group,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M of the ``group`` query heads of one KV head, over one split of one sequence.

    With ``max_ptr`` and ``sum_ptr`` it leaves a part, not divided by its sum, for :func:`merge_kernel`;
    otherwise the result. KV heads are numbered fastest: what programs read at the same time lies together.
    """
    blocks_m = tl.cdiv(group, BLOCK_M)
    index = tl.program_id(0)
    block = index % blocks_m
    kv_head = index // blocks_m % kv_heads
    split = index // (blocks_m * kv_heads) % splits
    sequence = (index // (blocks_m * kv_heads * splits)).to(tl.int64)

    in_group = block * BLOCK_M + tl.arange(0, BLOCK_M)
    heads = kv_head * group + in_group  # [BLOCK_M]
    there = in_group < group
    dims = tl.arange(0, BLOCK_D)
    query_tile = tl.load(
        query_ptr
        + sequence * query_strides[0]
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
    tokens_a_split = tl.cdiv(tl.cdiv(context, BLOCK_N), splits) * BLOCK_N
    start = split * tokens_a_split
    row_max, row_sum, accumulator = attend(
        start,
        tl.minimum(start + tokens_a_split, context),
        context,
        tl.full([BLOCK_M], context - 1, dtype=tl.int32),
        query_tile,
        tl.full([BLOCK_M], float("-inf"), dtype=tl.float32),
        tl.zeros([BLOCK_M], dtype=tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32),
        pages,
        scale_log2,
        dims,
        HEAD_DIM,
        BLOCK_SIZE,
        BLOCK_N,
        True,
    )

    rows = sequence * kv_heads * group + heads  # [BLOCK_M]
    if max_ptr is None:
        value_scale = head_scale(value_scale_ptr, scale_strides[1], kv_head)
        store_result(
            output_ptr,
            logsumexp_ptr,
            rows,
            dims,
            there,
            row_max,
            row_sum,
            accumulator,
            scale_log2,
            value_scale,
            HEAD_DIM,
        )
    else:
        # Parts of a row lie one after the other.
        parts = rows * splits + split
        store_rows(output_ptr, parts, dims, there, accumulator, HEAD_DIM)
        tl.store(max_ptr + parts, row_max, mask=there)
        tl.store(sum_ptr + parts, row_sum, mask=there)


@triton.jit(do_not_specialize=("splits", "heads", "group"))
def merge_kernel(
    part_ptr,
    max_ptr,
    sum_ptr,
    key_scale_ptr,
    value_scale_ptr,
    output_ptr,
    logsumexp_ptr,
    scale_strides,
    scale,
    splits,
    heads,
    group,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row: put together what its splits found, all at once.

    Each part is merged with an empty one whose maximum is that of all, so that all are relative to it.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = (row % heads) // group
    scale_log2 = scale * head_scale(key_scale_ptr, scale_strides[0], kv_head) * LOG2_E_CONSTANT
    in_s, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    there = in_s < splits
    parts = row * splits + in_s  # [BLOCK_S]
    part_max = tl.load(max_ptr + parts, mask=there, other=float("-inf"))
    part_sum = tl.load(sum_ptr + parts, mask=there, other=0.0)
    accumulators = tl.load(  # [BLOCK_S, BLOCK_D]
        part_ptr + parts[:, None] * HEAD_DIM + dims[None, :],
        mask=within(there, dims, HEAD_DIM),
        other=0.0,
    )
    row_max = tl.max(part_max, axis=0)
    _, part_sum, _, shares = merge_statistics(row_max, 0.0, part_max, part_sum, scale_log2)
    accumulator = tl.sum(accumulators * shares[:, None], axis=0)
    one = tl.arange(0, 1)
    store_result(
        output_ptr,
        logsumexp_ptr,
        row + one,
        dims,
        one == 0,
        row_max + tl.zeros([1], dtype=tl.float32),
        tl.sum(part_sum, axis=0) + tl.zeros([1], dtype=tl.float32),
        accumulator[None, :],
        scale_log2,
        head_scale(value_scale_ptr, scale_strides[1], kv_head),
        HEAD_DIM,
    )


def decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    splits: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch :func:`decode_kernel`; arguments as :func:`kernels.paged.decode` has checked them.

    Args:
        scales: of keys and of values, one for each KV head; None for a cache that has none.

    Returns:
        Output in query's dtype, and logsumexp in float32, both contiguous.
    """
    batch, heads, head_dim = query.shape
    block_size, kv_heads = key_cache.shape[1:3]
    group = heads // kv_heads
    tokens = block_tables.shape[1] * block_size
    splits, stages = splits_and_stages(batch * kv_heads, tokens, multiprocessors(query), splits)
    constants, options = decode_blocks(
        key_cache.dtype, head_dim, group, architecture(query), stages
    )
    programs = batch * kv_heads * triton.cdiv(group, constants["BLOCK_M"])
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty((batch, heads), dtype=torch.float32)
    key_scale, value_scale = scales or (None, None)
    scale_strides = tuple(x.stride(0) for x in scales) if scales else (0, 0)
    if splits == 1:
        results = (output, logsumexp, None, None)
    else:
        accumulator = query.new_empty((batch, heads, splits, head_dim), dtype=torch.float32)
        row_max, row_sum = query.new_empty((2, batch, heads, splits), dtype=torch.float32)
        results = (accumulator, None, row_max, row_sum)
    with launch_device(query):
        if programs:
            decode_kernel[(programs * splits,)](
                query,
                key_cache,
                value_cache,
                block_tables,
                context_lengths,
                key_scale,
                value_scale,
                *results,
                query.stride(),
                key_cache.stride(),
                scale_strides,
                block_tables.stride(0),
                scale,
                splits,
                kv_heads,
                group,
                HEAD_DIM=head_dim,
                BLOCK_SIZE=block_size,
                **constants,
                **options,
            )
        if programs and splits > 1:
            merge_kernel[(batch * heads,)](
                accumulator,
                row_max,
                row_sum,
                key_scale,
                value_scale,
                output,
                logsumexp,
                scale_strides,
                scale,
                splits,
                heads,
                group,
                HEAD_DIM=head_dim,
                BLOCK_S=triton.next_power_of_2(splits),
                BLOCK_D=constants["BLOCK_D"],
                num_warps=merge_warps(splits, head_dim),
            )
    return output, logsumexp


@functools.lru_cache(maxsize=1024)
def splits_and_stages(
    programs: int, tokens: int, sms: int, splits: int | None = None
) -> tuple[int, int]:
    """How many splits, and stages of the pipeline, occupy a GPU nearly as well as any, with few splits.

    Args:
        programs: how many there are with one split.
        tokens: as many as a sequence can have.
        sms: of the GPU.
        splits: if they are given, only the stages are chosen.

    ``benchmarks/paged.md`` has the measurements.
    """
    allowed = [splits] if splits else [1]
    while not splits and allowed[-1] < MAX_SPLITS:
        more = allowed[-1] + 1
        busy = programs * more > sms
        if tokens // more < (LEAST_TOKENS_WHEN_BUSY if busy else LEAST_TOKENS):
            break
        allowed.append(more)
    scores = {
        (each, stages): occupancy(programs * each, sms, stages)
        for each in allowed
        for stages in PROGRAMS_AN_SM
    }
    enough = 0.95 * max(scores.values())
    return next(choice for choice, score in scores.items() if score >= enough)


def occupancy(programs: int, sms: int, stages: int) -> float:
    """The share of a GPU's memory bandwidth that equally long programs use, 1 at best; a rough model.

    Programs run in waves of as many as fit. Two on every SM are enough to keep memory busy. A second wave
    that is nearly empty costs as much as a full one; after several waves programs no longer end together.
    """
    waves = programs / (sms * PROGRAMS_AN_SM[stages])
    if waves <= 1:
        return min(1.0, programs / (2 * sms))
    return 1.0 if waves > 4 else waves / math.ceil(waves)


def decode_blocks(
    dtype: torch.dtype, head_dim: int, group: int, architecture: int, stages: int
) -> tuple[dict, dict]:
    """Tile sizes, warps and stages of :func:`decode_kernel`.

    Args:
        dtype: of the cache.
        group: query heads a KV head.
        architecture: compute capability, 90 for Hopper.
        stages: of the pipeline, 3 or 4: tiles that are on their way or in use.

    Where an SM has room for it a tile of keys has 16 KiB in 16 bits, elsewhere half as much.
    """
    block_d = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return block_sizes(16, min(64, 4096 // block_d), block_d, 8, 3)
    # What FP8 is widened into takes registers too.
    most = 32 if dtype.itemsize == 1 and block_d > 128 else 64
    block_m = min(most, max(16, triton.next_power_of_2(group)))
    roomy = architecture in (80, 90, 100)
    block_n = (8192 if roomy else 4096) // block_d
    if dtype.itemsize == 1:
        return block_sizes(block_m, min(64, block_n), block_d, 4, stages)
    return block_sizes(block_m, min(128, block_n), block_d, 4 if roomy else 8, stages)


def merge_warps(splits: int, head_dim: int) -> int:
    """A warp for every 1024 numbers that a row's parts have, up to 8."""
    return min(8, max(1, triton.next_power_of_2(splits) * head_dim // 1024))


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many SMs a tensor's device has; on the CPU, 2."""
    if not tensor.is_cuda:
        return 2
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count
