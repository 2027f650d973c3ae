"""The oracle with options agrees with the oracle without, and with PyTorch."""

import pytest
import torch

from kernels import reference, reference_options
from kernels.reference_options import Options
from tests.kernels.training import draw


def inputs(lengths=(5, 7), heads=(4, 2), head_dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    seq_query, seq_key = lengths
    return tuple(
        torch.randn(2, h, n, head_dim, dtype=dtype)
        for h, n in ((heads[0], seq_query), (heads[1], seq_key), (heads[1], seq_key))
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(5, 7), (7, 5), (6, 6)])
def test_without_options_it_is_the_oracle(causal, lengths):
    tensors = inputs(lengths)
    output, logsumexp = reference_options.attention(*tensors, Options(causal=causal))
    expected = reference.attention(*tensors, causal=causal, return_logsumexp=True)
    torch.testing.assert_close(logsumexp, expected[1])
    torch.testing.assert_close(output, expected[0])
    grad_output, _ = draw(tensors[0])
    written_out = reference.attention_gradients(*tensors, grad_output, causal=causal)
    found = reference_options.gradients(*tensors, grad_output, Options(causal=causal))
    for one, other in zip(found, written_out, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", [(5, 7), (7, 5)])
@pytest.mark.parametrize("window", [0, 1, 3, 20])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_is_a_mask(lengths, window, causal):
    tensors = inputs(lengths)
    seq_query, seq_key = lengths
    mask = torch.zeros(lengths, dtype=torch.bool)
    for row in range(seq_query):
        for column in range(seq_key):
            later = column - (row + seq_key - seq_query)
            mask[row, column] = -window <= later <= (0 if causal else window)
    output, _ = reference_options.attention(*tensors, Options(causal=causal, window=window))
    torch.testing.assert_close(output, reference.attention(*tensors, mask=mask))


def test_a_cap_far_above_the_scores_changes_little_and_a_low_one_bounds_them():
    query, key, value = inputs()
    plain, _ = reference_options.attention(query, key, value, Options())
    # s - c tanh(s / c) is s³ / 3c² and less.
    high, _ = reference_options.attention(query, key, value, Options(softcap=1e6))
    torch.testing.assert_close(high, plain)
    _, logsumexp = reference_options.attention(100 * query, key, value, Options(softcap=2.0))
    assert logsumexp.max() <= 2.0 + torch.tensor(7.0).log()


def test_dropout_multiplies_the_weights():
    query, key, value = inputs(heads=(2, 2))
    kept = torch.rand(2, 2, 5, 7) < 0.5
    options = Options(dropout=0.5, kept=kept)
    output, logsumexp = reference_options.attention(query, key, value, options)
    weights = (query @ key.mT / 8**0.5).softmax(-1) * kept * 2
    torch.testing.assert_close(output, weights @ value)
    _, without = reference_options.attention(query, key, value, Options())
    assert torch.equal(logsumexp, without)


@pytest.mark.parametrize(
    "options",
    [Options(causal=True, window=2), Options(softcap=1.5), Options(dropout=0.25)],
    ids=["window", "softcap", "dropout"],
)
def test_it_passes_gradcheck(options):
    query, key, value = (x[:1].requires_grad_() for x in inputs((3, 4), (2, 1), 2))
    if options.dropout:
        options = Options(dropout=0.25, kept=torch.rand(1, 2, 3, 4) < 0.75)
    assert torch.autograd.gradcheck(
        lambda *tensors: reference_options.attention(*tensors, options), (query, key, value)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        Options(causal=True),
        Options(scale=0.3),
        Options(window=3),
        Options(softcap=5.0),
        Options(dropout=0.1, kept=torch.ones(2, 4, 5, 7, dtype=torch.bool)),
    ],
    ids=["mask", "scale", "window", "cap", "dropout"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_gradients_budget_refuses_wrong_options(wrong, dtype):
    tensors = inputs(dtype=dtype)
    grad_output, grad_logsumexp = draw(tensors[0])
    allowed = reference_options.gradient_budget(*tensors, grad_output, Options(), grad_logsumexp)
    expected = reference_options.gradients(*tensors, grad_output, Options(), grad_logsumexp)
    found = reference_options.gradients(*tensors, grad_output, wrong, grad_logsumexp)
    exact = [reference.errors(x.to(dtype), x) for x in expected]
    assert all(e.within(a) for e, a in zip(exact, allowed, strict=True))
    wrongs = [reference.errors(x, y) for x, y in zip(found, expected, strict=True)]
    assert not all(e.within(a) for e, a in zip(wrongs, allowed, strict=True))


def test_a_gradient_without_that_of_the_logsumexp_is_refused():
    tensors = inputs(dtype=torch.float32)
    grad_output, grad_logsumexp = draw(tensors[0])
    allowed = reference_options.gradient_budget(*tensors, grad_output, Options(), grad_logsumexp)
    expected = reference_options.gradients(*tensors, grad_output, Options(), grad_logsumexp)
    without = reference_options.gradients(*tensors, grad_output, Options())
    assert not reference.errors(without[0], expected[0]).within(allowed[0])
