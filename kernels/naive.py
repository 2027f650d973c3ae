"""Standard attention: three kernels, with the scores S and the probabilities P in memory between them.

    S = scale · Q Kᵀ        scores_kernel
    P = softmax(S)          softmax_kernel
    O = P V                 output_kernel

S and P have ``seq_query x seq_key`` elements a head and are stored in the inputs' dtype, so in float16
they cost two bytes an element, and each is written once and read once. That traffic, not the arithmetic,
is what the rest of the book removes. Storing S in float16 or bfloat16 also rounds every score before the
exponential, and a float16 score above 65504 becomes infinite and its row NaN.

Source: standard attention as Dao et al., *FlashAttention* (2022), Algorithm 0, states it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.checks import DTYPES, check_attention_inputs, launch_device
from kernels.configurations import POINTER_TYPES, Configuration, strides
from kernels.tiles import tile_pointers

# A row of scores up to this long is held in registers whole; a longer one is read three times.
LONGEST_ROW_IN_REGISTERS = 32768


@triton.jit
def scores_kernel(
    query_ptr,
    key_ptr,
    scores_ptr,
    query_strides,
    key_strides,
    scale,
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
    """One [BLOCK_M, BLOCK_N] tile of S = scale · Q Kᵀ for one head of one sequence."""
    # Consecutive programs share a head, so its Q and K stay in the L2 cache while they are needed.
    blocks_m, blocks_n = tl.cdiv(seq_query, BLOCK_M), tl.cdiv(seq_key, BLOCK_N)
    tile = tl.program_id(0) % (blocks_m * blocks_n)
    batch_head = (tl.program_id(0) // (blocks_m * blocks_n)).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    rows = (tile // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = (tile % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]

    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    key_head = key_ptr + batch * key_strides[0] + (head // heads_per_kv_head) * key_strides[1]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, HEAD_DIM, BLOCK_D):
        dims = start + tl.arange(0, BLOCK_D)
        query_tile = tl.load(  # [BLOCK_M, BLOCK_D]
            tile_pointers(query_head, rows, dims, query_strides[2], query_strides[3]),
            mask=(rows[:, None] < seq_query) & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        key_tile = tl.load(  # [BLOCK_N, BLOCK_D]
            tile_pointers(key_head, columns, dims, key_strides[2], key_strides[3]),
            mask=(columns[:, None] < seq_key) & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        # "ieee": float32 inputs are multiplied in float32; Triton's default would be TF32.
        accumulator = tl.dot(query_tile, tl.trans(key_tile), accumulator, input_precision="ieee")

    scores = accumulator * scale  # [BLOCK_M, BLOCK_N]
    if CAUSAL:
        # Aligned at the bottom right: the last query sees the last key.
        visible = columns[None, :] <= rows[:, None] + (seq_key - seq_query)
        scores = tl.where(visible, scores, float("-inf"))
    scores_head = scores_ptr + batch_head * seq_query * seq_key
    tl.store(
        tile_pointers(scores_head, rows, columns, seq_key, 1),
        scores.to(scores_ptr.dtype.element_ty),
        mask=(rows[:, None] < seq_query) & (columns[None, :] < seq_key),
    )


@triton.jit
def softmax_kernel(
    scores_ptr,
    probabilities_ptr,
    logsumexp_ptr,
    seq_key,
    BLOCK_N: tl.constexpr,
):
    """One row of P = softmax(S), held in registers whole: S is read once and P written once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N], at least the row's length
    in_row = columns < seq_key
    scores = tl.load(scores_ptr + row * seq_key + columns, mask=in_row, other=float("-inf"))
    scores = scores.to(tl.float32)  # [BLOCK_N]

    row_max = tl.max(scores, axis=0)
    # A row with no visible key has maximum -inf, and -inf - -inf is NaN: subtract 0 there instead.
    empty = row_max == float("-inf")
    row_max = tl.where(empty, 0.0, row_max)
    exponentials = tl.exp(scores - row_max)  # [BLOCK_N]
    row_sum = tl.where(empty, 1.0, tl.sum(exponentials, axis=0))
    probabilities = exponentials / row_sum

    tl.store(
        probabilities_ptr + row * seq_key + columns,
        probabilities.to(probabilities_ptr.dtype.element_ty),
        mask=in_row,
    )
    tl.store(logsumexp_ptr + row, tl.where(empty, float("-inf"), tl.log(row_sum) + row_max))


@triton.jit
def softmax_long_row_kernel(
    scores_ptr,
    probabilities_ptr,
    logsumexp_ptr,
    seq_key,
    BLOCK_N: tl.constexpr,
):
    """One row of P = softmax(S), too long for registers: S is read three times, block by block."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_N).to(tl.int64)  # [BLOCK_N]
    scores_row = scores_ptr + row * seq_key

    block_max = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        scores = tl.load(
            scores_row + start + columns, mask=start + columns < seq_key, other=float("-inf")
        )
        block_max = tl.maximum(block_max, scores.to(tl.float32))
    row_max = tl.max(block_max, axis=0)
    empty = row_max == float("-inf")
    row_max = tl.where(empty, 0.0, row_max)

    block_sum = tl.zeros([BLOCK_N], dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        scores = tl.load(
            scores_row + start + columns, mask=start + columns < seq_key, other=float("-inf")
        )
        block_sum += tl.exp(scores.to(tl.float32) - row_max)
    row_sum = tl.where(empty, 1.0, tl.sum(block_sum, axis=0))

    for start in range(0, seq_key, BLOCK_N):
        in_row = start + columns < seq_key
        scores = tl.load(scores_row + start + columns, mask=in_row, other=float("-inf"))
        probabilities = tl.exp(scores.to(tl.float32) - row_max) / row_sum
        tl.store(
            probabilities_ptr + row * seq_key + start + columns,
            probabilities.to(probabilities_ptr.dtype.element_ty),
            mask=in_row,
        )
    tl.store(logsumexp_ptr + row, tl.where(empty, float("-inf"), tl.log(row_sum) + row_max))


@triton.jit
def output_kernel(
    probabilities_ptr,
    value_ptr,
    output_ptr,
    value_strides,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK_M, HEAD_DIM] of O = P V for one head of one sequence; BLOCK_D is HEAD_DIM padded."""
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_head = (tl.program_id(0) // blocks_m).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    rows = (tl.program_id(0) % blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]

    probabilities_head = probabilities_ptr + batch_head * seq_query * seq_key
    value_head = (
        value_ptr + batch * value_strides[0] + (head // heads_per_kv_head) * value_strides[1]
    )
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        probabilities = tl.load(  # [BLOCK_M, BLOCK_N]
            tile_pointers(probabilities_head, rows, columns, seq_key, 1),
            mask=(rows[:, None] < seq_query) & (columns[None, :] < seq_key),
            other=0.0,
        )
        value_tile = tl.load(  # [BLOCK_N, BLOCK_D]
            tile_pointers(value_head, columns, dims, value_strides[2], value_strides[3]),
            mask=(columns[:, None] < seq_key) & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        accumulator = tl.dot(probabilities, value_tile, accumulator, input_precision="ieee")

    output_head = output_ptr + batch_head * seq_query * HEAD_DIM
    tl.store(
        tile_pointers(output_head, rows, dims, HEAD_DIM, 1),
        accumulator.to(output_ptr.dtype.element_ty),
        mask=(rows[:, None] < seq_query) & (dims[None, :] < HEAD_DIM),
    )


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Standard attention, with S and P in memory.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16, bfloat16 or float32; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is 16 to 256; the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, before any launch.
    """
    scale = check_attention_inputs(query, key, value, scale)
    scores = attention_scores(query, key, causal=causal, scale=scale)
    probabilities, logsumexp = softmax(scores)
    del scores  # its memory is free for the output
    output = weighted_values(probabilities, value)
    return (output, logsumexp) if return_logsumexp else output


def attention_scores(
    query: torch.Tensor, key: torch.Tensor, *, causal: bool, scale: float
) -> torch.Tensor:
    """S = scale · Q Kᵀ in memory: ``(batch, heads, seq_query, seq_key)`` in the inputs' dtype."""
    batch, heads, seq_query, head_dim = query.shape
    kv_heads, seq_key = key.shape[1:3]
    scores = query.new_empty(batch, heads, seq_query, seq_key)
    if scores.numel() == 0:
        return scores
    constants, options = scores_blocks(query.dtype, head_dim)
    blocks_m = triton.cdiv(seq_query, constants["BLOCK_M"])
    blocks_n = triton.cdiv(seq_key, constants["BLOCK_N"])
    grid = (blocks_m * blocks_n * batch * heads,)
    with launch_device(query):
        scores_kernel[grid](
            query,
            key,
            scores,
            query.stride(),
            key.stride(),
            scale,
            heads,
            heads // kv_heads,
            seq_query,
            seq_key,
            HEAD_DIM=head_dim,
            CAUSAL=causal,
            **constants,
            **options,
        )
    return scores


def softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P = softmax(S) over the last dimension, and the logsumexp of every row in float32.

    ``scores`` is contiguous, as :func:`attention_scores` returns it.
    """
    seq_key = scores.shape[-1]
    probabilities = torch.empty_like(scores)
    logsumexp = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    if scores.numel() == 0:
        return probabilities, logsumexp.fill_(float("-inf"))
    kernel, constants, options = softmax_blocks(seq_key)
    with launch_device(scores):
        kernel[(logsumexp.numel(),)](
            scores, probabilities, logsumexp, seq_key, **constants, **options
        )
    return probabilities, logsumexp


def weighted_values(probabilities: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """O = P V: ``(batch, heads, seq_query, head_dim)``. ``probabilities`` is contiguous."""
    batch, heads, seq_query, seq_key = probabilities.shape
    kv_heads, head_dim = value.shape[1], value.shape[3]
    if probabilities.numel() == 0:
        return value.new_zeros(batch, heads, seq_query, head_dim)
    output = value.new_empty(batch, heads, seq_query, head_dim)
    constants, options = output_blocks(value.dtype, head_dim)
    grid = (triton.cdiv(seq_query, constants["BLOCK_M"]) * batch * heads,)
    with launch_device(value):
        output_kernel[grid](
            probabilities,
            value,
            output,
            value.stride(),
            heads,
            heads // kv_heads,
            seq_query,
            seq_key,
            HEAD_DIM=head_dim,
            **constants,
            **options,
        )
    return output


def scores_blocks(dtype: torch.dtype, head_dim: int) -> tuple[dict, dict]:
    """Tile sizes of :func:`scores_kernel`, the largest that spill no register on any architecture."""
    if dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 16}, {"num_warps": 8, "num_stages": 2}
    # Found by compiling: wider steps at 64 and 128, or narrower ones at 256, spill on sm_80 or sm_120.
    block_d = 64 if head_dim > 128 else min(32, triton.next_power_of_2(head_dim))
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": block_d}, {"num_warps": 8, "num_stages": 2}


def softmax_blocks(seq_key: int) -> tuple[object, dict, dict]:
    """The softmax kernel for rows of this length, its block and its warps."""
    if seq_key > LONGEST_ROW_IN_REGISTERS:
        return softmax_long_row_kernel, {"BLOCK_N": 2048}, {"num_warps": 8}
    block_n = max(16, triton.next_power_of_2(seq_key))
    # About 32 elements a thread or fewer, until 16 warps are reached.
    return softmax_kernel, {"BLOCK_N": block_n}, {"num_warps": min(16, max(1, block_n // 1024))}


def output_blocks(dtype: torch.dtype, head_dim: int) -> tuple[dict, dict]:
    """Tile sizes of :func:`output_kernel`, the largest that spill no register on any architecture."""
    block_d = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_D": block_d}, {"num_warps": 8, "num_stages": 2}
    block_n = 64 if block_d <= 128 else 32
    return {"BLOCK_M": 128, "BLOCK_N": block_n, "BLOCK_D": block_d}, {
        "num_warps": 8,
        "num_stages": 2,
    }


def configurations() -> Iterator[Configuration]:
    """Every form the launchers above use at head dimensions 64, 128 and 256 and typical row lengths."""
    for dtype in DTYPES:
        pointer, name = POINTER_TYPES[dtype], str(dtype).removeprefix("torch.")
        for head_dim in (64, 128, 256):
            label = f"{name}, head_dim {head_dim}"
            blocks, options = scores_blocks(dtype, head_dim)
            yield Configuration(
                label,
                scores_kernel,
                {
                    **dict.fromkeys(("query_ptr", "key_ptr", "scores_ptr"), pointer),
                    **dict.fromkeys(("query_strides", "key_strides"), strides(4)),
                    "scale": "fp32",
                    **dict.fromkeys(("heads", "heads_per_kv_head"), "i32"),
                    **dict.fromkeys(("seq_query", "seq_key"), "i32x16"),
                },
                {"HEAD_DIM": head_dim, "CAUSAL": True, **blocks},
                options,
            )
            blocks, options = output_blocks(dtype, head_dim)
            yield Configuration(
                label,
                output_kernel,
                {
                    **dict.fromkeys(("probabilities_ptr", "value_ptr", "output_ptr"), pointer),
                    "value_strides": strides(4),
                    **dict.fromkeys(("heads", "heads_per_kv_head"), "i32"),
                    **dict.fromkeys(("seq_query", "seq_key"), "i32x16"),
                },
                {"HEAD_DIM": head_dim, **blocks},
                options,
            )
        for seq_key in (1024, LONGEST_ROW_IN_REGISTERS, 2 * LONGEST_ROW_IN_REGISTERS):
            kernel, blocks, options = softmax_blocks(seq_key)
            yield Configuration(
                f"{name}, {seq_key} keys",
                kernel,
                {
                    **dict.fromkeys(("scores_ptr", "probabilities_ptr"), pointer),
                    "logsumexp_ptr": "*fp32",
                    "seq_key": "i32x16",
                },
                blocks,
                options,
            )
