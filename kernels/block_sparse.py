"""Block-sparse FlashAttention: tiles that a boolean mask hides are neither loaded nor computed.

A **block mask** says for each block of ``block_size`` queries and ``block_size`` keys whether it is
visible. :func:`block_layout` turns it, once, into a list for each row of blocks: the columns to visit. The
kernel is that of :mod:`kernels.flash1` with the keys in the inner loop, walking along such a list instead
of along all keys. So its work and its traffic are proportional to the visible blocks.

Blocks that need no look at their elements come first in a list. Only the others, on the diagonal of a
causal mask and at a ragged end, pay for hiding single scores.

Source: Dao et al., *FlashAttention* (2022), Section 3.3 and Algorithm 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.checks import DTYPES, check_attention_inputs, check_block_size, launch_device
from kernels.configurations import (
    POINTER_TYPES,
    SHARED_BYTES,
    Configuration,
    alike_architectures,
    shared_bytes,
    strides,
)
from kernels.flash1 import LN_2, swapped_blocks
from kernels.online_softmax import LOG2_E, online_softmax_update
from kernels.tiles import hide_scores, load_tile, store_tile


@triton.jit
def visit_tiles(
    first,
    last,
    columns_ptr,
    query_tile,
    running_max,
    running_sum,
    accumulator,
    key_head,
    value_head,
    key_strides,
    value_strides,
    scale_log2,
    rows,
    dims,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    HIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take the tiles ``first`` to ``last`` of a list into the statistics and the output of BLOCK_M rows.

    A block of the mask holds BLOCK_SIZE / BLOCK_N tiles. HIDE: whether single scores may be hidden.
    """
    tiles_a_block: tl.constexpr = BLOCK_SIZE // BLOCK_N
    in_n = tl.arange(0, BLOCK_N)  # places within a tile
    # The column of a step is loaded in the step before. So the copies of its tiles can start early; a load
    # right here would leave the compiler one stage less to hide them, a seventh of the speed.
    block = tl.load(columns_ptr + first // tiles_a_block, mask=first < last, other=0)
    for index in range(first, last):
        start_n = block * BLOCK_SIZE + (index % tiles_a_block) * BLOCK_N
        columns = start_n + in_n  # [BLOCK_N]
        # A full block ends before the last key does, so nothing of it needs a mask.
        end = seq_key if HIDE else start_n + BLOCK_N
        key_tile = load_tile(key_head, start_n, in_n, dims, key_strides, end, HEAD_DIM)
        value_tile = load_tile(value_head, start_n, in_n, dims, value_strides, end, HEAD_DIM)

        # [BLOCK_M, BLOCK_N]; "ieee": float32 inputs are multiplied in float32, not in TF32.
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        if HIDE:
            scores = hide_scores(scores, rows, columns, seq_query, seq_key, CAUSAL)
        running_max, running_sum, rescale, exponentials = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            exponentials.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
        following = index + 1
        block = tl.load(columns_ptr + following // tiles_a_block, mask=following < last, other=0)
    return running_max, running_sum, accumulator


@triton.jit
def block_sparse_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    logsumexp_ptr,
    counts_ptr,
    full_counts_ptr,
    columns_ptr,
    query_strides,
    key_strides,
    value_strides,
    count_strides,
    column_strides,
    scale_log2,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head, over the visible blocks of their row of the mask."""
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_head = (tl.program_id(0) // blocks_m).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    kv_head = head // heads_per_kv_head
    key_head = key_ptr + batch * key_strides[0] + kv_head * key_strides[1]
    value_head = value_ptr + batch * value_strides[0] + kv_head * value_strides[1]
    first_row = batch_head * seq_query
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]

    start_m = (tl.program_id(0) % blocks_m) * BLOCK_M
    in_m = tl.arange(0, BLOCK_M)
    rows = start_m + in_m  # [BLOCK_M]
    query_tile = load_tile(query_head, start_m, in_m, dims, query_strides, seq_query, HEAD_DIM)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)

    mask_row = start_m // BLOCK_SIZE
    place = batch * count_strides[0] + head * count_strides[1] + mask_row
    columns_row = columns_ptr + batch * column_strides[0] + head * column_strides[1]
    columns_row += mask_row.to(tl.int64) * column_strides[2]
    tiles_a_block: tl.constexpr = BLOCK_SIZE // BLOCK_N
    full_tiles = tl.load(full_counts_ptr + place) * tiles_a_block
    tiles = tl.load(counts_ptr + place) * tiles_a_block
    # First the full blocks, then those in which single scores may be hidden.
    for HIDE in tl.static_range(2):
        running_max, running_sum, accumulator = visit_tiles(
            full_tiles if HIDE else 0,
            tiles if HIDE else full_tiles,
            columns_row,
            query_tile,
            running_max,
            running_sum,
            accumulator,
            key_head,
            value_head,
            key_strides,
            value_strides,
            scale_log2,
            rows,
            dims,
            seq_query,
            seq_key,
            HEAD_DIM,
            CAUSAL,
            HIDE,
            BLOCK_SIZE,
            BLOCK_N,
        )

    divisor = tl.where(running_sum == 0.0, 1.0, running_sum)
    accumulator = accumulator / divisor[:, None]
    output_head = output_ptr + first_row * HEAD_DIM
    store_tile(output_head, rows, dims, accumulator, seq_query, HEAD_DIM)
    logsumexp = (running_max * scale_log2 + tl.log2(divisor)) * LN_2
    tl.store(logsumexp_ptr + first_row + rows, logsumexp, mask=rows < seq_query)


@dataclass(frozen=True)
class BlockLayout:
    """The blocks that each row of blocks visits, made by :func:`block_layout`.

    Attributes:
        seq_query, seq_key: the lengths it is for.
        block_size: queries, and keys, a block.
        causal: whether later keys are hidden too, element by element.
        counts: blocks to visit, int32, ``(batch or 1, heads or 1, rows)``.
        full_counts: how many of them need no look at single elements; they come first.
        columns: their columns, int32, ``(batch or 1, heads or 1, rows, columns)``, padded with zeros.
    """

    seq_query: int
    seq_key: int
    block_size: int
    causal: bool
    counts: torch.Tensor
    full_counts: torch.Tensor
    columns: torch.Tensor

    @property
    def fraction(self) -> float:
        """Visible blocks over all blocks: s in the paper."""
        return self.counts.double().mean().item() / max(1, self.columns.shape[-1])


def block_layout(
    block_mask: torch.Tensor,
    seq_query: int,
    seq_key: int,
    *,
    block_size: int = 128,
    causal: bool = False,
) -> BlockLayout:
    """Turn a block mask into the lists that the kernel walks along.

    Args:
        block_mask: boolean, True where visible: ``(rows, columns)``, ``(heads, rows, columns)`` or
            ``(batch, heads, rows, columns)`` with 1 for a size that is shared;
            ``rows = ceil(seq_query / block_size)`` and ``columns = ceil(seq_key / block_size)``.
        block_size: a power of two from 16.
        causal: also hide later keys, aligned at the bottom right; blocks hidden whole are dropped.

    Raises:
        TypeError, ValueError: the mask is not boolean, or its shape does not fit.
    """
    check_block_size("block_size", block_size)
    if not isinstance(block_mask, torch.Tensor) or block_mask.dtype != torch.bool:
        came = getattr(block_mask, "dtype", type(block_mask).__name__)
        raise TypeError(f"block_mask must be a torch.bool tensor, got {came}")
    rows, columns = -(-seq_query // block_size), -(-seq_key // block_size)
    if not 2 <= block_mask.ndim <= 4 or block_mask.shape[-2:] != (rows, columns):
        raise ValueError(
            f"block_mask has shape {tuple(block_mask.shape)}; for {seq_query} queries and {seq_key} keys "
            f"in blocks of {block_size} it must be ({rows}, {columns}), with heads and batch before it"
        )
    visible = block_mask.reshape((1,) * (4 - block_mask.ndim) + block_mask.shape)
    first_row = torch.arange(rows, device=block_mask.device)[:, None] * block_size
    last_row = (first_row + block_size).clamp(max=seq_query) - 1
    first_column = torch.arange(columns, device=block_mask.device)[None, :] * block_size
    end_column = first_column + block_size
    full = (end_column <= seq_key).expand(rows, columns)
    if causal:
        visible = visible & (first_column <= last_row + seq_key - seq_query)
        full = full & (end_column - 1 <= first_row + seq_key - seq_query)
    # Full blocks, then the others that are visible, each in ascending order; hidden ones last.
    order = torch.where(visible, torch.where(full, 0, 1), 2)
    counts = visible.sum(-1)
    chosen = order.argsort(dim=-1, stable=True)
    past_the_end = torch.arange(columns, device=block_mask.device) >= counts[..., None]
    return BlockLayout(
        seq_query,
        seq_key,
        block_size,
        causal,
        counts.int().contiguous(),
        (visible & full).sum(-1).int().contiguous(),
        chosen.masked_fill(past_the_end, 0).int().contiguous(),
    )


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BlockLayout,
    *,
    scale: float | None = None,
    return_logsumexp: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention over the visible blocks of a layout, which also says whether it is causal.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16, bfloat16 or float32; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
        layout: from :func:`block_layout`, on the same device.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or if the layout is
            for other sizes or on another device; before any launch.
    """
    scale = check_attention_inputs(query, key, value, scale)
    _check_layout(layout, query, key)
    batch, heads, seq_query, head_dim = query.shape
    kv_heads, seq_key = key.shape[1:3]
    constants, options = block_sparse_blocks(
        query.dtype, head_dim, shared_bytes(query), layout.block_size
    )
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    grid = (triton.cdiv(seq_query, constants["BLOCK_M"]) * batch * heads,)
    # A size of 1 is shared: a stride of 0 reads it again.
    counts = layout.counts.expand(batch, heads, -1)
    columns = layout.columns.expand(batch, heads, -1, -1)
    if output.numel():
        with launch_device(query):
            block_sparse_kernel[grid](
                query,
                key,
                value,
                output,
                logsumexp,
                layout.counts,
                layout.full_counts,
                layout.columns,
                query.stride(),
                key.stride(),
                value.stride(),
                counts.stride(),
                columns.stride(),
                scale * LOG2_E,
                heads,
                heads // kv_heads,
                seq_query,
                seq_key,
                HEAD_DIM=head_dim,
                CAUSAL=layout.causal,
                **constants,
                **options,
            )
    return (output, logsumexp) if return_logsumexp else output


def _check_layout(layout: BlockLayout, query: torch.Tensor, key: torch.Tensor) -> None:
    if not isinstance(layout, BlockLayout):
        raise TypeError(f"layout must be a BlockLayout, got {type(layout).__name__}")
    lengths = (query.shape[2], key.shape[2])
    if (layout.seq_query, layout.seq_key) != lengths:
        raise ValueError(
            f"layout is for {layout.seq_query} queries and {layout.seq_key} keys, got {lengths[0]} and "
            f"{lengths[1]}"
        )
    for axis, name in enumerate(("batch", "heads")):
        if layout.counts.shape[axis] not in (1, query.shape[axis]):
            raise ValueError(
                f"layout is for {layout.counts.shape[axis]} {name}, but query has {query.shape[axis]}"
            )
    if layout.counts.device != query.device:
        raise ValueError(f"layout is on {layout.counts.device}, but query is on {query.device}")


def local_mask(rows: int, columns: int, width: int) -> torch.Tensor:
    """Blocks at most ``width`` from the diagonal: ``(rows, columns)``, boolean."""
    return (_row_numbers(rows) - _column_numbers(columns)).abs() <= width


def strided_mask(rows: int, columns: int, stride: int) -> torch.Tensor:
    """The diagonal and every ``stride``-th column of blocks: ``(rows, columns)``, boolean."""
    row, column = _row_numbers(rows), _column_numbers(columns)
    return (row == column) | (column % stride == 0)


def butterfly_mask(rows: int, columns: int) -> torch.Tensor:
    """The fixed butterfly: blocks whose row and column differ in at most one binary digit.

    A row sees 1 + log2(columns) blocks, and any block reaches any other in log2(columns) steps, as in the
    fast Fourier transform. ``(rows, columns)``, boolean.
    """
    different = _row_numbers(rows) ^ _column_numbers(columns)
    return (different & (different - 1)) == 0


def element_mask(block_mask: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
    """The same mask for single elements, ``(..., seq_query, seq_key)``: for tests and small examples."""
    wide = block_mask.repeat_interleave(layout.block_size, -2)
    wide = wide.repeat_interleave(layout.block_size, -1)
    wide = wide[..., : layout.seq_query, : layout.seq_key]
    return wide.tril(layout.seq_key - layout.seq_query) if layout.causal else wide


def _row_numbers(rows: int) -> torch.Tensor:
    return torch.arange(rows)[:, None]


def _column_numbers(columns: int) -> torch.Tensor:
    return torch.arange(columns)[None, :]


def block_sparse_blocks(
    dtype: torch.dtype, head_dim: int, shared: int, block_size: int
) -> tuple[dict, dict]:
    """Tile sizes, warps and stages: the dense kernel's, but no tile larger than a block of the mask."""
    constants, options = swapped_blocks(dtype, head_dim, shared)
    block_m, block_n = constants["BLOCK_M"], constants["BLOCK_N"]
    if dtype != torch.float32:
        options = options | {"num_warps": 8}
        if shared < SHARED_BYTES[90]:
            # Two loops in one kernel need more registers than one.
            block_n, options = 32, options | {"num_stages": 2}
    sizes = {"BLOCK_M": min(block_m, block_size), "BLOCK_N": min(block_n, block_size)}
    return constants | sizes | {"BLOCK_SIZE": block_size}, options


def configurations() -> Iterator[Configuration]:
    """The kernel with blocks of 128 at head dimensions 64, 128 and 256, for each GPU's shared memory."""
    for dtype in DTYPES:
        pointer = POINTER_TYPES[dtype]
        for head_dim in (64, 128, 256):
            for architectures in alike_architectures(swapped_blocks, dtype, head_dim):
                constants, options = block_sparse_blocks(
                    dtype, head_dim, SHARED_BYTES[architectures[0]], 128
                )
                yield Configuration(
                    f"{str(dtype).removeprefix('torch.')}, head_dim {head_dim}",
                    block_sparse_kernel,
                    {
                        **dict.fromkeys(
                            ("query_ptr", "key_ptr", "value_ptr", "output_ptr"), pointer
                        ),
                        "logsumexp_ptr": "*fp32",
                        **dict.fromkeys(("counts_ptr", "full_counts_ptr", "columns_ptr"), "*i32"),
                        **dict.fromkeys(
                            ("query_strides", "key_strides", "value_strides"), strides(4)
                        ),
                        "count_strides": strides(3),
                        "column_strides": strides(4),
                        "scale_log2": "fp32",
                        **dict.fromkeys(("heads", "heads_per_kv_head"), "i32"),
                        **dict.fromkeys(("seq_query", "seq_key"), "i32x16"),
                    },
                    {"HEAD_DIM": head_dim, "CAUSAL": True, **constants},
                    options,
                    architectures,
                )
