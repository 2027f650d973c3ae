"""The public tests of `key_value_gradients`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others little room: unless a test is about them,
there is one tile of queries and one of keys, the scale is 1, delta is 0, and nothing is hidden. (A delta of
0 is no mistake: the gradients are defined for any delta.) `student` holds the learner's function; while it
runs, memory that PyTorch allocates without a value is filled with NaN.

Expected values come from the definition, in float64. The error allowed is twice that of the same in PyTorch
with float32 inside, in which only the probabilities and the gradients of the scores are rounded to the
dtype, as the second product of each takes them; and a few units in the last place of float32: of the
largest sum of magnitudes that a gradient adds up, and of the scores, because a score that is off by x
moves a probability by as much relatively.
"""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch

import kernels

BLOCK = 32  # the solution's tiles; another size is as good
EPSILON = torch.finfo(torch.float32).eps
NAMES = ("grad_key", "grad_value")
Gradients = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Arguments:
    """What the function is called with."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grad_output: torch.Tensor
    logsumexp: torch.Tensor
    delta: torch.Tensor
    scale: float
    causal: bool

    def __iter__(self):
        return (getattr(self, field.name) for field in fields(self))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)[:6]}

    @property
    def visible(self) -> torch.Tensor:
        """Which query sees which key."""
        seq_query, seq_key = len(self.query), len(self.key)
        query, key = torch.arange(seq_query)[:, None], torch.arange(seq_key)
        visible = key <= query + seq_key - seq_query
        return (visible | (not self.causal)).to(self.query.device)


def before_nan(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, with NaN behind it, which a missing mask would read."""
    memory = tensor.new_full((len(tensor) + 4 * BLOCK, *tensor.shape[1:]), torch.nan)
    memory[: len(tensor)] = tensor
    return memory[: len(tensor)].to(kernels.device())


def draw(
    seq_query: int = BLOCK,
    seq_key: int = BLOCK,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    causal: bool = False,
) -> Arguments:
    """Normally distributed numbers, and scores whose standard deviation is 1 if the scale is."""
    generator = torch.Generator().manual_seed(1000 * seq_query + seq_key)
    matrices = [
        torch.randn(rows, head_dim, generator=generator)
        for rows in (seq_query, seq_key, seq_key, seq_query)
    ]
    matrices[0] /= head_dim**0.5
    none = torch.zeros(seq_query)
    tensors = [before_nan(matrix.to(dtype)) for matrix in matrices]
    given = Arguments(*tensors, none, before_nan(none), scale, causal)
    return with_logsumexp(given)


def scores_of(given: Arguments, dtype: torch.dtype) -> torch.Tensor:
    scores = given.query.to(dtype) @ given.key.to(dtype).T * given.scale
    return scores.masked_fill(~given.visible, -math.inf)


def with_logsumexp(given: Arguments) -> Arguments:
    """The arguments with the logsumexp that belongs to the others."""
    logsumexp = scores_of(given, torch.float64).logsumexp(1).float()
    return replace(given, logsumexp=before_nan(logsumexp))


def with_delta(given: Arguments) -> Arguments:
    """The arguments with the delta that belongs to the others, 1 more to keep it away from 0."""
    probabilities = scores_of(given, torch.float64).softmax(1).nan_to_num()
    delta = (given.grad_output.double() * (probabilities @ given.value.double())).sum(1) + 1
    return replace(given, delta=before_nan(delta.float()))


def gradients(given: Arguments, dtype: torch.dtype) -> Gradients:
    """What the exercise asks for, computed by PyTorch in `dtype`, rounded before the last products."""

    def rounded(matrix: torch.Tensor) -> torch.Tensor:
        return matrix if dtype == torch.float64 else matrix.to(given.query.dtype).to(dtype)

    value, grad_output = given.value.to(dtype), given.grad_output.to(dtype)
    exponentials = (scores_of(given, dtype) - given.logsumexp.to(dtype)[:, None]).exp()
    probabilities = torch.where(given.visible, exponentials, 0.0)
    grad_probabilities = grad_output @ value.T
    grad_scores = probabilities * (grad_probabilities - given.delta.to(dtype)[:, None])
    grad_key = given.scale * (rounded(grad_scores).T @ given.query.to(dtype))
    return grad_key, rounded(probabilities).T @ grad_output


def allowed_errors(given: Arguments, exact: Gradients) -> list[float]:
    """How far each gradient may be off."""
    magnitudes = replace(
        given,
        **{name: getattr(given, name).double().abs() for name in ("query", "key", "value")},
        grad_output=given.grad_output.double().abs(),
    )
    largest_score = (magnitudes.query @ magnitudes.key.T * given.scale).max()
    probabilities = (scores_of(given, torch.float64) - given.logsumexp[:, None]).exp()
    probabilities = torch.where(given.visible, probabilities, 0.0)
    terms = magnitudes.grad_output @ magnitudes.value.T + given.delta.abs()[:, None]
    sums = (
        given.scale * (probabilities * terms).T @ magnitudes.query,
        probabilities.T @ magnitudes.grad_output,
    )
    careful = (gradient.to(given.key.dtype) for gradient in gradients(given, torch.float32))
    return [
        (2 * (c - e).abs().max() + 4 * EPSILON * (1 + largest_score) * s.max()).item()
        for c, e, s in zip(careful, exact, sums, strict=True)
    ]


def call(student, given: Arguments) -> Gradients:
    result = student.key_value_gradients(*given)
    kind = type(result).__name__
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two tensors, grad_key and grad_value, and returned a {kind}."
    )
    for name, tensor in zip(NAMES, result, strict=True):
        kind = type(tensor).__name__
        assert isinstance(tensor, torch.Tensor), f"{name} must be a tensor, and is a {kind}."
        expected, came = tuple(given.key.shape), tuple(tensor.shape)
        assert came == expected, f"{name} must have the shape of key, {expected}, and has {came}."
        assert tensor.dtype == given.key.dtype, (
            f"{name} must have the dtype of key, {given.key.dtype}, and is {tensor.dtype}."
        )
        assert tensor.device == given.key.device, (
            f"{name} must be on the device of key, {given.key.device}, and is on {tensor.device}."
        )
        assert tensor.is_contiguous(), f"{name} must be contiguous; its strides: {tensor.stride()}."
    return tuple(result)


def is_right(result: Gradients, given: Arguments, name: str) -> bool:
    """Whether one gradient is as close to the exact one as it should be."""
    exact = gradients(given, torch.float64)
    which = NAMES.index(name)
    allowed = allowed_errors(given, exact)[which]
    return bool((result[which] - exact[which]).abs().max() <= allowed)


def assert_right(student, given: Arguments, mistake: str, names: tuple[str, ...] = NAMES) -> None:
    """Compare with the exact gradients."""
    result = call(student, given)
    wrong = [name for name in names if not is_right(result, given, name)]
    assert not wrong, f"{mistake} (Wrong: {' and '.join(wrong)}.)"


@pytest.fixture(autouse=True)
def computes(student):
    """What goes wrong whatever a test is about is told by all in the same words."""
    given = draw()
    result = call(student, replace(given, **{n: t.clone() for n, t in given.tensors().items()}))
    assert not all((gradient == 0).all() for gradient in result), (
        "Both gradients are zeros: the kernel adds up grad_key and grad_value in a loop over the queries."
    )


def test_grad_value(student):
    # All scores are the same, so the probabilities are 1 / 32, and the logarithm's base shows.
    given = draw()
    equal = with_logsumexp(replace(given, query=before_nan(torch.zeros_like(given.query))))
    assert_right(
        student,
        equal,
        "With 32 keys and all scores equal, every probability is 1/32: it is exp(score - logsumexp), with "
        "the natural logarithm's base, and nothing is left to divide by.",
        ("grad_value",),
    )
    assert_right(
        student,
        given,
        "One tile of queries with one of keys is wrong already: grad_value adds up the transposed "
        "probabilities [keys, queries] times grad_output [queries, head_dim].",
        ("grad_value",),
    )


def test_grad_key(student):
    given = draw()
    constant = replace(given, value=before_nan(torch.ones_like(given.value)))
    assert_right(
        student,
        constant,
        "If all values are 1, the gradient of a probability is the sum of its query's grad_output, and "
        "grad_key goes wrong: the gradient of the scores is probability * (gradient of the probability - "
        "delta).",
        ("grad_key",),
    )
    assert_right(
        student,
        given,
        "One tile of queries with one of keys is wrong already: the gradients of the probabilities, "
        "[keys, queries], are tl.dot(value, tl.trans(grad_output)), and grad_key adds up grad_scores times "
        "query.",
        ("grad_key",),
    )


def test_delta(student):
    assert_right(
        student,
        with_delta(draw()),
        "A delta of 0 works and another does not: subtract each query's delta from its gradients of the "
        "probabilities, delta[None, :] in a tile of [keys, queries], before they are multiplied with the "
        "probabilities.",
    )


def test_scale(student):
    given = draw(scale=0.3)
    result = call(student, given)
    for power, mistake in (
        (
            -1,
            "The scale is missing from grad_key: a score is scale times the product of key and query.",
        ),
        (1, "The scale is in grad_key twice: multiply by it in the loop or after it."),
    ):
        scaled = (result[0] / given.scale**power, result[1])
        assert not is_right(scaled, given, "grad_key"), mistake
    for name in NAMES:
        assert is_right(result, given, name), (
            f"A scale of 1 works and 0.3 does not, in {name}: the scores are multiplied by it before "
            "logsumexp is subtracted, and grad_key once at its end."
        )


def test_large_scores(student):
    given = draw()
    assert_right(
        student,
        with_logsumexp(replace(given, query=100 * given.query)),
        "Scores in the hundreds go wrong: subtract logsumexp before the exponential, because exp(score) "
        "and exp(logsumexp) are infinite.",
        ("grad_value",),
    )


@pytest.mark.parametrize("lengths", [(96, 32), (32, 96)], ids=str)
def test_several_tiles(student, lengths):
    assert_right(
        student,
        draw(*lengths),
        "{} queries and {} keys go wrong: every tile of queries adds to grad_key and grad_value, which are "
        "stored once, after the loop, by the program that owns the keys.".format(*lengths),
    )


def test_causal(student):
    for length in (BLOCK, 3 * BLOCK):
        assert_right(
            student,
            draw(length, length, causal=True),
            f"{length} queries and keys go wrong if causal: a probability is 0 if the query comes before "
            "the key; in a tile of [keys, queries] compare key_row[:, None] with query_row[None, :].",
        )


@pytest.mark.parametrize("lengths", [(64, 80), (64, 96)], ids=str)
def test_unequal_lengths(student, lengths):
    assert_right(
        student,
        draw(*lengths, causal=True),
        "{} queries and {} keys go wrong if causal: the last query sees the last key, so query r sees the "
        "keys up to r + seq_key - seq_query.".format(*lengths),
    )


@pytest.mark.parametrize("lengths", [(64, 16), (96, 40)], ids=str)
def test_queries_without_keys(student, lengths):
    given = draw(*lengths, causal=True)
    assert not any(gradient.isnan().any() for gradient in call(student, given)), (
        "With {} queries and {} keys, the first queries see no key if causal, and the gradients are NaN: "
        "logsumexp is -inf there, -inf - -inf and 0 * inf are NaN, so put 0 in place of hidden "
        "probabilities with tl.where, after the exponential.".format(*lengths)
    )
    assert_right(
        student,
        given,
        "{} queries and {} keys go wrong if causal: queries that see no key must add nothing.".format(
            *lengths
        ),
    )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [(1, 1), (31, 33), (47, 63)], ids=str)
def test_any_length(student, lengths, causal):
    given = draw(*lengths, causal=causal)
    assert not any(gradient.isnan().any() for gradient in call(student, given)), (
        "{} queries and {} keys give NaN: load logsumexp and delta with mask=query_row < seq_query, "
        "because behind them may lie anything, and other=0.0.".format(*lengths)
    )
    assert_right(
        student,
        given,
        "{} queries and {} keys go wrong: the last tile of queries is ragged, and what it holds past the "
        "end must add nothing.".format(*lengths),
    )


@pytest.mark.parametrize("head_dim", [16, 64])
def test_head_dims(student, head_dim):
    assert_right(
        student,
        draw(head_dim=head_dim),
        f"A head dimension of 32 works and {head_dim} does not: load rows of HEAD_DIM elements.",
    )


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_output"])
def test_strides(student, name):
    given = draw()
    matrix = getattr(given, name)
    strided = matrix.new_zeros(matrix.shape[1], 2 * len(matrix)).T[::2].copy_(matrix)
    row_stride, column_stride = strided.stride()
    assert_right(
        student,
        replace(given, **{name: strided}),
        f"A {name} whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"is read wrongly: load it with {name}_strides.",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    given = draw(dtype=dtype)
    try:
        call(student, given)
    except Exception as error:
        raise AssertionError(
            f"float32 works and {dtype} does not: tl.dot multiplies two tiles of one dtype, so convert "
            "probabilities and their gradients with .to(query.dtype) just for the products."
        ) from error
    mistake = (
        f"float32 works and {dtype} does not: everything is float32 when it comes from tl.dot, and only "
        "what goes into tl.dot, and into grad_key and grad_value when they are stored, is 16 bits wide."
    )
    assert_right(student, given, mistake)
    # On the way to a sum of 0 the parts are too large for float16, and too many bits for bfloat16.
    single_key = draw(6 * BLOCK, 1, dtype=dtype)
    grad_output = torch.full_like(single_key.grad_output, 1000.0)
    grad_output[3 * BLOCK :] *= -1
    assert_right(student, replace(single_key, grad_output=before_nan(grad_output)), mistake)
    # The difference of two large numbers: what they lose when they are rounded is more than it.
    shifted = replace(given, value=given.value + 64, delta=64 * given.grad_output.float().sum(1))
    assert_right(student, shifted, mistake, ("grad_key",))


def test_float32_inputs(student):
    assert_right(
        student,
        draw(),
        "Of float32 inputs only 11 bits or fewer counted: ask tl.dot for input_precision='ieee', because "
        "by default a GPU rounds float32 to TF32, and convert nothing to a smaller dtype.",
    )


def test_inputs_unchanged(student):
    given = with_delta(draw(scale=0.3, causal=True))
    before = {name: tensor.clone() for name, tensor in given.tensors().items()}
    call(student, given)
    for name, tensor in given.tensors().items():
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belongs to the caller: write to the gradients only."
        )
