"""Row softmax in its four forms, and the step and the merge on which every later kernel is built."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import online_softmax, reference
from tests.kernels.grid import DTYPES, call_on_poisoned_memory

DEVICE = kernels.device()
EXAMPLES = 60 if kernels.INTERPRETED else 300
SOFTMAXES = {
    "three_pass": online_softmax.three_pass_softmax,
    "two_pass": online_softmax.two_pass_softmax,
    "fused": online_softmax.fused_softmax,
    "split": online_softmax.split_softmax,
}
every_softmax = pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)


def _expected(values: torch.Tensor) -> torch.Tensor:
    return values.double().softmax(1).nan_to_num()


def _budget(values: torch.Tensor) -> reference.Errors:
    """Twice PyTorch's error in float32, rounded to the dtype, and a few float32 ulps of the largest."""
    careful = values.float().softmax(1).nan_to_num().to(values.dtype)
    error = reference.errors(careful, _expected(values))
    slack = 4 * torch.finfo(torch.float32).eps * _expected(values).max().item()
    return reference.Errors(2 * error.maximum + slack, 2 * error.root_mean_square + slack)


def _assert_right(softmax, values: torch.Tensor) -> None:
    before = values.clone()
    result = call_on_poisoned_memory(softmax, values)
    assert torch.equal(values, before), "the kernel changed its input"
    assert result.shape == values.shape and result.dtype == values.dtype
    assert result.is_contiguous() and not result.isnan().any()
    error = reference.errors(result, _expected(values))
    assert error.within(_budget(values)), f"error {error}; allowed {_budget(values)}"


def _random(rows, columns, dtype=torch.float32, scale=1.0):
    torch.manual_seed(rows * 31 + columns)
    return (scale * torch.randn(rows, columns)).to(dtype=dtype, device=DEVICE)


@every_softmax
@pytest.mark.parametrize("columns", [1, 2, 63, 111, 129, 257, 1000, 4097, 20001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(softmax, columns, dtype):
    _assert_right(softmax, _random(3, columns, dtype))


@every_softmax
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(softmax, dtype):
    _assert_right(softmax, _random(3, 2500, dtype, scale=3000.0))


@every_softmax
def test_any_strides(softmax):
    values = _random(7, 5002)
    for view in (values.T[:9, :], values[1:5, 1::2], values[:1].expand(4, 5002), values.flip(0)):
        _assert_right(softmax, view)


@every_softmax
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_elements_and_hidden_rows(softmax, dtype):
    values = _random(4, 20001, dtype)
    values[0, :9000] = -math.inf  # whole first blocks, and a whole first split
    values[1] = -math.inf
    values[2, ::2] = -math.inf
    values[3, 1:] = -math.inf
    _assert_right(softmax, values)
    assert (softmax(values)[1] == 0).all()


@every_softmax
def test_values_that_rise_block_after_block_are_rescaled(softmax):
    # Each block's maximum passes the last one's: forgetting one rescale is off by powers of two.
    rising = torch.linspace(0, 60, 17000, device=DEVICE).repeat(2, 1)
    _assert_right(softmax, rising)
    _assert_right(softmax, rising.flip(1))


@every_softmax
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_matrices(softmax, shape):
    assert softmax(torch.zeros(shape, device=DEVICE)).shape == shape


@pytest.mark.parametrize("name", ["three_pass", "two_pass", "split"])
def test_a_row_of_2_to_the_20(name):
    _assert_right(SOFTMAXES[name], _random(1, 2**20, torch.float16))


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_long_rows_of_16_bits_are_pipelined(rows):
    values = _random(rows, 17001, torch.bfloat16)
    assert online_softmax._needs_pipelining(values)
    _assert_right(online_softmax.fused_softmax, values)
    assert not online_softmax._needs_pipelining(values.float())


@pytest.mark.gpu
@every_softmax
def test_offsets_beyond_2_to_the_31(softmax):
    values = torch.randn(2, 2**31 + 8, device="cuda", dtype=torch.float16)[:, :4001]
    assert values.stride(0) > 2**31
    _assert_right(softmax, values)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3000), st.integers(0, 2**31))
def test_the_average_never_stores_a_probability_and_is_the_same(rows, columns, seed):
    torch.manual_seed(seed)
    scores, weights = torch.randn(rows, columns), torch.randn(columns)
    scores[torch.rand(rows, columns) < 0.3] = -math.inf
    expected = _expected(scores) @ weights.double()
    average = online_softmax.weighted_average(scores.to(DEVICE), weights.to(DEVICE))
    # The sum of |p v| bounds how far rounding can carry the average.
    magnitude = (_expected(scores) @ weights.double().abs()).max().item()
    careful = scores.softmax(1).nan_to_num() @ weights
    allowed = 2 * (careful.double() - expected).abs().max().item()
    allowed += 8 * torch.finfo(torch.float32).eps * magnitude
    assert (average.cpu().double() - expected).abs().max().item() <= allowed


@triton.jit
def merge_kernel(max_a_ptr, sum_a_ptr, max_b_ptr, sum_b_ptr, max_ptr, sum_ptr, BLOCK: tl.constexpr):
    """merge_statistics of two vectors of pairs whose scores are in base 2."""
    index = tl.arange(0, BLOCK)
    merged_max, merged_sum, _, _ = online_softmax.merge_statistics(
        tl.load(max_a_ptr + index),
        tl.load(sum_a_ptr + index),
        tl.load(max_b_ptr + index),
        tl.load(sum_b_ptr + index),
        1.0,
    )
    tl.store(max_ptr + index, merged_max)
    tl.store(sum_ptr + index, merged_sum)


def _merge(a, b):
    merged = torch.empty(2, a.shape[1], device=DEVICE)
    merge_kernel[(1,)](*a, *b, *merged, BLOCK=a.shape[1])
    return merged


# What a part of a row can have as its statistics: nothing seen, or a maximum and a sum of at least 1.
pairs = st.one_of(
    st.just((-math.inf, 0.0)),
    st.tuples(st.floats(-1.5e4, 1.5e4, width=32), st.floats(1.0, 1e5, width=32)),
)
parts = st.lists(pairs, min_size=4, max_size=4)


def _tensor(part):
    return torch.tensor(part, device=DEVICE).T.contiguous()


def _log2_total(merged):
    """The pair as one number: log2 of the sum of exponentials."""
    return (merged[0].double() + merged[1].double().log2()).cpu()


@settings(max_examples=EXAMPLES, deadline=None)
@given(parts, parts, parts)
def test_merging_is_associative(a, b, c):
    a, b, c = _tensor(a), _tensor(b), _tensor(c)
    left, right = _merge(_merge(a, b), c), _merge(a, _merge(b, c))
    assert torch.equal(left[0], right[0])
    # Each merge rounds twice; the factors of nested merges round as the difference of the maxima.
    torch.testing.assert_close(left[1], right[1], rtol=2**-18, atol=0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(parts, parts)
def test_merging_is_commutative_and_agrees_with_float64(a, b):
    a, b = _tensor(a), _tensor(b)
    merged, swapped = _merge(a, b), _merge(b, a)
    assert torch.equal(merged[0], swapped[0]) and not merged.isnan().any()
    # The GPU's compiler fuses one of the two products into the sum, so the last bit may differ.
    torch.testing.assert_close(merged[1], swapped[1], rtol=2**-22, atol=0)
    expected = torch.logaddexp2(_log2_total(a), _log2_total(b))
    # Two exponentials, two products and a sum, each rounded to float32.
    few_ulps = 8 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(_log2_total(merged), expected, rtol=few_ulps, atol=few_ulps)


@settings(max_examples=EXAMPLES, deadline=None)
@given(parts)
def test_the_empty_part_is_the_identity(a):
    a = _tensor(a)
    nothing = _tensor([(-math.inf, 0.0)] * 4)
    assert torch.equal(_merge(a, nothing), a) and torch.equal(_merge(nothing, a), a)


BAD = [
    ({"values": [[1.0]]}, TypeError, "values must be a torch.Tensor, got list"),
    ({"values": torch.zeros(3)}, ValueError, r"values must have 2 dimensions .* got shape \(3,\)"),
    ({"values": torch.zeros(1, 1, dtype=torch.int32)}, TypeError, "torch.int32; accepted"),
]


@every_softmax
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=["list", "rank", "dtype"])
def test_bad_input_is_named(softmax, arguments, error, message):
    with pytest.raises(error, match=message):
        softmax(**arguments)


def test_a_row_too_long_to_fuse_is_refused():
    with pytest.raises(ValueError, match="rows of 32769; .* accepts up to 32768"):
        online_softmax.fused_softmax(torch.zeros(1, 32769, device=DEVICE))


@pytest.mark.parametrize("split", [1000, 512, 0, 2048.0])
def test_a_bad_split_is_refused(split):
    with pytest.raises(ValueError, match="split must be a power of two of at least 1024"):
        online_softmax.split_softmax(torch.zeros(1, 4, device=DEVICE), split)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.zeros(4), ValueError, r"values must have shape \(3,\), got \(4,\)"),
        (torch.zeros(3).half(), TypeError, "values has dtype torch.float16, but scores has"),
        (torch.zeros(3, device="meta"), ValueError, "values is on meta, but scores is on"),
        ([0.0], TypeError, "values must be a torch.Tensor, got list"),
    ],
)
def test_bad_weights_are_named(values, error, message):
    scores = torch.zeros(2, 3, device=DEVICE)
    if isinstance(values, torch.Tensor) and values.device.type == "cpu":
        values = values.to(DEVICE)
    with pytest.raises(error, match=message):
        online_softmax.weighted_average(scores, values)
