"""Softmax of the rows of a matrix, and the step that lets it be computed in pieces.

A row of scores x has a maximum m and a sum ℓ of exp(x - m), and softmax is exp(x - m) / ℓ. The pair
(m, ℓ) of a whole row follows from the pairs of its parts::

    m = max(m_a, m_b)        ℓ = ℓ_a exp(m_a - m) + ℓ_b exp(m_b - m)

so that a row can be read block by block (:func:`online_softmax_update`) or by several programs at once
(:func:`merge_statistics`). Every later kernel of the book is built on these two functions.

Both work in base 2, because the hardware's exponential is 2**x: exp(x) is 2**(x log2(e)) there, at the cost
of one multiplication. ``scale_log2``, the scale times log2(e), puts the scale of attention into it as well.

Four ways to the same probabilities, by how often they read a row: :func:`three_pass_softmax`,
:func:`two_pass_softmax`, :func:`fused_softmax` (once: the row stays in registers) and
:func:`split_softmax` (several programs a row). :func:`weighted_average` needs only one pass whatever the
row's length, because the probabilities themselves are never asked for: attention in one dimension.

Source: Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018).
"""

import math
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

import kernels
from kernels.checks import DTYPES, check_matrix, launch_device
from kernels.configurations import POINTER_TYPES, Configuration

LOG2_E = math.log2(math.e)

# A row up to this long fits into the registers of one program.
LONGEST_FUSED_ROW = 32768
# A longer row of 16-bit numbers fits too, but then one program fills an SM (see pipelined_kernel).
LONGEST_ROW_TO_SHARE_AN_SM = 16384
# Columns that one program of split_softmax takes.
SPLIT = 8192


@triton.jit
def shifted_exponentials(scores, shift, scale_log2):
    """2**((scores - shift) * scale_log2) of a tile [BLOCK_M, BLOCK_N]; shift is [BLOCK_M].

    Subtracted first: the difference of two close numbers is exact in floating point, so the largest score
    gives exactly 1, however large it is. (One fused multiply-add, scores * scale_log2 minus a maximum
    multiplied before, would save an instruction, but that maximum is rounded: at scores of 10 000 the
    largest exponential is then off by up to one part in 3000, and at 40 000 in 700.)
    """
    return tl.exp2((scores - shift[:, None]) * scale_log2)


@triton.jit
def online_softmax_update(scores, running_max, running_sum, scale_log2):
    """Take one more tile of scores into the statistics of its rows.

    Args:
        scores: [BLOCK_M, BLOCK_N], float32, not yet scaled; minus infinity where hidden.
        running_max: [BLOCK_M], largest score so far; minus infinity at first.
        running_sum: [BLOCK_M], sum of exponentials so far, relative to ``running_max``; 0 at first.
        scale_log2: scale times log2(e), greater than 0.

    Returns:
        The new ``running_max`` and ``running_sum``; ``rescale`` [BLOCK_M], by which whatever was
        accumulated relative to the old maximum must be multiplied; ``exponentials``
        [BLOCK_M, BLOCK_N] of this tile, relative to the new maximum.
    """
    new_max = tl.maximum(running_max, tl.max(scores, axis=1))
    # While a row has seen nothing its maximum is -inf, and -inf - -inf is NaN: subtract 0 there.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    exponentials = shifted_exponentials(scores, shift, scale_log2)
    rescale = tl.exp2((running_max - shift) * scale_log2)
    running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
    return new_max, running_sum, rescale, exponentials


@triton.jit
def merge_statistics(max_a, sum_a, max_b, sum_b, scale_log2):
    """Statistics of two parts of a row, as one: associative, commutative, with identity (-inf, 0).

    Args:
        max_a, sum_a, max_b, sum_b: largest scores, and sums relative to them; any one shape.
        scale_log2: scale times log2(e), as the sums were computed with.

    Returns:
        The merged maximum and sum, and the factors ``rescale_a`` and ``rescale_b`` by which what was
        accumulated relative to each part's maximum must be multiplied.
    """
    merged_max = tl.maximum(max_a, max_b)
    shift = tl.where(merged_max == float("-inf"), 0.0, merged_max)
    rescale_a = tl.exp2((max_a - shift) * scale_log2)
    rescale_b = tl.exp2((max_b - shift) * scale_log2)
    return merged_max, sum_a * rescale_a + sum_b * rescale_b, rescale_a, rescale_b


@triton.jit
def block_columns(start, BLOCK_N: tl.constexpr):
    """Column numbers from ``start`` on, as a tile with one row: [1, BLOCK_N]."""
    return start + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def load_scores(row_ptr, columns, length, column_stride):
    """A block of one row, [1, BLOCK_N] in float32; minus infinity past the row's end."""
    addresses = row_ptr + columns.to(tl.int64) * column_stride
    return tl.load(addresses, mask=columns < length, other=float("-inf")).to(tl.float32)


@triton.jit
def store_probabilities(row_ptr, columns, length, exponentials, row_sum):
    """Normalise a block [1, BLOCK_N] and store it; a row that saw nothing becomes zeros."""
    probabilities = exponentials / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    tl.store(row_ptr + columns, probabilities.to(row_ptr.dtype.element_ty), mask=columns < length)


@triton.jit
def three_pass_kernel(
    values_ptr,
    probabilities_ptr,
    value_strides,
    length,
    scale_log2,
    BLOCK_N: tl.constexpr,
):
    """One row: its maximum, then its sum, then its probabilities; the row is read three times."""
    row = tl.program_id(0).to(tl.int64)
    values_row = values_ptr + row * value_strides[0]
    # Each column of the block keeps its own maximum and sum; they are combined after the loop.
    block_max = tl.full([1, BLOCK_N], float("-inf"), dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        block_max = tl.maximum(block_max, scores)
    row_max = tl.max(block_max, axis=1)

    shift = tl.where(row_max == float("-inf"), 0.0, row_max)
    block_sum = tl.zeros([1, BLOCK_N], dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        block_sum += shifted_exponentials(scores, shift, scale_log2)
    row_sum = tl.sum(block_sum, axis=1)

    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        exponentials = shifted_exponentials(scores, shift, scale_log2)
        store_probabilities(
            probabilities_ptr + row * length, columns, length, exponentials, row_sum
        )


@triton.jit
def two_pass_kernel(
    values_ptr,
    probabilities_ptr,
    value_strides,
    length,
    scale_log2,
    BLOCK_N: tl.constexpr,
):
    """One row: maximum and sum together, then its probabilities; the row is read twice."""
    row = tl.program_id(0).to(tl.int64)
    values_row = values_ptr + row * value_strides[0]
    running_max = tl.full([1], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([1], dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        running_max, running_sum, _, _ = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )

    shift = tl.where(running_max == float("-inf"), 0.0, running_max)
    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        exponentials = shifted_exponentials(scores, shift, scale_log2)
        store_probabilities(
            probabilities_ptr + row * length, columns, length, exponentials, running_sum
        )


@triton.jit
def fused_kernel(
    values_ptr,
    probabilities_ptr,
    value_strides,
    length,
    scale_log2,
    BLOCK_N: tl.constexpr,
):
    """One row in registers: read once, written once. BLOCK_N is at least the row's length."""
    row = tl.program_id(0).to(tl.int64)
    columns = block_columns(0, BLOCK_N)
    scores = load_scores(values_ptr + row * value_strides[0], columns, length, value_strides[1])
    nothing = tl.full([1], float("-inf"), dtype=tl.float32)
    _, row_sum, _, exponentials = online_softmax_update(
        scores, nothing, tl.zeros([1], dtype=tl.float32), scale_log2
    )
    store_probabilities(probabilities_ptr + row * length, columns, length, exponentials, row_sum)


@triton.jit
def pipelined_kernel(
    values_ptr,
    probabilities_ptr,
    value_strides,
    rows,
    length,
    scale_log2,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As fused_kernel, but a program takes one row after another and fetches the next ones early.

    A program that fills an SM on its own waits for its loads, then computes, then stores, and each
    phase idles what the others use. Here the rows to come are on their way to shared memory meanwhile.
    """
    columns = block_columns(0, BLOCK_N)
    for index in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        scores = load_scores(values_ptr + row * value_strides[0], columns, length, value_strides[1])
        nothing = tl.full([1], float("-inf"), dtype=tl.float32)
        _, row_sum, _, exponentials = online_softmax_update(
            scores, nothing, tl.zeros([1], dtype=tl.float32), scale_log2
        )
        store_probabilities(
            probabilities_ptr + row * length, columns, length, exponentials, row_sum
        )


@triton.jit
def split_statistics_kernel(
    values_ptr,
    split_max_ptr,
    split_sum_ptr,
    value_strides,
    length,
    scale_log2,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Maximum and sum of SPLIT columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    values_row = values_ptr + row * value_strides[0]
    running_max = tl.full([1], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([1], dtype=tl.float32)
    for start in range(0, SPLIT, BLOCK_N):
        columns = block_columns(tl.program_id(1) * SPLIT + start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        running_max, running_sum, _, _ = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
    split = row * tl.num_programs(1) + tl.program_id(1) + tl.arange(0, 1)
    tl.store(split_max_ptr + split, running_max)
    tl.store(split_sum_ptr + split, running_sum)


@triton.jit
def split_normalise_kernel(
    values_ptr,
    probabilities_ptr,
    split_max_ptr,
    split_sum_ptr,
    value_strides,
    length,
    scale_log2,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Merge the statistics of all splits of one row, then write SPLIT of its probabilities."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.num_programs(1)
    row_max = tl.full([1], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([1], dtype=tl.float32)
    for split in range(splits):
        place = row * splits + split + tl.arange(0, 1)
        row_max, row_sum, _, _ = merge_statistics(
            row_max,
            row_sum,
            tl.load(split_max_ptr + place),
            tl.load(split_sum_ptr + place),
            scale_log2,
        )

    values_row = values_ptr + row * value_strides[0]
    shift = tl.where(row_max == float("-inf"), 0.0, row_max)
    for start in range(0, SPLIT, BLOCK_N):
        columns = block_columns(tl.program_id(1) * SPLIT + start, BLOCK_N)
        scores = load_scores(values_row, columns, length, value_strides[1])
        exponentials = shifted_exponentials(scores, shift, scale_log2)
        store_probabilities(
            probabilities_ptr + row * length, columns, length, exponentials, row_sum
        )


@triton.jit
def weighted_average_kernel(
    scores_ptr,
    values_ptr,
    averages_ptr,
    score_strides,
    value_stride,
    length,
    scale_log2,
    BLOCK_N: tl.constexpr,
):
    """Sum of softmax(scores) times values over one row, in one pass: the average is rescaled too."""
    row = tl.program_id(0).to(tl.int64)
    scores_row = scores_ptr + row * score_strides[0]
    running_max = tl.full([1], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([1], dtype=tl.float32)
    accumulator = tl.zeros([1], dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        columns = block_columns(start, BLOCK_N)
        scores = load_scores(scores_row, columns, length, score_strides[1])
        values = tl.load(
            values_ptr + columns.to(tl.int64) * value_stride, mask=columns < length, other=0.0
        )
        running_max, running_sum, rescale, exponentials = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        # What was added so far is relative to the old maximum, as the sum is.
        accumulator = accumulator * rescale + tl.sum(exponentials * values, axis=1)
    average = accumulator / tl.where(running_sum == 0.0, 1.0, running_sum)
    tl.store(averages_ptr + row + tl.arange(0, 1), average.to(averages_ptr.dtype.element_ty))


def three_pass_softmax(values: torch.Tensor) -> torch.Tensor:
    """Softmax of each row, which is read three times: maximum, sum, probabilities.

    Args:
        values: ``(rows, columns)``; float16, bfloat16 or float32; any strides; minus infinity allowed.

    Returns:
        ``(rows, columns)`` in the dtype of ``values``, contiguous. A row of minus infinities, or of no
        columns, gives zeros.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_matrix` says, before any launch.
    """
    return _launch_a_row_each(three_pass_kernel, values, pass_blocks)


def two_pass_softmax(values: torch.Tensor) -> torch.Tensor:
    """Softmax of each row, which is read twice. Arguments and result as :func:`three_pass_softmax`."""
    return _launch_a_row_each(two_pass_kernel, values, pass_blocks)


def fused_softmax(values: torch.Tensor) -> torch.Tensor:
    """Softmax of each row, which is read once. Arguments and result as :func:`three_pass_softmax`.

    Raises:
        ValueError: also if a row is longer than ``LONGEST_FUSED_ROW``.
    """
    check_matrix("values", values)
    if values.shape[1] > LONGEST_FUSED_ROW:
        raise ValueError(
            f"values has rows of {values.shape[1]}; fused_softmax keeps a row in registers and accepts up "
            f"to {LONGEST_FUSED_ROW}: use split_softmax or two_pass_softmax"
        )
    if _needs_pipelining(values):
        return _launch_pipelined(values)
    return _launch_a_row_each(fused_kernel, values, fused_blocks)


def split_softmax(values: torch.Tensor, split: int = SPLIT) -> torch.Tensor:
    """Softmax of each row by several programs, which exchange their maxima and sums.

    For few long rows, where one program a row would leave most of the GPU idle. Each row is read twice.

    Args:
        values: as in :func:`three_pass_softmax`; any number of columns.
        split: columns a program, a power of two of at least 1024.

    Raises:
        ValueError: also if ``split`` is not such a number.
    """
    check_matrix("values", values)
    if not isinstance(split, int) or split < 1024 or split & (split - 1):
        raise ValueError(f"split must be a power of two of at least 1024, got {split}")
    rows, columns = values.shape
    probabilities = values.new_empty(rows, columns)
    if values.numel() == 0:
        return probabilities
    grid = (rows, triton.cdiv(columns, split))
    split_max, split_sum = (values.new_empty(grid, dtype=torch.float32) for _ in range(2))
    shared = (values.stride(), columns, LOG2_E)
    constants = {"SPLIT": split, "BLOCK_N": 1024}
    with launch_device(values):
        split_statistics_kernel[grid](values, split_max, split_sum, *shared, **constants)
        split_normalise_kernel[grid](
            values, probabilities, split_max, split_sum, *shared, **constants
        )
    return probabilities


def weighted_average(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``softmax(scores) @ values`` in one pass over the scores, without storing a probability.

    Args:
        scores: ``(rows, columns)``, as ``values`` of :func:`three_pass_softmax`.
        values: ``(columns,)`` in the same dtype, on the same device; any stride.

    Returns:
        ``(rows,)`` in the inputs' dtype; 0 for a row of minus infinities.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_matrix` says of scores, and if ``values``
            does not fit them.
    """
    check_matrix("scores", scores)
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"values must be a torch.Tensor, got {type(values).__name__}")
    rows, columns = scores.shape
    if values.shape != (columns,):
        raise ValueError(f"values must have shape ({columns},), got {tuple(values.shape)}")
    if values.dtype != scores.dtype:
        raise TypeError(f"values has dtype {values.dtype}, but scores has {scores.dtype}")
    if values.device != scores.device:
        raise ValueError(f"values is on {values.device}, but scores is on {scores.device}")
    averages = scores.new_zeros(rows)
    if scores.numel():
        with launch_device(scores):
            weighted_average_kernel[(rows,)](
                scores,
                values,
                averages,
                scores.stride(),
                values.stride(0),
                columns,
                LOG2_E,
                BLOCK_N=2048,
            )
    return averages


def _launch_a_row_each(kernel, values: torch.Tensor, blocks: Callable) -> torch.Tensor:
    check_matrix("values", values)
    rows, columns = values.shape
    constants, options = blocks(columns)
    probabilities = values.new_empty(rows, columns)
    if values.numel():
        with launch_device(values):
            kernel[(rows,)](
                values, probabilities, values.stride(), columns, LOG2_E, **constants, **options
            )
    return probabilities


def _needs_pipelining(values: torch.Tensor) -> bool:
    """Whether rows are long, of 16-bit numbers, and two fit into this GPU's shared memory."""
    columns = values.shape[1]
    if columns <= LONGEST_ROW_TO_SHARE_AN_SM or values.element_size() != 2:
        return False
    if kernels.INTERPRETED:
        return True
    limits = torch.cuda.get_device_properties(values.device)
    constants, _ = PIPELINED
    needed = (constants["STAGES"] - 1) * constants["BLOCK_N"] * values.element_size()
    return limits.shared_memory_per_block_optin > needed


def _launch_pipelined(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    probabilities = values.new_empty(rows, columns)
    if values.is_cuda:
        programs = torch.cuda.get_device_properties(values.device).multi_processor_count
    else:
        programs = 2
    constants, options = PIPELINED
    if values.numel():
        with launch_device(values):
            pipelined_kernel[(min(programs, rows),)](
                values,
                probabilities,
                values.stride(),
                rows,
                columns,
                LOG2_E,
                **constants,
                **options,
            )
    return probabilities


# Block sizes and warps below were found by timing on an H200; benchmarks/online_softmax.md keeps the log.
PIPELINED = {"BLOCK_N": LONGEST_FUSED_ROW, "STAGES": 3}, {"num_warps": 32}


def fused_blocks(columns: int) -> tuple[dict, dict]:
    """Block and warps of :func:`fused_kernel` for rows of this length."""
    block_n = max(16, triton.next_power_of_2(columns))
    # 16 elements a thread, until 16 warps are reached.
    return {"BLOCK_N": block_n}, {"num_warps": min(16, max(1, block_n // 512))}


def pass_blocks(columns: int) -> tuple[dict, dict]:
    """Block and warps of the two- and three-pass kernels for rows of this length."""
    block_n = min(4096, max(16, triton.next_power_of_2(columns)))
    return {"BLOCK_N": block_n}, {"num_warps": 8 if block_n == 4096 else 4}


def configurations() -> Iterator[Configuration]:
    """Every kernel in each dtype; the fused one at its shortest and longest typical rows."""
    for dtype in DTYPES:
        pointer, name = POINTER_TYPES[dtype], str(dtype).removeprefix("torch.")
        row = {
            "value_strides": ("i32", "unit"),
            "length": "i32x16",
            "scale_log2": "fp32",
        }
        both = {"values_ptr": pointer, "probabilities_ptr": pointer} | row
        for kernel in (three_pass_kernel, two_pass_kernel):
            yield Configuration(name, kernel, both, {"BLOCK_N": 4096}, {"num_warps": 8})
        for columns in (1024, 4096, LONGEST_FUSED_ROW):
            constants, options = fused_blocks(columns)
            yield Configuration(
                f"{name}, {columns} columns", fused_kernel, both, constants, options
            )
        if dtype.itemsize == 2:
            yield Configuration(
                f"{name}, {LONGEST_FUSED_ROW} columns",
                pipelined_kernel,
                both | {"rows": "i32"},
                *PIPELINED,
                architectures=(80, 90, 100),  # the others have too little shared memory
            )
        split = {"split_max_ptr": "*fp32", "split_sum_ptr": "*fp32"} | row
        constants = {"SPLIT": SPLIT, "BLOCK_N": 1024}
        yield Configuration(
            name, split_statistics_kernel, {"values_ptr": pointer} | split, constants
        )
        yield Configuration(name, split_normalise_kernel, both | split, constants)
        average = {
            **dict.fromkeys(("scores_ptr", "values_ptr", "averages_ptr"), pointer),
            "score_strides": ("i32", "unit"),
            "value_stride": "unit",
            "length": "i32x16",
            "scale_log2": "fp32",
        }
        yield Configuration(name, weighted_average_kernel, average, {"BLOCK_N": 2048})
