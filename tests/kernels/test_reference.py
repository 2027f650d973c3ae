"""The oracle against PyTorch's own attention, against autograd, and the budget against wrong kernels."""

import pytest
import torch

from kernels import reference


def _inputs(heads=4, kv_heads=2, seq_query=5, seq_key=7, head_dim=16, dtype=torch.float64):
    torch.manual_seed(0)
    query = torch.randn(2, heads, seq_query, head_dim, dtype=dtype)
    key, value = (torch.randn(2, kv_heads, seq_key, head_dim, dtype=dtype) for _ in range(2))
    return query, key, value


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_forward_agrees_with_pytorch(kv_heads):
    query, key, value = _inputs(kv_heads=kv_heads)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(reference.attention(query, key, value), expected)


@pytest.mark.parametrize(("seq_query", "seq_key"), [(5, 7), (7, 5), (6, 6)])
def test_causal_is_aligned_at_the_bottom_right(seq_query, seq_key):
    query, key, value = _inputs(seq_query=seq_query, seq_key=seq_key)
    output = reference.attention(query, key, value, causal=True)
    for row in range(seq_query):
        seen = seq_key - seq_query + row + 1
        if seen <= 0:
            assert (output[:, :, row] == 0).all()
            continue
        alone = reference.attention(
            query[:, :, row : row + 1], key[:, :, :seen], value[:, :, :seen]
        )
        torch.testing.assert_close(output[:, :, row : row + 1], alone)


def test_mask_and_rows_with_nothing_visible():
    query, key, value = _inputs()
    mask = torch.rand(2, 4, 5, 7) < 0.5
    mask[:, :, 3] = False
    output, logsumexp = reference.attention(query, key, value, mask=mask, return_logsumexp=True)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=True
    )
    shown = [0, 1, 2, 4]
    torch.testing.assert_close(output[:, :, shown], expected[:, :, shown])
    assert (output[:, :, 3] == 0).all() and (logsumexp[:, :, 3] == -torch.inf).all()


def test_logsumexp_agrees_with_pytorch():
    query, key, value = _inputs(kv_heads=4)
    _, logsumexp = reference.attention(query, key, value, scale=0.3, return_logsumexp=True)
    torch.testing.assert_close(logsumexp, (0.3 * query @ key.mT).logsumexp(-1))


@pytest.mark.parametrize("causal", [False, True])
def test_forward_passes_gradcheck(causal):
    # Seven queries on five keys: under the causal mask the first two rows see nothing.
    inputs = [x.requires_grad_() for x in _inputs(2, 1, 7, 5, 3)]
    assert torch.autograd.gradcheck(
        lambda *qkv: reference.attention(*qkv, causal=causal, scale=0.7), inputs
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_written_out_gradients_agree_with_autograd(causal, kv_heads):
    query, key, value = (x.requires_grad_() for x in _inputs(kv_heads=kv_heads, seq_query=9))
    mask = torch.rand(9, 7) < 0.8
    output = reference.attention(query, key, value, causal=causal, mask=mask)
    grad_output = torch.randn_like(output)
    expected = torch.autograd.grad(output, (query, key, value), grad_output)
    written = reference.attention_gradients(
        query.detach(), key.detach(), value.detach(), grad_output, causal=causal, mask=mask
    )
    for ours, theirs in zip(written, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def _no_scale(query, key, value):
    return reference.attention(query, key, value, scale=1.0)


def _one_key_short(query, key, value):
    return reference.attention(query, key[:, :, :-1], value[:, :, :-1])


def _keys_shifted(query, key, value):
    return reference.attention(query, key.roll(1, 2), value)


def _scores_in_half(query, key, value):
    careful, _ = reference.careful_attention(query, key, value, rounded_scores=True)
    return careful


@pytest.mark.parametrize("wrong", [_no_scale, _one_key_short, _keys_shifted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_budget_refuses_wrong_attention(wrong, dtype):
    query, key, value = (x.to(dtype) for x in _inputs(seq_key=257))
    error = reference.errors(
        wrong(query, key, value).to(dtype), reference.attention(query, key, value)
    )
    for rounded_scores in (False, True):
        budget = reference.error_budget(query, key, value, rounded_scores=rounded_scores)
        assert not error.within(budget)


def test_the_strict_budget_refuses_rounded_scores_when_they_are_large():
    query, key, value = (x.half() for x in _inputs(seq_key=257))
    query = 30 * query
    error = reference.errors(
        _scores_in_half(query, key, value), reference.attention(query, key, value)
    )
    assert not error.within(reference.error_budget(query, key, value))
    assert error.within(reference.error_budget(query, key, value, rounded_scores=True))


def test_nan_is_outside_every_budget_and_equal_infinities_are_no_error():
    nan, infinity = torch.full((2,), torch.nan), torch.full((2,), -torch.inf)
    wide = reference.Errors(torch.inf, torch.inf)
    assert not reference.errors(nan, torch.zeros(2)).within(wide)
    assert reference.errors(infinity, infinity.double()).within(reference.Errors(0.0, 0.0))
