"""FlashAttention-1, both loop orders, against the oracle."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import flash1, reference
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.grid import (
    DTYPES,
    assert_matches_oracle,
    full_grid,
    inputs_far_apart,
    make_inputs,
    pairwise_grid,
)

ON_CPU = kernels.INTERPRETED
ORDERS = {"printed": flash1.printed_attention, "swapped": flash1.attention}
either_order = pytest.mark.parametrize("attention", ORDERS.values(), ids=ORDERS)


@pytest.mark.parametrize(
    ("cell", "order"), (pairwise_grid if ON_CPU else full_grid)(order=ORDERS), ids=str
)
def test_matches_the_oracle(cell, order):
    query, key, value = make_inputs(cell)
    assert_matches_oracle(ORDERS[order], query, key, value, causal=cell.causal)


@either_order
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(dtype, causal, attention):
    torch.manual_seed(0)
    query, key, value = (
        (30 * torch.randn(1, 2, n, 64)).to(dtype).to(kernels.device()) for n in (63, 200, 200)
    )
    assert (query.float() @ key.float().mT).abs().max() > 1e4
    assert_matches_oracle(attention, query, key, value, causal=causal, scale=1.0)


@either_order
@pytest.mark.parametrize("block_m", [16, 64, 128])
@pytest.mark.parametrize("block_n", [16, 32, 128])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_any_tile_size_gives_the_same(block_m, block_n, causal, attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 32, device=kernels.device()) for n in (130, 150, 150))
    chosen = functools.partial(attention, block_m=block_m, block_n=block_n)
    assert_matches_oracle(chosen, query, key, value, causal=causal)


@either_order
@pytest.mark.parametrize("lengths", [(17, 18), (17, 31), (32, 17), (31, 48)], ids=str)
def test_tiles_that_end_on_the_diagonal(lengths, attention):
    # One key too few or too many in the last tile that a tile of queries visits shows here only.
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 1, n, 16, device=kernels.device()) for n in (*lengths, lengths[1])
    )
    small = functools.partial(attention, block_m=16, block_n=16)
    assert_matches_oracle(small, query, key, value, causal=True)


@either_order
def test_a_maximum_that_rises_in_every_tile(attention):
    # The worst case for the rescaling: later keys always score higher.
    torch.manual_seed(0)
    query = torch.ones(1, 1, 40, 16, device=kernels.device())
    key = torch.arange(300.0, device=kernels.device())[None, None, :, None].expand(1, 1, 300, 16)
    value = torch.randn(1, 1, 300, 16, device=kernels.device())
    assert_matches_oracle(attention, query, key, value, scale=0.1)
    assert_matches_oracle(attention, query, key.flip(2), value, scale=0.1)


@either_order
def test_a_query_that_sees_no_key_gets_zeros(attention):
    query, key, value = (torch.randn(1, 1, n, 16, device=kernels.device()) for n in (205, 2, 2))
    output, logsumexp = attention(query, key, value, causal=True, return_logsumexp=True)
    # Aligned at the bottom right, the first 203 of 205 queries come before both keys.
    assert (output[0, 0, :203] == 0).all() and (logsumexp[0, 0, :203] == -torch.inf).all()
    assert output[0, 0, 203:].abs().min() > 0 and logsumexp[0, 0, 203:].isfinite().all()


@either_order
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
def test_empty_inputs(query_shape, key_shape, attention):
    query, key = (torch.randn(shape, device=kernels.device()) for shape in (query_shape, key_shape))
    output, logsumexp = attention(query, key, key, return_logsumexp=True)
    assert output.shape == query.shape and (output == 0).all()
    assert logsumexp.shape == query.shape[:-1] and (logsumexp == -torch.inf).all()


@either_order
@settings(max_examples=20 if ON_CPU else 200, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 140), st.integers(16, 40), st.booleans(), st.integers(0, 99)
)
def test_any_shape(attention, seq_query, seq_key, head_dim, causal, seed):
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, 1, n, head_dim).to(kernels.device()) for n in (seq_query, seq_key, seq_key)
    )
    assert_matches_oracle(attention, query, key, value, causal=causal)


def test_both_orders_agree_on_float16_at_length():
    torch.manual_seed(0)
    length = 700 if ON_CPU else 5000
    query, key, value = (
        torch.randn(1, 1, length, 64).half().to(kernels.device()) for _ in range(3)
    )
    for attention in ORDERS.values():
        assert_matches_oracle(attention, query, key, value, causal=True)


@either_order
@pytest.mark.parametrize(("changed", "error", "message"), BAD_ATTENTION_INPUTS)
def test_bad_input_is_refused_before_any_launch(changed, error, message, attention, monkeypatch):
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(flash1.swapped_kernel), "run", launched)
    with pytest.raises(error, match=message):
        attention(**(GOOD_ATTENTION_INPUTS | changed))


@either_order
@pytest.mark.parametrize("size", [8, 24, 0, -16, 16.0, True])
@pytest.mark.parametrize("name", ["block_m", "block_n"])
def test_a_block_size_that_is_no_power_of_two_from_16_is_refused(name, size, attention):
    with pytest.raises(ValueError, match=f"{name} must be a power of two of at least 16, got"):
        attention(**GOOD_ATTENTION_INPUTS, **{name: size})


def test_the_papers_block_sizes():
    # 192 KB of an A100's SM, float16, d = 64: M = 96 Ki numbers, B_c = M / 4d.
    assert flash1.sram_block_sizes(192 * 1024, 64, 2) == (64, 384)
    assert flash1.sram_block_sizes(1000, 64, 2) == (2, 2)


@pytest.mark.gpu
@either_order
@pytest.mark.parametrize("far", ["batch", "head", "row", "head_dim"])
def test_inputs_whose_offsets_pass_2_to_the_31(far, attention):
    near, spread = inputs_far_apart(far)
    assert torch.equal(attention(*spread), attention(*near))


@pytest.mark.gpu
def test_outputs_beyond_2_to_the_31_elements():
    length, head_dim = 2**18 + 5, 128
    torch.manual_seed(0)
    # One key: the output is the value, so the last rows of 65 heads are known without the oracle.
    query = torch.randn(1, 65, length, head_dim, device="cuda", dtype=torch.float16)
    value = torch.randn(1, 65, 1, head_dim, device="cuda", dtype=torch.float16)
    assert query.numel() > 2**31
    for attention in ORDERS.values():
        output = attention(query, value, value)
        assert torch.equal(output[:, -1, -9:], value[:, -1].expand(1, 9, head_dim))
        del output


@pytest.mark.gpu
@pytest.mark.parametrize("repeat", range(3))
def test_the_printed_order_reloads_what_it_stored(repeat):
    # Many rounds over few rows: a missing barrier shows as a stale row of O here.
    torch.manual_seed(repeat)
    query = torch.randn(4, 64, 128, 64, device="cuda", dtype=torch.float16)
    key, value = (torch.randn(4, 64, 4096, 64, device="cuda", dtype=torch.float16) for _ in "kv")
    printed = flash1.printed_attention(query, key, value)
    for _ in range(5):
        assert torch.equal(flash1.printed_attention(query, key, value), printed)
    assert reference.errors(printed, reference.attention(query, key, value)).within(
        reference.error_budget(query, key, value)
    )
