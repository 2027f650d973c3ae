"""The public tests of `merge`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room. `student` holds the learner's
function. Expected values are computed in float64. A maximum must be exact. A sum goes through a
difference, an exponential, a product and an addition, each of which may be off by a unit or so in the
last place of float32, once a merge: that is the error allowed.
"""

import math

import pytest
import torch

import kernels

EMPTY = (-math.inf, 0.0)
ROUNDING = 8 * torch.finfo(torch.float32).eps  # of one merge, relative to the sum


def pair(maximum, total) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        torch.as_tensor(numbers, dtype=torch.float32, device=kernels.device())
        for numbers in (maximum, total)
    )


def draw(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima and sums of parts of 16 normally distributed scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(*shape, 16, generator=generator)
    maximum = scores.amax(-1)
    return pair(maximum, (scores - maximum[..., None]).exp().sum(-1))


def draw_parts(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of 1000 rows, each empty in other rows than the next."""
    row = torch.arange(1000, device=kernels.device())
    return [
        tuple(
            numbers.masked_fill(row % 4 == part, nothing)
            for numbers, nothing in zip(draw(part, 1000), EMPTY, strict=True)
        )
        for part in range(count)
    ]


def exact_merge(*parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of all parts together, in float64."""
    maxima, sums = (torch.stack(numbers).double() for numbers in zip(*parts, strict=True))
    whole = maxima.amax(0)
    shift = whole.masked_fill(whole == -torch.inf, 0.0)
    return whole, (sums * (maxima - shift).exp()).sum(0)


def call(student, a, b) -> tuple[torch.Tensor, torch.Tensor]:
    result = student.merge(*(numbers.clone() for numbers in (*a, *b)))
    kind = type(result).__name__
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two tensors, the maximum and the sum, and returned a {kind}."
    )
    for name, tensor in zip(("maximum", "sum"), result, strict=True):
        kind = type(tensor).__name__
        assert isinstance(tensor, torch.Tensor), f"The {name} must be a tensor, and is a {kind}."
        expected, came = tuple(a[0].shape), tuple(tensor.shape)
        assert came == expected, (
            f"The {name} must have the shape of the arguments, {expected}, and has {came}."
        )
        assert tensor.dtype == torch.float32, (
            f"The {name} must be float32, as the arguments are, and is {tensor.dtype}."
        )
        assert tensor.device == a[0].device, (
            f"The {name} must be on the device of the arguments, {a[0].device}, and is on {tensor.device}."
        )
    return tuple(result)


def assert_right(student, a, b, mistake: str) -> None:
    """Compare with the exact pair."""
    (maximum, total), (exact_max, exact_sum) = call(student, a, b), exact_merge(a, b)
    assert torch.equal(maximum.double(), exact_max), (
        f"{mistake} (The maximum must be exactly the larger of the two.)"
    )
    error, allowed = (total - exact_sum).abs(), ROUNDING * exact_sum
    assert (error <= allowed).all(), f"{mistake} (Largest error of a sum {error.max():.1e}.)"


def test_two_parts(student):
    a, b = draw(0, 100), draw(1, 100)
    larger = a[0] >= b[0]
    assert_right(
        student,
        tuple(numbers[larger] for numbers in a),
        tuple(numbers[larger] for numbers in b),
        "Two parts are merged wrongly: each sum is relative to its own part's maximum, so multiply it by "
        "exp(its maximum - the larger maximum) before the two are added.",
    )


@pytest.mark.parametrize("offset", [10_000.0, -10_000.0])
def test_distant_maxima(student, offset):
    steps = torch.tensor([0.0, 1.0, 3.0, 80.0, 20_000.0], device=kernels.device())
    apart = torch.cat((steps, -steps))
    happens = "is infinite" if offset > 0 else "is 0"
    assert_right(
        student,
        pair(torch.full_like(apart, offset), torch.full_like(apart, 1.5)),
        pair(offset + apart, torch.full_like(apart, 7.0)),
        f"Maxima around {offset:.0f} go wrong, where the exponential of a maximum {happens}: take the "
        "exponential of differences only, and of none that is positive.",
    )


@pytest.mark.parametrize("empty", ["first", "second"])
def test_one_empty_part(student, empty):
    maximum, total = draw(2, 100)
    full = (maximum - 10, total)  # negative maxima, which a 0 in place of -inf would exceed
    nothing = pair(*(torch.full((100,), number) for number in EMPTY))
    assert_right(
        student,
        *((nothing, full) if empty == "first" else (full, nothing)),
        f"When the {empty} part is empty, (-inf, 0), the result must be the other part: leave its -inf as "
        "it is, because exp(-inf - larger maximum) is 0, as it should be.",
    )


def test_two_empty_parts(student):
    nothing = pair([-math.inf] * 3, [0.0] * 3)
    maximum, total = call(student, nothing, nothing)
    assert not maximum.isnan().any() and not total.isnan().any(), (
        "Two empty parts give NaN: the larger maximum is -inf too, and -inf - -inf is NaN, so subtract 0 "
        "in its place."
    )
    assert (maximum == -math.inf).all() and (total == 0).all(), (
        "Two empty parts must give an empty part: maximum -inf and sum 0."
    )


def assert_same(one, other, merges: int, mistake: str) -> None:
    """Compare two results that should differ in rounding only."""
    assert torch.equal(one[0], other[0]), f"{mistake} (The maxima differ.)"
    error = (one[1] - other[1]).abs()
    assert (error <= 2 * merges * ROUNDING * other[1]).all(), (
        f"{mistake} (The sums differ by up to {error.max():.1e}.)"
    )


def test_commutative(student):
    a, b = draw_parts(2)
    assert_same(
        call(student, a, b),
        call(student, b, a),
        1,
        "merge(a, b) and merge(b, a) differ: either part may have the larger maximum, so make both sums "
        "relative to the larger one.",
    )


def test_associative(student):
    a, b, c = draw_parts(3)
    assert_same(
        call(student, call(student, a, b), c),
        call(student, a, call(student, b, c)),
        2,
        "merge(merge(a, b), c) and merge(a, merge(b, c)) differ: the sum that is returned must be relative "
        "to the maximum that is returned.",
    )


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0, 3)], ids=str)
def test_any_shape(student, shape):
    mistake = (
        f"Tensors of shape {shape} do not work: the function must be elementwise in all dimensions."
    )
    a, b = draw(8, *shape), draw(9, *shape)
    b = (a[0], b[1])  # of one maximum, which leaves nothing to rescale
    call(student, draw(8, 5), draw(9, 5))  # an error here has nothing to do with the shape
    try:
        assert_right(student, a, b, mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


def test_inputs_unchanged(student):
    a, b = draw_parts(2)
    given = {"max_a": a[0], "sum_a": a[1], "max_b": b[0], "sum_b": b[1]}
    before = {name: tensor.clone() for name, tensor in given.items()}
    student.merge(*a, *b)
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belongs to the caller: operations such as mul_, += and "
            "out= write into their argument."
        )
