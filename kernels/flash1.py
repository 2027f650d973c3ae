"""FlashAttention-1, forward: attention tile by tile, with S and P never in memory.

Two kernels that do the same arithmetic with their loops in another order:

* :func:`printed_attention` is Algorithm 1 of the paper as it is printed. The outer loop walks along the
  keys, so K and V are read once; each step reads the output and the statistics of *every* query from HBM
  and writes them back. One program a head.
* :func:`attention` swaps the loops. A program owns a tile of queries, keeps its output and statistics in
  registers, and reads all the keys. One program a tile of queries, so long sequences fill the GPU even
  with few heads. Later chapters go on from this one.

Both take one tile of scores at a time into a row's statistics by
:func:`kernels.online_softmax.online_softmax_update`.

Source: Dao et al., *FlashAttention* (2022), Algorithm 1; the swap is in *FlashAttention-2* (2023).
"""

from collections.abc import Iterator

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
from kernels.online_softmax import LOG2_E, online_softmax_update
from kernels.tiles import hide_scores, load_tile, store_tile

# From base 2, in which the kernels count, to natural logarithms.
LN_2 = tl.constexpr(1 / LOG2_E)


@triton.jit
def printed_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    accumulator_ptr,
    running_max_ptr,
    running_sum_ptr,
    output_ptr,
    logsumexp_ptr,
    query_strides,
    key_strides,
    value_strides,
    scale_log2,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head, keys in the outer loop: O, the maxima and the sums go to HBM and back."""
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    kv_head = head // heads_per_kv_head
    key_head = key_ptr + batch * key_strides[0] + kv_head * key_strides[1]
    value_head = value_ptr + batch * value_strides[0] + kv_head * value_strides[1]
    first_row = batch_head * seq_query
    accumulator_head = accumulator_ptr + first_row * HEAD_DIM
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    in_m, in_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # places within a tile

    for start_n in range(0, seq_key, BLOCK_N):
        columns = start_n + in_n  # [BLOCK_N]
        key_tile = load_tile(key_head, start_n, in_n, dims, key_strides, seq_key, HEAD_DIM)
        value_tile = load_tile(value_head, start_n, in_n, dims, value_strides, seq_key, HEAD_DIM)

        for start_m in range(0, seq_query, BLOCK_M):
            rows = start_m + in_m  # [BLOCK_M]
            in_rows = rows < seq_query
            query_tile = load_tile(
                query_head, start_m, in_m, dims, query_strides, seq_query, HEAD_DIM
            )
            accumulator = load_tile(  # [BLOCK_M, BLOCK_D], float32
                accumulator_head, start_m, in_m, dims, (0, 0, HEAD_DIM, 1), seq_query, HEAD_DIM
            )
            running_max = tl.load(
                running_max_ptr + first_row + rows, mask=in_rows, other=float("-inf")
            )
            running_sum = tl.load(running_sum_ptr + first_row + rows, mask=in_rows, other=0.0)

            # [BLOCK_M, BLOCK_N]; "ieee": float32 inputs are multiplied in float32, not in TF32.
            scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
            scores = hide_scores(scores, rows, columns, seq_query, seq_key, CAUSAL)
            new_max, new_sum, rescale, exponentials = online_softmax_update(
                scores, running_max, running_sum, scale_log2
            )
            # As printed, O is kept normalised: undo the last division, add, divide again.
            accumulator = accumulator * (running_sum * rescale)[:, None]
            accumulator = tl.dot(
                exponentials.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
            )
            # A row that has seen nothing stays zero: 1 in place of its sum.
            divisor = tl.where(new_sum == 0.0, 1.0, new_sum)
            accumulator = accumulator / divisor[:, None]

            if start_n + BLOCK_N < seq_key:
                store_tile(accumulator_head, rows, dims, accumulator, seq_query, HEAD_DIM)
                tl.store(running_max_ptr + first_row + rows, new_max, mask=in_rows)
                tl.store(running_sum_ptr + first_row + rows, new_sum, mask=in_rows)
            else:
                output_head = output_ptr + first_row * HEAD_DIM
                store_tile(output_head, rows, dims, accumulator, seq_query, HEAD_DIM)
                logsumexp = (new_max * scale_log2 + tl.log2(divisor)) * LN_2
                tl.store(logsumexp_ptr + first_row + rows, logsumexp, mask=in_rows)
        # The next round loads what other threads of this program have just stored.
        tl.debug_barrier()


@triton.jit
def swapped_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    logsumexp_ptr,
    query_strides,
    key_strides,
    value_strides,
    scale_log2,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head, keys in the inner loop: everything stays in registers."""
    # Programs of one head follow each other, so its K and V stay in the L2 cache.
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_head = (tl.program_id(0) // blocks_m).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    kv_head = head // heads_per_kv_head
    key_head = key_ptr + batch * key_strides[0] + kv_head * key_strides[1]
    value_head = value_ptr + batch * value_strides[0] + kv_head * value_strides[1]
    first_row = batch_head * seq_query
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    in_m, in_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # places within a tile

    start_m = (tl.program_id(0) % blocks_m) * BLOCK_M
    rows = start_m + in_m  # [BLOCK_M]
    query_tile = load_tile(query_head, start_m, in_m, dims, query_strides, seq_query, HEAD_DIM)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)

    visible_keys = seq_key
    if CAUSAL:
        # The last query of the tile sees the most keys; tiles beyond are not visited at all.
        visible_keys = tl.minimum(seq_key, start_m + BLOCK_M + seq_key - seq_query)
    for start_n in range(0, visible_keys, BLOCK_N):
        columns = start_n + in_n  # [BLOCK_N]
        key_tile = load_tile(key_head, start_n, in_n, dims, key_strides, seq_key, HEAD_DIM)
        value_tile = load_tile(value_head, start_n, in_n, dims, value_strides, seq_key, HEAD_DIM)

        # [BLOCK_M, BLOCK_N]; "ieee": float32 inputs are multiplied in float32, not in TF32.
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        scores = hide_scores(scores, rows, columns, seq_query, seq_key, CAUSAL)
        running_max, running_sum, rescale, exponentials = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            exponentials.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )

    # Divided once, at the end; a row that saw nothing stays zero.
    divisor = tl.where(running_sum == 0.0, 1.0, running_sum)
    accumulator = accumulator / divisor[:, None]
    output_head = output_ptr + first_row * HEAD_DIM
    store_tile(output_head, rows, dims, accumulator, seq_query, HEAD_DIM)
    logsumexp = (running_max * scale_log2 + tl.log2(divisor)) * LN_2
    tl.store(logsumexp_ptr + first_row + rows, logsumexp, mask=rows < seq_query)


def printed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    block_m: int | None = None,
    block_n: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention as Algorithm 1 prints it, keys in the outer loop.

    One program a head, so it needs a hundred heads or more to fill a GPU. A causal mask is applied to the
    scores; no tile is skipped. Between two steps O is kept in float32.

    Args, returns, raises: as :func:`attention`.
    """
    scale = check_attention_inputs(query, key, value, scale)
    blocks = printed_blocks(query.dtype, query.shape[-1], shared_bytes(query))
    constants, options = _with_sizes(blocks, block_m, block_n)
    batch, heads = query.shape[:2]
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
        return (output, logsumexp) if return_logsumexp else output
    # Line 2 of the algorithm: O = 0, l = 0, m = -inf in HBM.
    accumulator = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    running_sum = torch.zeros_like(logsumexp)
    running_max = torch.full_like(logsumexp, float("-inf"))
    with launch_device(query):
        printed_kernel[(batch * heads,)](
            query,
            key,
            value,
            accumulator,
            running_max,
            running_sum,
            output,
            logsumexp,
            *_shared_arguments(query, key, value, scale),
            CAUSAL=causal,
            **constants,
            **options,
        )
    return (output, logsumexp) if return_logsumexp else output


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    block_m: int | None = None,
    block_n: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention with the loops swapped: a program owns a tile of queries.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16, bfloat16 or float32; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is 16 to 256; the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ. Tiles that are
            hidden whole are not visited.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        block_m, block_n: queries and keys a tile, powers of two from 16; ``None`` means the tuned size.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or if a block size is
            no power of two from 16; before any launch.
    """
    scale = check_attention_inputs(query, key, value, scale)
    blocks = swapped_blocks(query.dtype, query.shape[-1], shared_bytes(query))
    constants, options = _with_sizes(blocks, block_m, block_n)
    batch, heads, seq_query, _ = query.shape
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    grid = (triton.cdiv(seq_query, constants["BLOCK_M"]) * batch * heads,)
    if output.numel():
        with launch_device(query):
            swapped_kernel[grid](
                query,
                key,
                value,
                output,
                logsumexp,
                *_shared_arguments(query, key, value, scale),
                CAUSAL=causal,
                **constants,
                **options,
            )
    return (output, logsumexp) if return_logsumexp else output


def _shared_arguments(query, key, value, scale: float) -> tuple:
    """What both kernels take in the same order: strides, scale, heads, lengths, HEAD_DIM."""
    heads, kv_heads = query.shape[1], key.shape[1]
    strides = (query.stride(), key.stride(), value.stride())
    lengths = (query.shape[2], key.shape[2])
    return *strides, scale * LOG2_E, heads, heads // kv_heads, *lengths, query.shape[3]


def sram_block_sizes(sram_bytes: int, head_dim: int, element: int) -> tuple[int, int]:
    """B_r and B_c of Algorithm 1, line 1: rows of Q and of K that fit into an SRAM of this size.

    With M numbers of SRAM, ``B_c = ceil(M / 4d)`` and ``B_r = min(B_c, d)``: four tiles of d columns, of
    Q, K, V and O.

    Args:
        sram_bytes: bytes on the chip for one program.
        element: bytes a number.
    """
    block_columns = -(-sram_bytes // (element * 4 * head_dim))
    return min(block_columns, head_dim), block_columns


def _with_sizes(blocks: tuple[dict, dict], block_m, block_n) -> tuple[dict, dict]:
    constants, options = blocks
    given = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    for name, size in given.items():
        if size is not None:
            check_block_size(name.lower(), size)
            constants = constants | {name: size}
    return constants, options


def swapped_blocks(dtype: torch.dtype, head_dim: int, shared: int) -> tuple[dict, dict]:
    """Tile sizes, warps and stages of :func:`swapped_kernel` for so much shared memory a program.

    Timed on an H200, among what spills on no architecture; ``benchmarks/flash1.md`` has the log.
    """
    block_d = triton.next_power_of_2(head_dim)
    plenty = shared >= SHARED_BYTES[90]
    if dtype == torch.float32:
        block_m, block_n, warps, stages = (64, 16, 8, 2) if block_d <= 64 else (32, 16, 8, 2)
    elif block_d <= 64:
        block_m, block_n, warps, stages = 128, 64, 4, 3
    elif block_d == 128:
        block_m, block_n, warps, stages = 128, 64, 8, 3
    else:
        block_m, block_n, warps, stages = (128, 32, 8, 3) if plenty else (64, 32, 8, 2)
    return _blocks(block_m, block_n, block_d), {"num_warps": warps, "num_stages": stages}


def printed_blocks(dtype: torch.dtype, head_dim: int, shared: int) -> tuple[dict, dict]:
    """The same for :func:`printed_kernel`: as many keys as fit, for they say how often O goes to HBM."""
    block_d = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        block_m, block_n = (16, 16) if block_d == 256 else (32, 16)
    else:
        block_m, block_n = 32, {256: 32, 128: 128}.get(block_d, 256)
    # One stage: nothing is fetched ahead, since what a step loads the step before has stored.
    return _blocks(block_m, block_n, block_d), {"num_warps": 8, "num_stages": 1}


def _blocks(block_m: int, block_n: int, block_d: int) -> dict:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d}


def configurations() -> Iterator[Configuration]:
    """Every form the launchers use at head dimensions 64, 128 and 256, for each GPU's shared memory."""
    for dtype in DTYPES:
        for head_dim in (64, 128, 256):
            for kernel, blocks in (
                (printed_kernel, printed_blocks),
                (swapped_kernel, swapped_blocks),
            ):
                for architectures in alike_architectures(blocks, dtype, head_dim):
                    constants, options = blocks(dtype, head_dim, SHARED_BYTES[architectures[0]])
                    yield Configuration(
                        f"{str(dtype).removeprefix('torch.')}, head_dim {head_dim}",
                        kernel,
                        _argument_types(kernel, dtype),
                        {"HEAD_DIM": head_dim, "CAUSAL": True, **constants},
                        options,
                        architectures,
                    )


def _argument_types(kernel, dtype: torch.dtype) -> dict:
    in_float32 = ("accumulator_ptr", "running_max_ptr", "running_sum_ptr", "logsumexp_ptr")
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    return {
        **{name: "*fp32" if name in in_float32 else POINTER_TYPES[dtype] for name in pointers},
        **dict.fromkeys(("query_strides", "key_strides", "value_strides"), strides(4)),
        "scale_log2": "fp32",
        **dict.fromkeys(("heads", "heads_per_kv_head"), "i32"),
        **dict.fromkeys(("seq_query", "seq_key"), "i32x16"),
    }
