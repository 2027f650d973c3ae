"""Standard attention against the oracle, on the CPU through the interpreter and on the GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import naive, reference
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.grid import (
    DTYPES,
    assert_matches_oracle,
    exact_score_inputs,
    full_grid,
    inputs_far_apart,
    make_inputs,
    pairwise_grid,
)

ON_CPU = kernels.INTERPRETED
CELLS = pairwise_grid() if ON_CPU else full_grid()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_matches_the_oracle(cell):
    query, key, value = make_inputs(cell)
    # S is stored in the inputs' dtype: the budget allows that rounding, and no more.
    assert_matches_oracle(
        naive.attention, query, key, value, causal=cell.causal, rounded_scores=True
    )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("magnitude", [1 / 8, 1, 1024], ids=["small", "plain", "extreme"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meets_the_strict_budget_where_scores_are_exact(dtype, magnitude, causal):
    query, key, value = exact_score_inputs(dtype, magnitude)
    assert_matches_oracle(naive.attention, query, key, value, causal=causal, scale=1.0)


def test_extreme_logits_in_float32():
    torch.manual_seed(0)
    query, key, value = (100 * torch.randn(1, 2, 63, 64, device=kernels.device()) for _ in range(3))
    assert (query @ key.mT).abs().max() > 1e4
    assert_matches_oracle(naive.attention, query, key, value, scale=1.0)


def test_a_query_that_sees_no_key_gets_zeros():
    query, key, value = (torch.randn(1, 1, n, 16, device=kernels.device()) for n in (5, 2, 2))
    output, logsumexp = naive.attention(query, key, value, causal=True, return_logsumexp=True)
    # Aligned at the bottom right, the first three of five queries come before both keys.
    assert (output[0, 0, :3] == 0).all() and (logsumexp[0, 0, :3] == -torch.inf).all()
    assert output[0, 0, 3:].abs().min() > 0 and logsumexp[0, 0, 3:].isfinite().all()


@pytest.mark.parametrize("rows", [3, 1])
def test_a_row_too_long_for_registers(rows, monkeypatch):
    if ON_CPU:
        monkeypatch.setattr(naive, "LONGEST_ROW_IN_REGISTERS", 64)
    # Interpreted, two tiles of keys and a part of one.
    length = 4999 if ON_CPU else 2 * naive.LONGEST_ROW_IN_REGISTERS + 1
    query, key, value = (
        torch.randn(1, 2, n, 16, device=kernels.device()) for n in (rows, length, length)
    )
    assert naive.softmax_blocks(length)[0] is naive.softmax_long_row_kernel
    assert_matches_oracle(naive.attention, query, key, value)
    assert_matches_oracle(naive.attention, query, key[:, :, :70], value[:, :, :70], causal=True)


@pytest.mark.parametrize(
    ("query_shape", "key_shape"),
    [
        ((2, 2, 0, 16), (2, 2, 5, 16)),
        ((0, 2, 3, 16), (0, 2, 5, 16)),
        ((2, 0, 3, 16), (2, 0, 5, 16)),
        ((2, 4, 3, 16), (2, 2, 0, 16)),
    ],
    ids=["no queries", "no batch", "no heads", "no keys"],
)
def test_empty_inputs(query_shape, key_shape):
    query, key = (torch.randn(shape, device=kernels.device()) for shape in (query_shape, key_shape))
    output, logsumexp = naive.attention(query, key, key, return_logsumexp=True)
    assert output.shape == query.shape and (output == 0).all()
    assert logsumexp.shape == query.shape[:-1] and (logsumexp == -torch.inf).all()


def test_a_broadcast_key_is_read_in_place():
    query = torch.randn(3, 2, 5, 16, device=kernels.device())
    shared = torch.randn(1, 1, 7, 16, device=kernels.device()).expand(3, 2, 7, 16)
    assert shared.stride()[:2] == (0, 0)
    assert_matches_oracle(naive.attention, query, shared, shared)


@settings(max_examples=30 if ON_CPU else 200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 140), st.integers(16, 40), st.integers(0, 2**31))
def test_output_stays_within_the_values_it_averages(seq_query, seq_key, head_dim, seed):
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, 1, n, head_dim).to(kernels.device()) for n in (seq_query, seq_key, seq_key)
    )
    output = naive.attention(query, key, value)
    slack = 4 * torch.finfo(torch.float32).eps * value.abs().max()
    assert (output <= value.amax(2, keepdim=True) + slack).all()
    assert (output >= value.amin(2, keepdim=True) - slack).all()


@settings(max_examples=30 if ON_CPU else 200, deadline=None)
@given(st.integers(1, 40), st.integers(2, 140), st.integers(0, 2**31))
def test_the_order_of_the_keys_does_not_matter(seq_query, seq_key, seed):
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, 1, n, 16).to(kernels.device()) for n in (seq_query, seq_key, seq_key)
    )
    order = torch.randperm(seq_key).to(kernels.device())
    error = reference.errors(
        naive.attention(query, key[:, :, order], value[:, :, order]),
        reference.attention(query, key, value),
    )
    assert error.within(reference.error_budget(query, key, value))


@pytest.mark.parametrize(("changed", "error", "message"), BAD_ATTENTION_INPUTS)
def test_bad_input_is_refused_before_any_launch(changed, error, message, monkeypatch):
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(naive.scores_kernel), "run", launched)
    with pytest.raises(error, match=message):
        naive.attention(**(GOOD_ATTENTION_INPUTS | changed))


@pytest.mark.gpu
def test_cpu_tensors_are_refused_when_kernels_are_compiled():
    with pytest.raises(ValueError, match="query is on cpu, but the kernels are compiled"):
        naive.attention(*(torch.zeros(1, 1, 2, 16) for _ in range(3)))


@pytest.mark.gpu
def test_scores_beyond_2_to_the_31_elements():
    length = 27000
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 3, length, 64, device="cuda", dtype=torch.float16) for _ in range(3)
    )
    assert 3 * length**2 > 2**31
    output = naive.attention(query, key, value)
    last = slice(length - 300, length)
    rows = query[:, 2:, last]
    expected = reference.attention(rows, key[:, 2:], value[:, 2:])
    budget = reference.error_budget(rows, key[:, 2:], value[:, 2:], rounded_scores=True)
    assert reference.errors(output[:, 2:, last], expected).within(budget)


@pytest.mark.gpu
@pytest.mark.parametrize("far", ["batch", "head", "row", "head_dim"])
def test_inputs_whose_offsets_pass_2_to_the_31(far):
    near, spread = inputs_far_apart(far)
    assert torch.equal(naive.attention(*spread), naive.attention(*near))
