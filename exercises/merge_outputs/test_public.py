"""The public tests of `merge_outputs`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room: unless a test is about large
logsumexp, they lie around 0, where float32 is finest. `student` holds the learner's function. Expected
values are computed in float64. A weight goes through a difference, an exponential, a sum and a
division, an output through two products and a sum more, each of which may be off by a unit or so in the
last place of float32, once a merge: that is the error allowed. A logsumexp may be off by one unit of
its own last place more.
"""

import math

import pytest
import torch

import kernels

EPSILON = torch.finfo(torch.float32).eps
ROUNDING = 8 * EPSILON  # of one merge, relative to the larger of the two outputs
Part = tuple[torch.Tensor, torch.Tensor]


def draw(seed: int, *shape: int, d: int = 8) -> Part:
    """Normally distributed outputs, and logsumexp between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(*shape, d, generator=generator)
    logsumexp = 2 * torch.rand(shape, generator=generator) - 1
    return output.to(kernels.device()), logsumexp.to(kernels.device())


def without(part: Part, rows: torch.Tensor) -> Part:
    """The part, empty in these rows."""
    output, logsumexp = part
    return output.masked_fill(rows[:, None], 0.0), logsumexp.masked_fill(rows, -math.inf)


def draw_parts(count: int) -> list[Part]:
    """Parts of 1000 rows, each empty in other rows than the next."""
    row = torch.arange(1000, device=kernels.device())
    return [without(draw(part, 1000), row % 4 == part) for part in range(count)]


def draw_large(center: float, apart: list[float]) -> tuple[Part, Part]:
    """Two parts of the same output, whose logsumexp are at the center and these steps from it."""
    output, _ = draw(0, len(apart))
    steps = torch.tensor(apart, device=kernels.device())
    return (output, torch.full_like(steps, center)), (output, center + steps)


def exact_merge(a: Part, b: Part) -> Part:
    """Both parts together, in float64; in each row one of them at least is not empty."""
    logsumexp = torch.logaddexp(a[1].double(), b[1].double())
    output = sum((own - logsumexp).exp()[..., None] * output for output, own in (a, b))
    return output, logsumexp


def call(student, a: Part, b: Part) -> Part:
    result = student.merge_outputs(*(tensor.clone() for tensor in (*a, *b)))
    kind = type(result).__name__
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two tensors, the output and the logsumexp, and returned a {kind}."
    )
    for name, tensor, given in zip(("output", "logsumexp"), result, a, strict=True):
        kind = type(tensor).__name__
        assert isinstance(tensor, torch.Tensor), f"The {name} must be a tensor, and is a {kind}."
        expected, came = tuple(given.shape), tuple(tensor.shape)
        assert came == expected, (
            f"The {name} must have the shape of {name}_a, {expected}, and has {came}."
        )
        assert tensor.dtype == torch.float32, (
            f"The {name} must be float32, as the arguments are, and is {tensor.dtype}."
        )
        assert tensor.device == given.device, (
            f"The {name} must be on the device of {name}_a, {given.device}, and is on {tensor.device}."
        )
    return tuple(result)


def assert_close(value, expected, allowed, mistake: str) -> None:
    error = (value - expected).abs()
    assert (error <= allowed).all(), f"{mistake} (Largest error {error.max():.1e}.)"


def larger_output(a: Part, b: Part) -> torch.Tensor:
    return torch.maximum(a[0].abs(), b[0].abs())


def assert_right_output(student, a: Part, b: Part, mistake: str) -> None:
    """Compare the output with the exact one."""
    allowed = ROUNDING * larger_output(a, b)
    assert_close(call(student, a, b)[0], exact_merge(a, b)[0], allowed, mistake)


def assert_right_logsumexp(student, a: Part, b: Part, mistake: str) -> None:
    """Compare the logsumexp with the exact one."""
    exact = exact_merge(a, b)[1]
    assert_close(call(student, a, b)[1], exact, ROUNDING + EPSILON * exact.abs(), mistake)


def test_equal_outputs(student):
    a, b = draw(0, 100), draw(1, 100)
    assert_right_output(
        student,
        a,
        (a[0], b[1]),
        "Two parts with the same output must give this output, as any average of the two is: divide the "
        "weights by their sum.",
    )


def test_unequal_parts(student):
    assert_right_output(
        student,
        draw(0, 100),
        draw(1, 100),
        "Parts of unequal logsumexp are merged wrongly: the weight of a part is its share of the sum of "
        "exponentials, exp(logsumexp_a) / (exp(logsumexp_a) + exp(logsumexp_b)); neither is it one half, "
        "nor does the larger part take all.",
    )


def test_logsumexp(student):
    assert_right_logsumexp(
        student,
        draw(0, 100),
        draw(1, 100),
        "The logsumexp is wrong: the sums of exponentials are added, so it is "
        "log(exp(logsumexp_a) + exp(logsumexp_b)), which is larger than either.",
    )


@pytest.mark.parametrize("center", [10_000.0, -10_000.0])
def test_large_logsumexp(student, center):
    a, b = draw_large(center, [0.0, 1.0, -1.0, 80.0, -80.0, 20_000.0, -20_000.0])
    happens = "infinite" if center > 0 else "0"
    mistake = (
        f"A logsumexp around {center:.0f} goes wrong, where its exponential is {happens}: subtract the "
        "larger of the two from both before the exponential, and add it to the log."
    )
    assert_right_logsumexp(student, a, b, mistake)
    # Here a weight may be off as far as a logsumexp is that was rounded to float32.
    exact, logsumexp = exact_merge(a, b)
    allowed = (ROUNDING + 2 * EPSILON * logsumexp.abs())[:, None] * larger_output(a, b)
    assert_close(call(student, a, b)[0], exact, allowed, mistake)


@pytest.mark.parametrize("center", [10_000.0, -10_000.0])
def test_rounded_logsumexp(student, center):
    a, b = draw_large(center, [step / 8 for step in range(-16, 17)])
    assert_right_output(
        student,
        a,
        b,
        f"Around {center:.0f} the weights do not sum to 1: numbers in float32 lie 0.001 apart there, so "
        "exp(logsumexp_a - merged logsumexp) is off by as much; instead, divide exp(logsumexp_a - larger) "
        "by the sum of this and its like for b.",
    )


@pytest.mark.parametrize("empty", ["first", "second"])
def test_one_empty_part(student, empty):
    full, other = draw(0, 100), draw(1, 100)
    nothing = without(other, torch.ones(100, dtype=torch.bool, device=kernels.device()))
    parts = (nothing, full) if empty == "first" else (full, nothing)
    mistake = (
        f"When the {empty} part is empty, with logsumexp -inf, the result must be the other part: an empty "
        "part's weight is exp(-inf), which is 0."
    )
    assert_right_output(student, *parts, mistake)
    assert_right_logsumexp(student, *parts, mistake)


def test_two_empty_parts(student):
    nothing = without(draw(0, 3), torch.ones(3, dtype=torch.bool, device=kernels.device()))
    output, logsumexp = call(student, nothing, nothing)
    assert not output.isnan().any() and not logsumexp.isnan().any(), (
        "Two empty parts give NaN: -inf - -inf is NaN, and so is 0 / 0, so subtract 0 and divide by 1 in "
        "their place."
    )
    assert (output == 0).all() and (logsumexp == -math.inf).all(), (
        "Two empty parts must give an empty part: output 0 and logsumexp -inf."
    )


def test_commutative(student):
    a, b = draw_parts(2)
    mistake = (
        "merge(a, b) and merge(b, a) differ: either part may have the larger logsumexp, and either may be "
        "empty, so treat both alike."
    )
    one, other = call(student, a, b), call(student, b, a)
    assert_close(one[0], other[0], 2 * ROUNDING * larger_output(a, b), mistake)
    nothing = other[1] == -math.inf
    assert torch.equal(one[1] == -math.inf, nothing), mistake
    assert_close(one[1][~nothing], other[1][~nothing], 2 * ROUNDING, mistake)


def test_associative(student):
    a, b, c = draw_parts(3)
    mistake = (
        "merge(merge(a, b), c) and merge(a, merge(b, c)) differ: the logsumexp that is returned must be "
        "that of both parts, because it is their weight in the next merge."
    )
    one = call(student, call(student, a, b), c)
    other = call(student, a, call(student, b, c))
    largest = torch.maximum(larger_output(a, b), c[0].abs())
    assert_close(one[0], other[0], 4 * ROUNDING * largest, mistake)
    assert_close(one[1], other[1], 4 * ROUNDING, mistake)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0, 3)], ids=str)
def test_any_shape(student, shape):
    mistake = (
        f"A logsumexp of shape {shape} does not work with outputs of one dimension more: give the weights "
        "that dimension with weight[..., None]."
    )
    call(student, draw(0, 5), draw(1, 5))  # an error here has nothing to do with the shape
    a = draw(0, *shape)
    b = (a[0], a[1] - 100)  # a part of the same output, and of hardly any weight
    try:
        assert_right_output(student, a, b, mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


def test_inputs_unchanged(student):
    a, b = draw(0, 5), draw(1, 5)
    given = {"output_a": a[0], "logsumexp_a": a[1], "output_b": b[0], "logsumexp_b": b[1]}
    before = {name: tensor.clone() for name, tensor in given.items()}
    student.merge_outputs(*a, *b)
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belongs to the caller: operations such as mul_, += and "
            "out= write into their argument."
        )
