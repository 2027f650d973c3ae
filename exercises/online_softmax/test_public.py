"""The public tests of `two_pass_softmax`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room: unless a test is about a maximum
that rises, a row's maximum lies in the first block that is not hidden. `student` holds the learner's
function; while it runs, memory that PyTorch allocates without a value is filled with NaN. Expected
values are computed in float64. The error allowed is twice that of PyTorch's softmax in float32 rounded
to the dtype, plus a few units in the last place of float32.
"""

import math

import pytest
import torch

import kernels
from instruments import traffic

BLOCK = 1024
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed values, and more of them behind, which a missing mask would read."""
    generator = torch.Generator().manual_seed(1000 * rows + columns)
    numbers = torch.randn(rows * columns + BLOCK, generator=generator).to(kernels.device(), dtype)
    return numbers[: rows * columns].view(rows, columns)


def draw_from_the_peak(rows: int, columns: int, dtype=torch.float32, peak: int = 0) -> torch.Tensor:
    """Values whose row maximum is at column `peak`, so that later blocks do not raise it."""
    values = draw(rows, columns, dtype)
    values[:, peak] = 6.0
    return values


def softmax(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the exercise asks for, computed by PyTorch in `dtype`."""
    hidden = (values == -torch.inf).all(1, keepdim=True)
    return values.to(dtype).masked_fill(hidden, 0.0).softmax(1).masked_fill(hidden, 0.0)


def call(student, values: torch.Tensor) -> torch.Tensor:
    result = student.two_pass_softmax(values)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = tuple(values.shape), tuple(result.shape)
    assert came == expected, (
        f"The output must have the shape of values, {expected}, and has {came}."
    )
    assert result.device == values.device, (
        f"The output must be on the device of values, {values.device}, and is on {result.device}."
    )
    return result


def assert_right(student, values: torch.Tensor, mistake: str) -> None:
    """Compare with the exact softmax."""
    exact = softmax(values, torch.float64)
    careful = softmax(values, torch.float32).to(values.dtype)
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * exact.max()
    error = (call(student, values) - exact).abs().max()
    assert error <= allowed, f"{mistake} (Largest error {error:.1e}; allowed {allowed:.1e}.)"


def test_one_block(student):
    values = draw(37, BLOCK)
    assert not call(student, values).isnan().any(), (
        "Rows of one block are NaN already: the first block finds the running maximum at -inf, so rescale "
        "by exp(old_max - new_max), which is 0 then; exp(new_max - old_max) is infinite."
    )
    assert_right(
        student,
        values,
        "Rows of one block are wrong already: each element is exp(value - row maximum) divided by the "
        "row's sum of these, and the grid needs one program for every row.",
    )


def test_several_blocks(student):
    assert_right(
        student,
        draw_from_the_peak(3, 5 * BLOCK),
        f"Rows of {BLOCK} columns work and rows of {5 * BLOCK} do not: both loops must visit every block, "
        "for start in range(0, columns, BLOCK), and the sum must grow with each.",
    )


def test_rising_maximum(student):
    steps = 2.0 * torch.arange(4, device=kernels.device()).repeat_interleave(BLOCK)
    assert_right(
        student,
        draw(3, 4 * BLOCK) + steps,
        "When a later block raises the maximum, the sum goes wrong: what it holds so far is relative to "
        "the old maximum, so multiply it by exp(old_max - new_max), not the inverse, before adding more.",
    )


@pytest.mark.parametrize("order", ["rise", "fall"])
def test_distant_blocks(student, order):
    steps = 3000.0 * torch.arange(-4, 0, device=kernels.device()).repeat_interleave(BLOCK)
    values = draw(3, 4 * BLOCK) + (steps if order == "rise" else -steps)
    assert_right(
        student,
        values,
        f"Blocks that {order} by 3000 each go wrong, where the maximum must be that of all blocks so far: "
        "start at -inf, take tl.maximum(old_max, tl.max(block)), and keep it as the next block's old_max.",
    )


def test_hidden_first_block(student):
    values = draw_from_the_peak(3, 3 * BLOCK, peak=BLOCK)
    values[:, :BLOCK] = -math.inf
    assert not call(student, values).isnan().any(), (
        "A row whose first block is all -inf becomes NaN: the maximum is still -inf then, and -inf - -inf "
        "is NaN, so subtract 0 instead: shift = tl.where(new_max == float('-inf'), 0.0, new_max)."
    )
    assert_right(
        student,
        values,
        "A row whose first block is all -inf goes wrong: such a block must leave the sum at 0.",
    )


@every_dtype
def test_hidden_rows(student, dtype):
    values = draw_from_the_peak(4, 2 * BLOCK, dtype)
    values[1::2] = -math.inf
    rows = call(student, values)[1::2]
    assert not rows.isnan().any(), (
        "A row of -inf is NaN: its maximum is -inf and its sum is 0, and both -inf - -inf and 0 / 0 are "
        "NaN; put 0 and 1 in their place."
    )
    assert (rows == 0).all(), "A row of -inf must become all zeros: none of its elements count."


@pytest.mark.parametrize("columns", [1, 63, BLOCK + 1, 2000, 5000])
def test_any_number_of_columns(student, columns):
    call(student, draw(2, BLOCK))  # an error here has nothing to do with the number of columns
    mistake = (
        f"{BLOCK} columns work and {columns} do not: the last block reaches past the row's end, so load "
        "with mask=column < columns and other=float('-inf'), because a 0 adds an exponential to the sum."
    )
    try:
        assert_right(student, draw_from_the_peak(2, columns), mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


def test_two_reads(student):
    values = draw(3, 5000)
    call(student, values)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, values)
    loaded = sum(buffer.loaded for buffer in counted.buffers.values())
    reads = loaded / (values.numel() * values.element_size())
    assert reads >= 0.99, (
        f"Your kernels load every value {reads:.1f} times: the softmax must be computed by them, not by "
        "PyTorch."
    )
    # Programs may exchange a few maxima and sums; half a matrix more is no longer a few.
    assert reads <= 2.5, (
        f"Every value is loaded {reads:.1f} times and may be only twice: find maximum and sum in the same "
        "loop (rescale the sum when the maximum rises), then write in a second one."
    )


def test_long_rows(student):
    # One block more than a Triton tile can hold.
    columns = 2**20 + BLOCK
    call(student, draw(1, BLOCK))
    mistake = (
        f"A row of {columns} columns does not work: no tile can hold it whole, so keep BLOCK at {BLOCK} "
        "whatever the row's length."
    )
    try:
        assert_right(student, draw_from_the_peak(1, columns, torch.float16), mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


@pytest.mark.parametrize("layout", ["every second row", "every second column", "transposed"])
def test_strides(student, layout):
    values = {
        "every second row": draw(10, BLOCK)[::2],
        "every second column": draw(5, 2 * BLOCK)[:, ::2],
        "transposed": draw(BLOCK, 5).T,
    }[layout]
    row_stride, column_stride = values.stride()
    assert_right(
        student,
        values,
        f"A matrix whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: element (row, column) is at row * values.stride(0) + "
        "column * values.stride(1).",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_computes_in_float32(student, dtype):
    values = draw(16, BLOCK, dtype)
    values[:, 5] = 8.0  # far from the other values, so a difference rounded to the dtype is far off
    exact = softmax(values, torch.float64)
    careful = softmax(values, torch.float32).to(dtype)
    result = call(student, values)

    def rounding(probabilities):
        return (probabilities / exact - 1).square().mean().sqrt()

    def bias(probabilities):
        # Roundings of single elements average out; that of the row's sum moves them all one way.
        return (probabilities / exact - 1).mean(1).abs().max()

    for error in (rounding, bias):
        allowed = 2 * error(careful) + 4 * torch.finfo(torch.float32).eps
        assert error(result) <= allowed, (
            f"{dtype} lost more than rounding the result costs: convert the values with .to(tl.float32) as "
            "they are loaded, keep maximum and sum in float32, and round only when storing. "
            f"(The {error.__name__} is {error(result):.1e}; allowed {allowed:.1e}.)"
        )


@every_dtype
def test_output_dtype(student, dtype):
    values = draw(3, BLOCK, dtype)
    result = call(student, values)
    assert result.dtype == dtype, (
        f"Values in {dtype} gave an output in {result.dtype}: allocate the output with dtype=values.dtype."
    )


def test_output_is_contiguous(student):
    result = call(student, draw(BLOCK, 5).T)
    assert result.is_contiguous(), (
        f"The output has strides {result.stride()} and must be contiguous: torch.empty_like copies the "
        "strides of a transposed input, torch.empty(values.shape, ...) does not."
    )


def test_inputs_unchanged(student):
    values = draw(4, BLOCK)
    values[1] = -math.inf
    values[2, ::3] = -math.inf
    before = values.clone()
    call(student, values)
    assert torch.equal(values, before), (
        "The function changed values, which belong to the caller: write to the output only."
    )
