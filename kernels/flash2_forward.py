"""FlashAttention-2, forward: little but matrix products, and work for every SM.

Against the kernel with its loops swapped of :mod:`kernels.flash1`:

* Tiles that every query of a program sees whole are computed without a mask; only those that the diagonal,
  the edge of a window or the end of the keys crosses look at single scores.
* Under a causal mask the programs with the most tiles start first, so that short ones fill the end.
* The keys can be split between programs as well, for few queries and many keys. Each program then writes
  what it found, normalised, with its logsumexp, and :func:`merge_kernel` puts the parts together.

Source: Dao, *FlashAttention-2* (2023), Sections 3.1 and 3.2; splitting the keys: Dao et al.,
*Flash-Decoding* (2023).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.configurations import ARCHITECTURES, POINTER_TYPES, Configuration, strides
from kernels.flash1 import LN_2
from kernels.online_softmax import merge_statistics, online_softmax_update
from kernels.score_options import (
    LOG2_E_CONSTANT,
    Rules,
    cap_scores,
    is_kept,
    is_visible,
    tiles_seen,
)
from kernels.tiles import load_tile, store_tile


class KeyHead(NamedTuple):
    """Keys and values of one head in memory; ``key_strides`` and ``value_strides`` are of all four axes."""

    key_ptr: tl.tensor
    value_ptr: tl.tensor
    key_strides: tl.tuple
    value_strides: tl.tuple


@triton.jit
def block_and_head(blocks, batch_heads, heads_together):
    """Which block of a head a program takes, and of which head, counted over the whole batch.

    Some heads go together, few enough for what their programs share to stay in the L2 cache. Of those,
    block 0 of every head comes first: it is the one with the most to do, if there is one.
    """
    first = tl.program_id(0) // (heads_together * blocks) * heads_together
    place = tl.program_id(0) - first * blocks
    together = tl.minimum(heads_together, batch_heads - first)
    return place // together, (first + place % together).to(tl.int64)


@triton.jit
def attend(
    first,
    last,
    query_tile,
    running_max,
    running_sum,
    accumulator,
    key_head,
    rules,
    batch_head,
    rows,
    dims,
    HEAD_DIM: tl.constexpr,
    HIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take the key tiles ``first`` to ``last`` into the statistics and the output of BLOCK_M rows.

    HIDE: whether single scores may be hidden. The statistics are of all weights, also of dropped ones.
    """
    in_n = tl.arange(0, BLOCK_N)  # places within a tile
    scale_log2 = LOG2_E_CONSTANT if SOFTCAP else rules.scale * LOG2_E_CONSTANT
    for start_n in range(first * BLOCK_N, last * BLOCK_N, BLOCK_N):
        # A whole tile ends before the last key does, so nothing of it needs a mask.
        end = rules.seq_key if HIDE else start_n + BLOCK_N
        key_tile = load_tile(
            key_head.key_ptr, start_n, in_n, dims, key_head.key_strides, end, HEAD_DIM
        )
        value_tile = load_tile(
            key_head.value_ptr, start_n, in_n, dims, key_head.value_strides, end, HEAD_DIM
        )
        columns = start_n + in_n  # [BLOCK_N]

        # [BLOCK_M, BLOCK_N]; "ieee": float32 inputs are multiplied in float32, not in TF32.
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        if SOFTCAP:
            scores = cap_scores(scores, rules)
        if HIDE:
            visible = is_visible(rows[:, None], columns[None, :], rules)
            scores = tl.where(visible, scores, float("-inf"))
        running_max, running_sum, rescale, weights = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        if DROPOUT:
            kept = is_kept(batch_head, rows[:, None], columns[None, :], rules)
            weights = tl.where(kept, weights, 0.0)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
    return running_max, running_sum, accumulator


@triton.jit(do_not_specialize=("before", "after", "tiles_a_split", "heads_together"))
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    logsumexp_ptr,
    seed_ptr,
    query_strides,
    key_strides,
    value_strides,
    scale,
    softcap,
    dropout,
    before,
    after,
    tiles_a_split,
    heads_together,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    LEFT_EDGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head, over the keys of one split."""
    rules = Rules(seed_ptr, scale, softcap, dropout, before, after, seq_query, seq_key)
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_heads = tl.num_programs(0) // blocks_m
    block, batch_head = block_and_head(blocks_m, batch_heads, heads_together)
    batch, head = batch_head // heads, batch_head % heads
    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    kv_head = head // heads_per_kv_head
    key_head = KeyHead(
        key_ptr + batch * key_strides[0] + kv_head * key_strides[1],
        value_ptr + batch * value_strides[0] + kv_head * value_strides[1],
        key_strides,
        value_strides,
    )
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]

    # Counted from the end: under a causal mask the last tile of queries sees the most keys.
    start_m = (blocks_m - 1 - block) * BLOCK_M
    in_m = tl.arange(0, BLOCK_M)
    rows = start_m + in_m  # [BLOCK_M]
    query_tile = load_tile(query_head, start_m, in_m, dims, query_strides, seq_query, HEAD_DIM)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)

    position = start_m + seq_key - seq_query
    stop = tl.minimum(start_m + BLOCK_M, seq_query) + seq_key - seq_query
    bounds = tiles_seen(position, stop, before, after, seq_key, BLOCK_N)
    first_tile = tl.program_id(1) * tiles_a_split  # of this split
    # Tiles at the left edge of a window, then whole ones, then those at the right edge.
    for PART in tl.static_range(3):
        if LEFT_EDGE or PART > 0:
            running_max, running_sum, accumulator = attend(
                tl.maximum(bounds[PART], first_tile),
                tl.minimum(bounds[PART + 1], first_tile + tiles_a_split),
                query_tile,
                running_max,
                running_sum,
                accumulator,
                key_head,
                rules,
                batch_head,
                rows,
                dims,
                HEAD_DIM,
                PART != 1,
                SOFTCAP,
                DROPOUT,
                BLOCK_N,
            )

    # Divided once, at the end; a row that saw nothing stays zero.
    divisor = tl.where(running_sum == 0.0, 1.0, running_sum)
    kept_sum = divisor * (1.0 - dropout) if DROPOUT else divisor
    accumulator = accumulator / kept_sum[:, None]
    first_row = (tl.program_id(1) * batch_heads + batch_head) * seq_query
    output_head = output_ptr + first_row * HEAD_DIM
    store_tile(output_head, rows, dims, accumulator, seq_query, HEAD_DIM)
    scale_log2 = LOG2_E_CONSTANT if SOFTCAP else scale * LOG2_E_CONSTANT
    logsumexp = (running_max * scale_log2 + tl.log2(divisor)) * LN_2
    tl.store(logsumexp_ptr + first_row + rows, logsumexp, mask=rows < seq_query)


@triton.jit
def merge_kernel(
    partial_outputs_ptr,
    partial_logsumexps_ptr,
    output_ptr,
    logsumexp_ptr,
    rows_in_all,
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M rows of all heads: put together what the splits found.

    A part's logsumexp says all about its weights: it stands for the maximum, with a sum of 1.
    """
    start_m = tl.program_id(0) * BLOCK_M
    in_m, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = start_m + in_m  # [BLOCK_M]
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for split in range(splits):
        first_row = tl.cast(split, tl.int64) * rows_in_all
        found = tl.load(
            partial_logsumexps_ptr + first_row + rows, mask=rows < rows_in_all, other=float("-inf")
        )
        part = load_tile(  # [BLOCK_M, BLOCK_D], float32
            partial_outputs_ptr + first_row * HEAD_DIM,
            start_m,
            in_m,
            dims,
            (0, 0, HEAD_DIM, 1),
            rows_in_all,
            HEAD_DIM,
        )
        weight = tl.where(found == float("-inf"), 0.0, 1.0)
        row_max, row_sum, old_share, new_share = merge_statistics(
            row_max, row_sum, found, weight, LOG2_E_CONSTANT
        )
        accumulator = accumulator * old_share[:, None] + part * (weight * new_share)[:, None]
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    store_tile(output_ptr, rows, dims, accumulator / divisor[:, None], rows_in_all, HEAD_DIM)
    logsumexp = row_max + tl.log2(divisor) * LN_2
    tl.store(logsumexp_ptr + rows, logsumexp, mask=rows < rows_in_all)


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seed: torch.Tensor | None,
    scale: float,
    before: int,
    after: int,
    softcap: float,
    dropout: float,
    splits: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch :func:`forward_kernel`; arguments as :mod:`kernels.flash2` has checked them.

    Args:
        seed: for dropout, one int64 number on the device; ``None`` without.
        before, after: how far a query sees, in keys.
        softcap: 0.0 for none.
        splits: into how many runs to divide the keys; results are merged if more than one.

    Returns:
        Output in the inputs' dtype, and logsumexp in float32, both contiguous.
    """
    batch, heads, seq_query, head_dim = query.shape
    kv_heads, seq_key = key.shape[1:3]
    optional = softcap > 0.0 or dropout > 0.0
    constants, options = forward_blocks(query.dtype, head_dim, architecture(query), optional)
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if output.numel() == 0:
        return output, logsumexp
    tiles_a_split = triton.cdiv(triton.cdiv(seq_key, constants["BLOCK_N"]), splits)
    parts = (output, logsumexp)
    if splits > 1:
        parts = tuple(x.new_empty((splits, *x.shape), dtype=torch.float32) for x in parts)
    grid = (triton.cdiv(seq_query, constants["BLOCK_M"]) * batch * heads, splits)
    with launch_device(query):
        forward_kernel[grid](
            query,
            key,
            value,
            *parts,
            seed,
            query.stride(),
            key.stride(),
            value.stride(),
            scale,
            softcap,
            dropout,
            before,
            after,
            tiles_a_split,
            heads_together(key, after),
            heads,
            heads // kv_heads,
            seq_query,
            seq_key,
            **switches(head_dim, before, softcap, dropout, seq_query + seq_key),
            **constants,
            **options,
        )
        if splits > 1:
            rows = logsumexp.numel()
            block_d = constants["BLOCK_D"]
            merge_kernel[(triton.cdiv(rows, 16),)](
                *parts,
                output,
                logsumexp,
                rows,
                splits,
                HEAD_DIM=head_dim,
                BLOCK_M=16,
                BLOCK_D=block_d,
            )
    return output, logsumexp


def architecture(tensor: torch.Tensor) -> int:
    """Compute capability of a tensor's device, 90 for Hopper; on the CPU, the H200's."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def heads_together(shared: torch.Tensor, after: int) -> int:
    """How many heads :func:`block_and_head` takes together.

    Under a causal mask programs differ in length, so the long ones of several heads start first; as many
    heads as have 4 MiB of ``shared``, and every program reads two such tensors. Without one no order
    is better than another, and a head at a time shares most.
    """
    a_head = shared.shape[-2] * shared.shape[-1] * shared.element_size()
    return max(1, 2**22 // a_head) if after == 0 else 1


def switches(head_dim: int, earlier: int, softcap: float, dropout: float, everything: int) -> dict:
    """What is compiled into a kernel.

    Args:
        earlier: how far a program's positions see those before them. If that is a limit, the first tiles
            are seen in part.
        everything: what is no limit.
    """
    return {
        "HEAD_DIM": head_dim,
        "LEFT_EDGE": earlier < everything,
        "SOFTCAP": softcap > 0.0,
        "DROPOUT": dropout > 0.0,
    }


def forward_blocks(
    dtype: torch.dtype, head_dim: int, architecture: int, optional: bool = False
) -> tuple[dict, dict]:
    """Tile sizes, warps and stages of :func:`forward_kernel`.

    Args:
        architecture: compute capability, 90 for Hopper. Its tiles were timed on an H200, among what does
            not spill; ``benchmarks/flash2.md`` has the log. All others get smaller tiles, which fit into
            99 KiB and spill on none of them; they are compiled, not run.
        optional: whether there is a soft cap or dropout, whose arithmetic takes registers too.
    """
    block_d = triton.next_power_of_2(head_dim)
    hopper = architecture == 90
    if dtype == torch.float32:
        return block_sizes(*((64, 16) if block_d <= 64 else (32, 16)), block_d, 8, 2)
    if optional:
        return block_sizes(64 if block_d <= 128 else 32, 32, block_d, 8, 2)
    if block_d <= 64:
        return block_sizes(128, 64, block_d, 8, 3)
    if block_d == 128:
        return block_sizes(128, 128 if hopper else 64, block_d, 8, 3)
    return block_sizes(128, 32, block_d, 8, 3) if hopper else block_sizes(64, 32, block_d, 8, 2)


def block_sizes(
    block_m: int, block_n: int, block_d: int, warps: int, stages: int
) -> tuple[dict, dict]:
    """As a launch takes them: constants and options."""
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d}
    return sizes, {"num_warps": warps, "num_stages": stages}


def shipped(kernels_and_blocks: dict) -> Iterator[Configuration]:
    """Every form the launchers use at head dimensions 64, 128 and 256: plain, and with all options.

    bfloat16 is left out: it compiles to what float16 does.
    """
    for kernel, blocks in kernels_and_blocks.items():
        for dtype in (torch.float16, torch.float32):
            for head_dim in (64, 128, 256):
                for optional in (False, True) if dtype.itemsize == 2 else (False,):
                    yield from _forms(kernel, blocks, dtype, head_dim, optional)


def _forms(kernel, blocks, dtype, head_dim, optional) -> Iterator[Configuration]:
    switched = {"LEFT_EDGE": True, "SOFTCAP": optional, "DROPOUT": optional}
    for architectures in ((90,), tuple(a for a in ARCHITECTURES if a != 90)):
        sizes, options = blocks(dtype, head_dim, architectures[0], optional)
        label = f"{str(dtype).removeprefix('torch.')}, head_dim {head_dim}"
        yield Configuration(
            label + (", all options" if optional else ""),
            kernel,
            argument_types(kernel, dtype),
            {"HEAD_DIM": head_dim, **switched, **sizes},
            options,
            architectures,
        )


def argument_types(kernel, dtype: torch.dtype) -> dict:
    """Types of a kernel's arguments, which go by their names."""
    in_float32 = ("logsumexp_ptr", "grad_logsumexp_ptr", "shift_ptr", "delta_ptr")
    types = {}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            types[name] = "*fp32" if name in in_float32 else POINTER_TYPES[dtype]
        elif name.endswith("_strides"):
            types[name] = strides(4)
        elif name in ("scale", "softcap", "dropout"):
            types[name] = "fp32"
        elif name.startswith("seq_"):
            types[name] = "i32x16"
        elif name.islower():
            types[name] = "i32"
    return types | ({"seed_ptr": "*i64"} if "seed_ptr" in types else {})


def configurations() -> Iterator[Configuration]:
    """The forward kernel as shipped."""
    yield from shipped({forward_kernel: forward_blocks})
