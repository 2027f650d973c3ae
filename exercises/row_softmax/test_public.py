"""The public tests of `ragged_softmax`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room. `student` holds the learner's
function; while it runs, memory that PyTorch allocates without a value is filled with NaN. Expected
values are computed in float64. The error allowed is twice that of PyTorch's softmax in float32 rounded
to the dtype, plus a few units in the last place of float32.
"""

import pytest
import torch

import kernels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed values."""
    generator = torch.Generator().manual_seed(1000 * rows + columns)
    return torch.randn(rows, columns, generator=generator).to(kernels.device(), dtype)


def integers(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=kernels.device())


def full(values: torch.Tensor) -> torch.Tensor:
    """Lengths that make every row count whole."""
    return integers(*[values.shape[1]] * values.shape[0])


def inside(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which elements lie within their row's length."""
    return torch.arange(values.shape[1], device=values.device) < lengths[:, None]


def softmax(values: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the exercise asks for, computed by PyTorch in `dtype`."""
    outside = ~inside(values, lengths)
    scores = values.to(dtype).masked_fill(outside, -torch.inf)
    return scores.softmax(1).masked_fill(outside, 0.0)


def call(student, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    result = student.ragged_softmax(values, lengths)
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


def assert_right(student, values: torch.Tensor, lengths: torch.Tensor, mistake: str) -> None:
    """Compare the elements within the lengths with the exact softmax."""
    exact = softmax(values, lengths, torch.float64)
    careful = softmax(values, lengths, torch.float32).to(values.dtype)
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * exact.max()
    error = (call(student, values, lengths) - exact).abs()[inside(values, lengths)].max()
    assert error <= allowed, f"{mistake} (Largest error {error:.1e}; allowed {allowed:.1e}.)"


def test_full_rows(student):
    values = draw(37, 64)
    assert_right(
        student,
        values,
        full(values),
        "Rows that count whole are wrong already: each element is exp(value - row maximum) divided by the "
        "row's sum of these, and the grid needs one program for every row.",
    )


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@every_dtype
def test_ragged_rows(student, dtype, index_dtype):
    assert_right(
        student,
        draw(6, 64, dtype),
        integers(1, 2, 17, 32, 63, 64, dtype=index_dtype),
        "Elements beyond a row's length count in its sum: load them as minus infinity "
        '(mask=column < length, other=float("-inf")), because exp(0) is 1 and not 0.',
    )


def test_beyond_the_length(student):
    values, lengths = draw(6, 64), integers(1, 2, 17, 32, 63, 64)
    rest = call(student, values, lengths)[~inside(values, lengths)]
    assert not rest.isnan().any(), (
        "Elements beyond a row's length were not written, or are NaN: torch.empty leaves whatever was in "
        "memory, so store zeros there too (mask=column < columns)."
    )
    assert (rest == 0).all(), (
        f"Elements beyond a row's length must be 0, and one is {rest.abs().max():.3g}: load minus infinity "
        "there, whose exponential is 0."
    )


@every_dtype
def test_empty_rows(student, dtype):
    values, lengths = draw(4, 64, dtype), integers(0, 3, 0, 64)
    rows = call(student, values, lengths)[lengths == 0]
    assert not rows.isnan().any(), (
        "A row of length 0 is NaN: its maximum is -inf, and -inf - -inf is NaN as 0 / 0 is; put 0 and 1 in "
        "place of that maximum and sum, and store the row's zeros."
    )
    assert (rows == 0).all(), "A row of length 0 must be all zeros: none of its elements count."


@pytest.mark.parametrize("offset", [8192, -8192])
@every_dtype
def test_large_values(student, dtype, offset):
    # Rows far from one another, and steps of 64, which every dtype holds exactly here.
    rows = 1024 * torch.arange(4, device=kernels.device())[:, None]
    values = (offset + rows + 64 * draw(4, 64).round()).to(dtype)
    happens = "is infinite" if offset > 0 else "is 0 for every element, and so is the sum"
    assert_right(
        student,
        values,
        full(values),
        f"Values around {offset} go wrong, where exp(value) {happens}: subtract the row's own maximum "
        "before the exponential.",
    )


@pytest.mark.parametrize("columns", [1, 63, 65, 1000, 5000])
def test_any_number_of_columns(student, columns):
    values = draw(2, 64)
    call(
        student, values, full(values)
    )  # an error here has nothing to do with the number of columns
    values = draw(2, columns)
    mistake = (
        f"64 columns work and {columns} do not: BLOCK must be a power of two that is at least columns "
        "(triton.next_power_of_2), and what lies past the row's end must be loaded as minus infinity."
    )
    try:
        assert_right(student, values, full(values), mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


@pytest.mark.parametrize("layout", ["every second row", "every second column", "transposed"])
def test_strides(student, layout):
    values = {
        "every second row": draw(10, 64)[::2],
        "every second column": draw(5, 128)[:, ::2],
        "transposed": draw(64, 5).T,
    }[layout]
    row_stride, column_stride = values.stride()
    assert_right(
        student,
        values,
        full(values),
        f"A matrix whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: element (row, column) is at row * values.stride(0) + "
        "column * values.stride(1).",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_computes_in_float32(student, dtype):
    values = draw(16, 1024, dtype)
    values[:, 5] = 8.0  # far from the other values, so a difference rounded to the dtype is far off
    exact = softmax(values, full(values), torch.float64)
    careful = softmax(values, full(values), torch.float32).to(dtype)
    result = call(student, values, full(values))

    def rounding(probabilities):
        return (probabilities / exact - 1).square().mean().sqrt()

    def bias(probabilities):
        # Roundings of single elements average out; that of the row's sum moves them all one way.
        return (probabilities / exact - 1).mean(1).abs().max()

    for error in (rounding, bias):
        allowed = 2 * error(careful) + 4 * torch.finfo(torch.float32).eps
        assert error(result) <= allowed, (
            f"{dtype} lost more than rounding the result costs: convert the values with .to(tl.float32) "
            "as they are loaded, and round to the output's dtype only when storing. "
            f"(The {error.__name__} is {error(result):.1e}; allowed {allowed:.1e}.)"
        )


@every_dtype
def test_output_dtype(student, dtype):
    values = draw(3, 64, dtype)
    result = call(student, values, full(values))
    assert result.dtype == dtype, (
        f"Values in {dtype} gave an output in {result.dtype}: allocate the output with dtype=values.dtype."
    )


def test_output_is_contiguous(student):
    values = draw(64, 5).T
    result = call(student, values, full(values))
    assert result.is_contiguous(), (
        f"The output has strides {result.stride()} and must be contiguous: torch.empty_like copies the "
        "strides of a transposed input, torch.empty(values.shape, ...) does not."
    )


def test_inputs_unchanged(student):
    values, lengths = draw(5, 64), integers(0, 1, 17, 63, 64)
    before = {"values": values.clone(), "lengths": lengths.clone()}
    call(student, values, lengths)
    for name, tensor in (("values", values), ("lengths", lengths)):
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belong to the caller: write to the output only."
        )
