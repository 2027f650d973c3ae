"""The public tests of `merge_splits`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others little room: unless a test is about them,
logsumexps lie between -1 and 1 and fall from split to split, so that the first is the largest; no split is
empty; tensors are contiguous; there are 16 rows and 16 columns. `student` holds the learner's function;
while it runs, memory that PyTorch allocates without a value is filled with NaN.

Expected values are computed in float64. Each split takes its part through a difference, an exponential,
two products and two sums, each of which may be off by a unit or so in the last place of float32: that is
the error allowed, 8 units a split, relative to the largest output of a row. A logsumexp may be off by two
units of its own last place more, one for each time that it is rounded.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import kernels
from instruments import traffic

ROWS, HEAD_DIM = 16, 16
EPSILON = torch.finfo(torch.float32).eps
Splits = tuple[torch.Tensor, torch.Tensor]


def before_nan(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, with NaN behind it, which a missing mask would read."""
    memory = torch.full((tensor.numel() + 128 * 128,), torch.nan)
    memory[: tensor.numel()] = tensor.flatten()
    return memory.to(kernels.device())[: tensor.numel()].view(tensor.shape)


def draw(splits: int, rows: int = ROWS, head_dim: int = HEAD_DIM) -> Splits:
    """Normally distributed outputs, and logsumexps that fall from split to split."""
    generator = torch.Generator().manual_seed(1000 * splits + rows)
    outputs = torch.randn(splits, rows, head_dim, generator=generator)
    logsumexps = 2 * torch.rand(splits, rows, generator=generator) - 1
    return before_nan(outputs), before_nan(logsumexps.sort(0, descending=True).values)


def without(given: Splits, empty: torch.Tensor) -> Splits:
    """The splits, some of them empty for some rows: (splits, rows) of bool."""
    empty = empty.to(given[0].device)
    outputs, logsumexps = given
    return outputs.masked_fill(empty[..., None], 0.0), logsumexps.masked_fill(empty, -math.inf)


def exact_merge(given: Splits) -> Splits:
    """All splits together, in float64."""
    outputs, logsumexps = (tensor.double() for tensor in given)
    weights = logsumexps.softmax(0).nan_to_num()
    return (weights[..., None] * outputs).sum(0), logsumexps.logsumexp(0)


@contextmanager
def memory_behind() -> Iterator[list[torch.Tensor]]:
    """Let what torch.empty gives lie before other memory: a list of it, all ones at first.

    A kernel that writes past the end then breaks a test, and not the process.
    """
    allocate, behind = torch.empty, []

    def empty(*size, **options):
        wanted = allocate(*size, **{**options, "device": "meta"})
        memory = allocate(wanted.numel() + 128 * 128, **options)
        behind.append(memory[wanted.numel() :].fill_(1))
        return memory[: wanted.numel()].view(wanted.shape)

    with mock.patch.object(torch, "empty", empty):
        yield behind


def call(student, given: Splits) -> Splits:
    outputs, _ = given
    with memory_behind() as behind:
        result = student.merge_splits(*given)
    assert all((memory == 1).all() for memory in behind), (
        "The kernel writes past the end of output or logsumexp: store rows below rows only, and columns "
        "below HEAD_DIM."
    )
    kind = type(result).__name__
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two tensors, the output and the logsumexp, and returned a {kind}."
    )
    shapes = (tuple(outputs.shape[1:]), tuple(outputs.shape[1:2]))
    for name, tensor, shape in zip(("output", "logsumexp"), result, shapes, strict=True):
        kind = type(tensor).__name__
        assert isinstance(tensor, torch.Tensor), f"The {name} must be a tensor, and is a {kind}."
        came = tuple(tensor.shape)
        assert came == shape, f"The {name} must have the shape {shape}, and has {came}."
        assert tensor.dtype == torch.float32, f"The {name} must be float32, and is {tensor.dtype}."
        assert tensor.device == outputs.device, (
            f"The {name} must be on the device of outputs, {outputs.device}, and is on {tensor.device}."
        )
        assert tensor.is_contiguous(), (
            f"The {name} has strides {tensor.stride()} and must be contiguous."
        )
    return tuple(result)


def assert_close(value, expected, allowed, mistake: str) -> None:
    error = torch.where(value == expected, 0.0, (value - expected).abs())
    assert (error <= allowed).all(), f"{mistake} (Largest error {error.max():.1e}.)"


def rounding(given: Splits) -> float:
    return 8 * EPSILON * len(given[0])


def assert_right_output(student, given: Splits, mistake: str) -> None:
    """Compare the output with the exact one."""
    allowed = rounding(given) * given[0].abs().amax(0)
    assert_close(call(student, given)[0], exact_merge(given)[0], allowed, mistake)


def assert_right_logsumexp(student, given: Splits, mistake: str) -> None:
    """Compare the logsumexp with the exact one."""
    exact = exact_merge(given)[1]
    allowed = rounding(given) + 2 * EPSILON * exact.abs()
    assert_close(call(student, given)[1], exact, allowed.nan_to_num(posinf=0.0), mistake)


@pytest.fixture(autouse=True)
def computes(student):
    """What goes wrong whatever a test is about is told by all in the same words."""
    output, logsumexp = call(student, draw(2))
    assert not (output.isnan().all() and logsumexp.isnan().all()), (
        "Every element of the results is NaN: either the kernel stores none, or each row meets inf - inf "
        "(the first split finds the maximum at -inf; exp(old_max - new_max) is 0 there)."
    )


def test_one_split(student):
    given = draw(1)
    assert_right_output(
        student,
        given,
        "A single split must come back as it is: its weight is 1, because the sum of weights is divided "
        "out at the end.",
    )


def test_equal_splits(student):
    outputs, logsumexps = draw(3)
    assert_right_output(
        student,
        (outputs[:1].repeat(3, 1, 1), logsumexps),
        "Three splits with the same output must give this output, as any average of them is: every split "
        "counts, and the weights are divided by their sum, once, after the last.",
    )


def test_unequal_splits(student):
    assert_right_output(
        student,
        draw(2),
        "Two splits are merged wrongly: the weight of a split is exp(its logsumexp - the largest), over "
        "the sum of these.",
    )


@pytest.mark.parametrize("splits", [3, 7, 64])
def test_many_splits(student, splits):
    assert_right_output(
        student,
        draw(splits),
        f"Two splits work and {splits} do not: the loop runs over all of them, whatever their number, and "
        "each adds to what is there.",
    )


def test_rising_logsumexp(student):
    outputs, logsumexps = draw(5)
    rising = (outputs, logsumexps.flip(0))
    mistake = (
        "If a later split has the larger logsumexp, the {} goes wrong: what was added up so far is "
        "relative to the old maximum, so multiply sum and accumulator by exp(old_max - new_max) first."
    )
    assert_right_output(student, rising, mistake.format("output"))
    assert_right_logsumexp(student, rising, mistake.format("logsumexp"))


def test_logsumexp(student):
    assert_right_logsumexp(
        student,
        draw(3),
        "The logsumexp is wrong: it is the largest of the splits' plus the natural logarithm of the sum of "
        "weights relative to it.",
    )


@pytest.mark.parametrize("center", [10_000.0, -10_000.0])
def test_large_logsumexp(student, center):
    outputs, _ = draw(3)
    apart = torch.linspace(-100, 100, ROWS, device=outputs.device)
    given = (outputs, center + torch.stack([0 * apart, apart, -apart]))
    happens = "infinite" if center > 0 else "0"
    assert_right_logsumexp(
        student,
        given,
        f"Logsumexps around {center:.0f} go wrong, where the exponential is {happens}: subtract the "
        "largest before the exponential, and add it to the logarithm.",
    )


@pytest.mark.parametrize("center", [10_000.0, -10_000.0])
def test_rounded_logsumexp(student, center):
    outputs, logsumexps = draw(4)
    assert_right_output(
        student,
        (outputs, center + (64 * logsumexps).round() / 64),
        f"Outputs around a logsumexp of {center:.0f} are not as exact as around 0: the weights are "
        "exponentials of differences to the largest, divided by their own sum; exp(logsumexp - merged "
        "logsumexp) is off by as much as the latter was rounded, 0.001.",
    )


@pytest.mark.parametrize("which", ["first", "second", "last"])
def test_empty_splits(student, which):
    empty = torch.zeros(4, ROWS, dtype=torch.bool)
    empty[{"first": 0, "second": 1, "last": -1}[which]] = True
    given = without(draw(4), empty)
    output, logsumexp = call(student, given)
    assert not output.isnan().any() and not logsumexp.isnan().any(), (
        f"If the {which} split is empty, the result is NaN: while all splits so far were empty, so is the "
        "maximum -inf, and -inf - -inf is NaN; subtract 0 in its place."
    )
    mistake = (
        f"If the {which} split is empty, the result must be that of the others: its weight is 0."
    )
    assert_right_output(student, given, mistake)
    assert_right_logsumexp(student, given, mistake)


def test_all_empty(student):
    empty = torch.zeros(3, ROWS, dtype=torch.bool)
    empty[:, 1::2] = True
    output, logsumexp = (tensor[1::2] for tensor in call(student, without(draw(3), empty)))
    assert not output.isnan().any() and not logsumexp.isnan().any(), (
        "A row whose splits are all empty is NaN: -inf - -inf is NaN, and so is 0 / 0; subtract 0 and "
        "divide by 1 in their place."
    )
    assert (output == 0).all() and (logsumexp == -math.inf).all(), (
        "A row whose splits are all empty must become zeros, with a logsumexp of -inf."
    )


@pytest.mark.parametrize("rows", [1, 15, 100, 257])
def test_any_rows(student, rows):
    given = draw(2, rows)
    mistake = (
        f"{ROWS} rows work and {rows} do not: the grid needs a program for the last of them, too (round "
        "up), and none may be stored twice or left out."
    )
    assert_right_output(student, given, mistake)
    assert_right_logsumexp(student, given, mistake)


@pytest.mark.parametrize("head_dim", [1, 5, 80, 128])
def test_any_head_dim(student, head_dim):
    assert_right_output(
        student,
        draw(2, head_dim=head_dim),
        f"A head dimension of {HEAD_DIM} works and {head_dim} does not: it need not be a power of two, as "
        "a tile's side must be; columns from HEAD_DIM on are neither loaded nor stored.",
    )


def strided(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same numbers in memory with the dimensions in this order, and every second element unused."""
    memory = tensor.new_full((*(tensor.shape[d] for d in order), 2), torch.nan)[..., 0]
    return memory.permute(*(order.index(d) for d in range(tensor.ndim))).copy_(tensor)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_strides(student, order):
    outputs, logsumexps = draw(3, head_dim=32)
    outputs = strided(outputs, order)
    assert_right_output(
        student,
        (outputs, logsumexps),
        f"Outputs with strides {outputs.stride()} are read wrongly: element (split, row, column) is at "
        "split * outputs_strides[0] + row * outputs_strides[1] + column * outputs_strides[2].",
    )
    logsumexps = strided(logsumexps, tuple(d for d in order if d < 2))
    assert_right_output(
        student,
        (outputs, logsumexps),
        f"Logsumexps with strides {logsumexps.stride()} are read wrongly: element (split, row) is at "
        "split * logsumexps_strides[0] + row * logsumexps_strides[1].",
    )


def test_loads_once(student):
    given = draw(8, 64, 32)
    call(student, given)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, given)
    loaded = sum(buffer.loaded for buffer in counted.buffers.values())
    once, twice = (given[0].nbytes + times * given[1].nbytes for times in (1, 2))
    assert loaded >= once, (
        f"Your kernel loads {loaded} bytes, and outputs and logsumexps have {once}: it must merge them "
        "itself, and not what PyTorch has computed of them."
    )
    assert loaded <= twice, (
        f"Your kernel loads {loaded} bytes; each output once and each logsumexp twice would be {twice}: go "
        "over the outputs in one loop only, and rescale what is there when the maximum rises."
    )


def test_inputs_unchanged(student):
    given = draw(3)
    before = [tensor.clone() for tensor in given]
    call(student, given)
    for name, tensor, copy in zip(("outputs", "logsumexps"), given, before, strict=True):
        assert torch.equal(tensor, copy), (
            f"The function changed {name}, which belongs to the caller: write to the results only."
        )
