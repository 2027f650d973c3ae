"""FP8 attention in plain Triton, for GPUs from compute capability 8.9 on.

The loop is FlashAttention-2's, with 8-bit tiles, their scales, and weights rounded to e4m3: the arithmetic
of :mod:`kernels.fp8_hopper`, which explains it, without its choreography. Each tile's product with V is
added to the output in float32 (two levels): what the tensor cores' own accumulator is worth differs from
one generation of GPUs to the next.

Source: Shah et al., *FlashAttention-3* (2024), section 3.3.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.configurations import Configuration
from kernels.flash1 import LN_2
from kernels.flash2_forward import block_and_head, heads_together
from kernels.fp8_preparation import Prepared
from kernels.online_softmax import LOG2_E
from kernels.quantization import FP8_ARCHITECTURES
from kernels.tiles import hide_scores, load_tile, store_tile

WEIGHT_BITS = tl.constexpr(8.0)
LEAST_SCALE = tl.constexpr(2.0**-126)


@triton.jit
def update(scores, running_max, running_sum, scale_log2, value_exponent):
    """As :func:`kernels.online_softmax.online_softmax_update`, for weights that are rounded to e4m3.

    ``value_exponent`` is log2 of V's scale. A weight carries this scale; the largest of a row is 2**8, and
    the maximum, kept scaled, is that of these products. The sum is of weights alone, times 2**8.
    """
    tile_max = tl.fma(tl.max(scores, axis=1), scale_log2, value_exponent)
    new_max = tl.maximum(running_max, tile_max)
    # While a row has seen nothing its maximum is -inf, and -inf - -inf is NaN: subtract 0 there.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    raised = (WEIGHT_BITS + value_exponent) - shift
    exponentials = tl.exp2(tl.fma(scores, scale_log2, raised[:, None]))
    rescale = tl.exp2(running_max - shift)
    running_sum = running_sum * rescale + tl.sum(exponentials, axis=1) * tl.exp2(-value_exponent)
    return new_max, running_sum, rescale, exponentials


@triton.jit
def attend(
    first,
    last,
    query_tile,
    running_max,
    running_sum,
    accumulator,
    key_ptr,
    value_ptr,
    key_scale_ptr,
    value_scale_ptr,
    scale_log2,
    rows,
    dims,
    seq_query,
    seq_key,
    seq_padded,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    HIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take the key tiles ``first`` to ``last`` into the statistics and the output of BLOCK_M rows."""
    in_n = tl.arange(0, BLOCK_N)
    for tile in range(first, last):
        start_n = tile * BLOCK_N
        end = seq_key if HIDE else start_n + BLOCK_N
        columns = start_n + in_n
        key_tile = load_tile(key_ptr, start_n, in_n, dims, (0, 0, HEAD_DIM, 1), end, HEAD_DIM)
        # [BLOCK_D, BLOCK_N]: a row for each dimension.
        value_end = seq_padded if HIDE else start_n + BLOCK_N
        value_tile = tl.load(
            value_ptr + dims[:, None] * seq_padded + columns[None, :],
            mask=(dims[:, None] < HEAD_DIM) & (columns[None, :] < value_end),
            other=0.0,
        )
        tile_scale = tl.maximum(scale_log2 * tl.load(key_scale_ptr + tile), LEAST_SCALE)
        value_exponent = tl.log2(tl.load(value_scale_ptr + tile))
        scores = tl.dot(query_tile, tl.trans(key_tile))  # [BLOCK_M, BLOCK_N]
        if HIDE:
            scores = hide_scores(scores, rows, columns, seq_query, seq_key, CAUSAL)
        running_max, running_sum, rescale, weights = update(
            scores, running_max, running_sum, tile_scale, value_exponent
        )
        product = tl.dot(weights.to(value_tile.dtype), tl.trans(value_tile))
        accumulator = tl.fma(
            accumulator, tl.broadcast_to(rescale[:, None], accumulator.shape), product
        )
    return running_max, running_sum, accumulator


@triton.jit(do_not_specialize=("heads_together",))
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    query_scale_ptr,
    key_scale_ptr,
    value_scale_ptr,
    output_ptr,
    logsumexp_ptr,
    scale,
    heads_together,
    heads_per_kv_head,
    seq_query,
    seq_key,
    seq_padded,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head. All tensors are contiguous; V is (head_dim, seq_padded) a head."""
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_heads = tl.num_programs(0) // blocks_m
    block, head = block_and_head(blocks_m, batch_heads, heads_together)
    # Counted from the end: under a causal mask the last tile of queries sees the most keys.
    block = blocks_m - 1 - block
    kv_head = head // heads_per_kv_head
    start_m = block * BLOCK_M
    in_m, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = start_m + in_m
    query_head = query_ptr + head * seq_query * HEAD_DIM
    query_tile = load_tile(
        query_head, start_m, in_m, dims, (0, 0, HEAD_DIM, 1), seq_query, HEAD_DIM
    )
    scale_log2 = scale * tl.load(query_scale_ptr + head * blocks_m + block)
    tiles = tl.cdiv(seq_key, BLOCK_N)

    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    seen_by_all, seen = seq_key, seq_key
    if CAUSAL:
        position = start_m + seq_key - seq_query
        seen_by_all = tl.minimum(tl.maximum(position + 1, 0), seq_key)
        seen = tl.minimum(tl.maximum(position + BLOCK_M, 0), seq_key)
    whole = seen_by_all // BLOCK_N
    # Tiles that every row sees whole, then those that need a mask.
    for PART in tl.static_range(2):
        running_max, running_sum, accumulator = attend(
            whole * PART,
            tl.cdiv(seen, BLOCK_N) if PART else whole,
            query_tile,
            running_max,
            running_sum,
            accumulator,
            key_ptr + kv_head * seq_key * HEAD_DIM,
            value_ptr + kv_head * HEAD_DIM * seq_padded,
            key_scale_ptr + kv_head * tiles,
            value_scale_ptr + kv_head * tiles,
            scale_log2,
            rows,
            dims,
            seq_query,
            seq_key,
            seq_padded,
            HEAD_DIM,
            CAUSAL,
            PART == 1,
            BLOCK_N,
        )
    # A row that saw nothing stays zero.
    divisor = tl.where(running_sum == 0.0, 1.0, running_sum)
    output_head = output_ptr + head * seq_query * HEAD_DIM
    store_tile(output_head, rows, dims, accumulator / divisor[:, None], seq_query, HEAD_DIM)
    logsumexp = (running_max + (tl.log2(divisor) - WEIGHT_BITS)) * LN_2
    tl.store(logsumexp_ptr + head * seq_query + rows, logsumexp, mask=rows < seq_query)


def forward(
    prepared: Prepared,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    causal: bool,
    scale: float,
) -> None:
    """Launch the kernel for tensors that are not empty.

    Args:
        prepared: with scales for blocks as :func:`block_sizes` has them; V not interleaved.
        output, logsumexp: contiguous; the kernel writes every element.
    """
    batch, heads, seq_query, head_dim = output.shape
    query, key, value = (quantized.values for quantized in prepared)
    constants, options = block_sizes(head_dim)
    grid = (triton.cdiv(seq_query, constants["BLOCK_M"]) * batch * heads,)
    with launch_device(output):
        forward_kernel[grid](
            query,
            key,
            value,
            *(quantized.scale for quantized in prepared),
            output,
            logsumexp,
            scale * LOG2_E,
            heads_together(key, 0 if causal else 1),
            heads // key.shape[1],
            seq_query,
            key.shape[2],
            value.shape[3],
            HEAD_DIM=head_dim,
            CAUSAL=causal,
            **constants,
            **options,
        )


def block_sizes(head_dim: int) -> tuple[dict, dict]:
    """Tile sizes and options: the largest that fit into 99 KiB and spill on no architecture.

    Read off the compiler's report, not timed.
    """
    block_d = triton.next_power_of_2(head_dim)
    sizes = {"BLOCK_M": 64, "BLOCK_N": 64 if block_d <= 128 else 32, "BLOCK_D": block_d}
    return sizes, {"num_warps": 4 if block_d <= 64 else 8, "num_stages": 2}


def configurations() -> Iterator[Configuration]:
    """The kernel as it is launched at head dimensions 64, 128 and 256.

    With a causal mask only: without, it is the same with less to decide.
    """
    types = {}
    for name in forward_kernel.arg_names:
        if name.endswith("_ptr"):
            types[name] = "*fp32"
        elif name.islower():
            types[name] = "i32x16" if name.startswith("seq_") else "i32"
    types |= dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), "*fp8e4nv")
    types |= {"output_ptr": "*fp16", "scale": "fp32"}
    for head_dim in (64, 128, 256):
        constants, options = block_sizes(head_dim)
        yield Configuration(
            f"head_dim {head_dim}, causal",
            forward_kernel,
            types,
            {"HEAD_DIM": head_dim, "CAUSAL": True, **constants},
            options,
            FP8_ARCHITECTURES,
        )
