"""The public tests of `hadamard_rows`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room. `student` holds the learner's
function. Expected values are computed in float64. An output is a sum of d terms, taken in log2(d) steps,
and a product: each may be off by half a unit in the last place of float32 at the sum of the terms'
magnitudes, and the result by half a unit of its own dtype.
"""

import math

import pytest
import torch

import kernels


def draw(rows: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed elements."""
    generator = torch.Generator().manual_seed(1000 * rows + d)
    return torch.randn(rows, d, generator=generator).to(kernels.device(), dtype)


def draw_signs(d: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(d)
    signs = 1.0 - 2.0 * torch.randint(2, (d,), generator=generator)
    return signs.to(kernels.device())


def plus(d: int) -> torch.Tensor:
    """Signs that flip nothing."""
    return torch.ones(d, device=kernels.device())


def hadamard_matrix(d: int) -> torch.Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64, device=kernels.device())
    while len(matrix) < d:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def call(student, matrix: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    result = student.hadamard_rows(matrix, signs)
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {type(result).__name__}."
    )
    assert result.shape == matrix.shape, (
        f"The output must have the shape of matrix, {tuple(matrix.shape)}, and has "
        f"{tuple(result.shape)}."
    )
    return result


def assert_right(student, matrix: torch.Tensor, signs: torch.Tensor, mistake: str) -> None:
    d = matrix.shape[1]
    flipped = matrix.double() * signs
    exact = flipped @ hadamard_matrix(d) / math.sqrt(d)
    largest = flipped.abs().sum(1, keepdim=True) / math.sqrt(d)
    single, own = (torch.finfo(dtype).eps / 2 for dtype in (torch.float32, matrix.dtype))
    allowed = (math.log2(d) + 2) * single * largest + own * exact.abs()
    error = (call(student, matrix, signs).double() - exact).abs()
    wrong = ~(error <= allowed)
    assert not wrong.any(), f"{mistake} (Largest error {error[wrong].max():.1e}.)"


def test_one_element(student):
    for place in (0, 1, 2, 5, 15):
        matrix = torch.zeros(1, 16, device=kernels.device())
        matrix[0, place] = 3
        signs = call(student, matrix, plus(16))[0].sign()
        assert torch.equal(signs.double(), hadamard_matrix(16)[place]), (
            f"A row whose only element is number {place} must give the signs of row {place} of H: "
            "the first of a pair gets first + second, the other first - second, for every distance 1, 2, "
            "4, ... below d."
        )


def test_length(student):
    matrix = torch.zeros(2, 64, device=kernels.device())
    matrix[0, 0], matrix[1, 17] = 2, -5
    length = call(student, matrix, plus(64)).norm(dim=1)
    allowed = 64 * torch.finfo(torch.float32).eps * matrix.norm(dim=1)  # it is a sum of 64 squares
    assert ((length - matrix.norm(dim=1)).abs() <= allowed).all(), (
        "Rows do not keep their length: divide by the root of d, once."
    )


def test_signs(student):
    matrix = torch.zeros(1, 64, device=kernels.device())
    matrix[0, 3], matrix[0, 4] = 1, 1
    signs = plus(64)
    signs[4] = -1
    same = matrix * signs
    rotated, expected = call(student, matrix, signs), call(student, same, plus(64))
    assert torch.equal(rotated, expected), (
        "Flipping a column's sign must be the same as negating that column of matrix: multiply with signs "
        "before the butterflies."
    )


def test_whole_rows(student):
    assert_right(
        student,
        draw(16, 64),
        plus(64),
        "Rows are wrong in which all elements count: every one of the log2(d) distances is needed once, "
        "and then the division by the root of d.",
    )


@pytest.mark.parametrize("d", [16, 32, 128, 256])
def test_every_power_of_two(student, d):
    call(student, draw(16, 64), plus(64))  # an error here has nothing to do with d
    matrix = torch.zeros(d, d, device=kernels.device()).fill_diagonal_(1.0)
    mistake = f"64 columns may be right, and {d} are not: there are log2(d) steps, from 1 to d / 2."
    try:
        signs = call(student, matrix, plus(d)).sign().double()
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error
    assert torch.equal(signs, hadamard_matrix(d)), mistake


@pytest.mark.parametrize("rows", [1, 17, 100])
def test_any_number_of_rows(student, rows):
    matrix = torch.zeros(rows, 64, device=kernels.device())
    matrix[:, 0] = 1
    rotated = call(student, matrix, plus(64))
    assert (rotated > 0).all(), (
        f"With {rows} rows some are not written: round the number of programs up, and mask rows past the "
        "end."
    )


def test_scores(student):
    query, key, signs = draw(8, 128), draw(9, 128), draw_signs(128)
    rotated = [call(student, matrix, signs).double() for matrix in (query, key)]
    exact = query.double() @ key.double().T
    # Each element's error, as above; the sum of a row's magnitudes is at most the root of d its length.
    of_a_row = (math.log2(128) + 2) * torch.finfo(torch.float32).eps / 2 * math.sqrt(128)
    largest = query.double().norm(dim=1)[:, None] * key.double().norm(dim=1)
    assert ((rotated[0] @ rotated[1].T - exact).abs() <= 2 * of_a_row * largest).all(), (
        "The scores of rotated queries and keys differ from those of the others: the rotation must be "
        "orthogonal, with the same signs for both."
    )


def test_strides(student):
    mistake = (
        "A matrix that is a view goes wrong: read with both of its strides, matrix.stride(0) and "
        "matrix.stride(1), while the output is contiguous."
    )
    for matrix in (draw(64, 32).T, draw(32, 128)[:, ::2]):
        same = matrix.contiguous()
        expected = call(student, same, plus(64))
        assert torch.equal(call(student, matrix, plus(64)), expected), mistake


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    matrix = draw(16, 64, dtype)
    matrix[0] = 0
    matrix[0, :4] = 30_000  # 120 000 before the division by 8
    assert_right(
        student,
        matrix,
        plus(64),
        f"float32 works and {dtype} does not: all sums are taken in float32, and rounded once, in the end.",
    )


def test_outputs(student):
    call(student, draw(16, 64), plus(64))  # for what it says of the shapes
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rotated = student.hadamard_rows(draw(64, 16, dtype).T, plus(64))
        assert rotated.dtype == dtype, (
            f"The output must have the dtype of matrix, {dtype}, and has {rotated.dtype}."
        )
        assert rotated.is_contiguous(), (
            "The output must be contiguous, whatever the strides of matrix: torch.empty_like takes those "
            "over."
        )


def test_inputs_unchanged(student):
    matrix, signs = draw(16, 64), draw_signs(64)
    before = matrix.clone(), signs.clone()
    call(student, matrix, signs)
    for name, tensor, copy in zip(("matrix", "signs"), (matrix, signs), before, strict=True):
        assert torch.equal(tensor, copy), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
