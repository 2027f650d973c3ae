"""The public tests of `quantize_blocks`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room. `student` holds the learner's
function. Expected scales are computed in float64, and may be off by a few units in the last place of
float32. A value may be off by half of e4m3's step at its place, which is what rounding to nearest allows,
and by as many units of float32.
"""

import pytest
import torch

import kernels
from instruments import traffic

EPSILON = torch.finfo(torch.float32).eps
LARGEST = 448.0
UNITS = 4  # of float32: two divisions and a product, and one to spare


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed elements."""
    generator = torch.Generator().manual_seed(1000 * rows + columns)
    return torch.randn(rows, columns, generator=generator).to(kernels.device(), dtype)


def call(student, matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The values in float32, and the scales."""
    if not kernels.INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8: set TRITON_INTERPRET=1 before Python starts")
    result = student.quantize_blocks(matrix, block)
    assert isinstance(result, tuple | list) and len(result) == 2, (
        "The function must return two tensors, the values and the scales, and returned a "
        f"{type(result).__name__}."
    )
    for name, tensor in zip(("values", "scales"), result, strict=True):
        assert isinstance(tensor, torch.Tensor), (
            f"The {name} must be a tensor, and are a {type(tensor).__name__}."
        )
    values, scale = result
    assert values.shape == matrix.shape, (
        f"The values must have the shape of matrix, {tuple(matrix.shape)}, and have "
        f"{tuple(values.shape)}."
    )
    blocks = (-(-matrix.shape[0] // block),)
    assert scale.shape == blocks, (
        f"With {matrix.shape[0]} rows in blocks of {block} the scales must have shape {blocks}, one for "
        f"each block, the last included, and have {tuple(scale.shape)}."
    )
    return values.float(), scale


def expected_scale(matrix: torch.Tensor, block: int) -> torch.Tensor:
    amax = torch.stack([part.double().abs().amax() for part in matrix.split(block)])
    return torch.where(amax == 0, 1.0, amax / LARGEST)


def assert_right(
    student, matrix: torch.Tensor, block: int, mistake: str, looks_at: tuple = ("scale", "values")
) -> None:
    """Compare what the function returns, or a part of it, with float64."""
    expected = expected_scale(matrix, block)
    exact = matrix.double() / expected.repeat_interleave(block)[: len(matrix), None]
    # The power of two below a number, of which e4m3's steps are eighths; from 2^-6 down they stay.
    power = exact.abs().clamp(min=2.0**-6).log2().floor().exp2()
    values, scale = call(student, matrix, block)
    if "scale" in looks_at:
        wrong = ~((scale.double() - expected).abs() <= UNITS * EPSILON * expected)
        assert not wrong.any(), (
            f"{mistake} (Block {wrong.nonzero()[0, 0]} has scale {scale[wrong][0]:.4g}; expected "
            f"{expected[wrong][0]:.4g}.)"
        )
    if "values" in looks_at:
        error = (values.double() - exact).abs()
        wrong = ~(error <= power / 16 + UNITS * EPSILON * exact.abs())
        assert not wrong.any(), (
            f"{mistake} (The first wrong value is {values[wrong][0]:.4g}; before rounding it should be "
            f"{exact[wrong][0]:.4g}.)"
        )


def test_scale(student):
    assert_right(
        student,
        draw(32, 64).abs(),
        16,
        "The scales are wrong: a scale is the largest magnitude of its block over 448, so that a value "
        "times its scale is the element again.",
        ("scale",),
    )


def test_values(student):
    assert_right(
        student,
        draw(32, 64).abs(),
        16,
        "The values are not the elements over the scale, rounded to the nearest number of e4m3: multiply "
        "with 448 / amax, and convert with .to(tl.float8e4nv), not to another format.",
        ("values",),
    )


def test_negative_numbers(student):
    assert_right(
        student,
        torch.cat([draw(16, 32).abs(), -2 * draw(16, 32).abs()], 1),
        16,
        "Blocks go wrong in which the largest magnitude is that of a negative element: take the maximum "
        "of tl.abs(tile).",
    )


def test_blocks_apart(student):
    matrix = draw(48, 32).abs()
    matrix[20, 5] = 10_000
    assert_right(
        student,
        matrix,
        16,
        "An outlier in one block changes another, or a block has more than one scale: all rows of a block "
        "share one amax, and no block looks at another.",
    )


@pytest.mark.parametrize("rows", [1, 15, 17, 33])
def test_last_block(student, rows):
    assert_right(
        student,
        draw(rows, 32).abs() / 100,
        16,
        f"{rows} rows in blocks of 16 go wrong: round the number of blocks up, and let rows past the end "
        "count as 0.",
    )


@pytest.mark.parametrize("columns", [1, 48, 129, 200])
def test_any_number_of_columns(student, columns):
    mistake = (
        f"{columns} columns go wrong: tl.arange needs a power of two, so take the next one up, and let "
        "what is past the last column neither count nor be written."
    )
    call(student, draw(16, 64), 16)  # an error here has nothing to do with the number of columns
    try:
        assert_right(student, draw(16, columns).abs() / 100, 16, mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


def test_zero_block(student):
    matrix = draw(48, 32).abs()
    matrix[16:32] = 0
    values, scale = call(student, matrix, 16)
    assert not values[16:32].isnan().any() and not scale[1].isnan(), (
        "A block of zeros gives NaN: 448 / 0 is infinite, and infinity times 0 is NaN, so divide by "
        "another number there."
    )
    assert (values[16:32] == 0).all(), "A block of zeros must have values of 0."
    assert scale[1] == 1, f"A block of zeros must have a scale of 1, and has {scale[1]:.4g}."


@pytest.mark.parametrize("size", [1e-6, 1e3])
def test_small_numbers(student, size):
    assert_right(
        student,
        size * draw(32, 32).abs(),
        16,
        f"Blocks of elements around {size:g} go wrong: the scale follows the block, however small or large "
        "its elements are, without a bound and without a constant added.",
    )


def test_strides(student):
    mistake = (
        "A matrix that is a view goes wrong: read with both of its strides, matrix.stride(0) and "
        "matrix.stride(1), while the values are contiguous."
    )
    assert_right(student, draw(32, 48).abs().T, 16, mistake)
    assert_right(student, draw(32, 128).abs()[:, ::2], 16, mistake)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    assert_right(
        student,
        (draw(32, 64).abs() / 1024).to(dtype),
        16,
        f"float32 works and {dtype} does not: convert to float32 right after loading, since 448 / amax and "
        "the products with it need more precision and range.",
    )


def test_outputs(student):
    call(student, draw(32, 64), 16)  # for what it says of the shapes
    values, scale = student.quantize_blocks(draw(64, 32).T, 16)
    assert values.dtype == torch.float8_e4m3fn, (
        f"The values must be torch.float8_e4m3fn, and are {values.dtype}."
    )
    assert scale.dtype == torch.float32, f"The scales must be float32, and are {scale.dtype}."
    assert values.is_contiguous(), (
        "The values must be contiguous, whatever the strides of matrix: torch.empty_like takes those over."
    )


@pytest.mark.parametrize("shape", [(48, 64), (32, 128)], ids=str)
def test_loads_once(student, shape):
    matrix = draw(*shape)
    call(student, matrix, 16)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, matrix, 16)
    loaded = sum(buffer.loaded for buffer in counted.buffers.values())
    needed = matrix.numel() * matrix.element_size()
    assert loaded == needed, (
        f"Your kernel loads {loaded} bytes of a matrix that has {needed}: each element must be loaded "
        "once, and kept in registers between amax and the rounding."
    )


def test_inputs_unchanged(student):
    matrix = draw(32, 32)
    before = matrix.clone()
    call(student, matrix, 16)
    assert torch.equal(matrix, before), (
        "The function changed matrix, which belongs to the caller: write to the outputs only."
    )
