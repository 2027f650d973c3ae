"""Tokens come as often as their probabilities say, from exactly those that the filters leave."""

from math import exp

import numpy as np
import pytest
import torch

from serving.sampler import SamplingParams, draw, extend_beams, filtered, sample

DRAWS = 20_000


def options(rows: int, temperature=1.0, top_k=None, top_p=1.0, vocabulary=1000) -> tuple:
    return (
        torch.full((rows,), temperature, dtype=torch.float64),
        torch.full((rows,), vocabulary if top_k is None else top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
    )


def written_out(logits: list[float], temperature=1.0, top_k=None, top_p=1.0) -> list[float]:
    """The probabilities by the filters' definitions, one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        order, temperature = order[:1], 1.0
    order = order[:top_k]
    weights = {token: exp(logits[token] / temperature) for token in order}
    total, kept, reached = sum(weights.values()), [], 0.0
    for token in order:
        if top_p < 1 and reached >= top_p * total:
            break
        kept.append(token)
        reached += weights[token]
    return [weights[token] / reached if token in kept else 0.0 for token in range(len(logits))]


def probabilities(logits, **chosen) -> torch.Tensor:
    tokens, sorted_probabilities = filtered(logits, *options(len(logits), **chosen))
    return torch.zeros_like(sorted_probabilities).scatter(1, tokens, sorted_probabilities)


@pytest.mark.parametrize("temperature", [0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 2, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.31, 1e-9])
def test_filters_leave_what_their_definitions_say(temperature, top_k, top_p):
    logits = 3 * torch.randn(8, 23, generator=torch.Generator().manual_seed(0))
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    got = probabilities(logits, **chosen)
    expected = torch.tensor(
        [written_out(row, **chosen) for row in logits.tolist()], dtype=torch.float64
    )
    assert torch.equal(got > 0, expected > 0)
    assert (got - expected).abs().max() < 100 * 2.0**-53  # sums of 23 terms and a few products


def test_top_k_keeps_exactly_k_of_equals():
    for k in (1, 3, 5):
        got = probabilities(torch.zeros(1, 6), top_k=k)
        assert got.tolist() == [[1 / k] * k + [0] * (6 - k)]


def test_top_p_keeps_the_token_that_reaches_the_share_and_none_after():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    for top_p, count in [(0.4999, 1), (0.5001, 2), (0.7499, 2), (0.7501, 3), (0.8751, 4), (1, 4)]:
        assert (probabilities(logits, top_p=top_p) > 0).sum() == count, top_p


def test_top_p_that_is_reached_exactly_takes_no_more():
    for count in (1, 2, 3, 4):
        assert (probabilities(torch.zeros(1, 4), top_p=count / 4) > 0).sum() == count


def test_a_row_has_its_own_options():
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    tokens, weights = filtered(
        logits, torch.tensor([0, 1, 1]), torch.tensor([3, 2, 3]), torch.tensor([1, 1, 0.1])
    )
    assert (weights > 0).sum(-1).tolist() == [1, 2, 1]
    assert tokens.tolist() == [[2, 1, 0]] * 3


def test_extreme_logits_give_no_infinities():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -1e30]])
    got = probabilities(logits, temperature=1e-4)
    assert got.tolist() == [[1, 0, 0], [1 / 3] * 3]


def chi_square_tail(counts: np.ndarray, expected: np.ndarray) -> float:
    """The probability of counts at least as far from the expected ones."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return torch.special.gammaincc(*torch.tensor([freedom / 2, statistic / 2]).double()).item()


@pytest.mark.parametrize(
    "chosen",
    [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"top_p": 0.8}],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_tokens_come_as_often_as_their_probabilities(chosen, seed):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    uniform = torch.from_numpy(draw(seed, 0, DRAWS))
    tokens = sample(logits.expand(DRAWS, -1), *options(DRAWS, **chosen), uniform)
    expected = np.array(written_out(logits[0].tolist(), **chosen)) * DRAWS
    counts = np.bincount(tokens, minlength=12)
    assert (counts[expected == 0] == 0).all()
    assert chi_square_tail(counts[expected > 0], expected[expected > 0]) > 1e-3


def test_the_count_of_tokens_would_show_a_wrong_temperature():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    uniform = torch.from_numpy(draw(0, 0, DRAWS))
    tokens = sample(logits.expand(DRAWS, -1), *options(DRAWS, temperature=1.1), uniform)
    expected = np.array(written_out(logits[0].tolist())) * DRAWS
    assert chi_square_tail(np.bincount(tokens, minlength=12), expected) < 1e-9


def test_sequences_and_seeds_have_independent_numbers():
    """Pairs of numbers fall equally often into each cell of a square."""
    first, sibling, other = draw(1, 0, DRAWS), draw(1, 1, DRAWS), draw(2, 0, DRAWS)
    for left, right in [(first, sibling), (first, other), (first[:-1], first[1:])]:
        cells = (8 * left).astype(int) * 8 + (8 * right).astype(int)
        counts = np.bincount(cells, minlength=64)
        assert chi_square_tail(counts, np.full(64, len(left) / 64)) > 1e-3
    assert (draw(1, 0, 5) == first[:5]).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_random_numbers_are_tokens_that_can_come(uniform):
    logits = torch.tensor([[float(i % 7) for i in range(1000)]])
    number = torch.tensor([uniform], dtype=torch.float64)
    (token,) = sample(logits, *options(1, top_k=11), number).tolist()
    assert token == (6 if uniform == 0 else 6 + 7 * 10)


def test_a_number_on_the_border_of_two_tokens_is_the_second():
    numbers = torch.tensor([0, 0.25, 0.5, 0.75], dtype=torch.float64)
    assert sample(torch.zeros(4, 4), *options(4), numbers).tolist() == [0, 1, 2, 3]


def test_probabilities_that_add_up_to_less_than_one_lead_to_no_other_token():
    """Ten tenths, for one, are 1 - 2**-53 in float64."""
    count = torch.arange(1, 100)
    numbers = torch.full((99,), 1 - 2.0**-53, dtype=torch.float64)
    temperature, _, top_p = options(99)
    tokens = sample(torch.zeros(99, 200), temperature, count, top_p, numbers)
    assert torch.equal(tokens, count - 1)


def test_greedy_is_the_first_of_the_likeliest_whatever_the_number():
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0]] * 2)
    numbers = torch.tensor([0.0, 0.999], dtype=torch.float64)
    assert sample(logits, *options(2, temperature=0), numbers).tolist() == [1, 1]


def test_beams_go_on_with_the_likeliest_of_all():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    table = scores[:, None] + logits.double().log_softmax(-1)
    expected = sorted(
        ((table[beam, token].item(), beam, token) for beam in range(3) for token in range(5)),
        reverse=True,
    )
    got = extend_beams(logits, scores, 6)
    assert [(c.score, c.parent, c.token) for c in got] == expected[:6]
    assert len(extend_beams(logits, scores, 100)) == 15


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1; got 0"),
        ({"n": 1.0}, "n must be a whole number, at least 1; got 1.0"),
        ({"temperature": -1}, "temperature must be a finite number, at least 0; got -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number.*got nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number.*got inf"),
        ({"temperature": "hot"}, "temperature must be a finite number.*got 'hot'"),
        ({"top_k": 0}, "top_k must be a whole number, at least 1; got 0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be a finite number, at least 0 and at most 1; got 1.1"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
        ({"seed": 2**63}, "seed must be below"),
        ({"stop": [[]]}, "stop has an empty sequence"),
    ],
)
def test_impossible_parameters_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**chosen)


def test_a_sequence_stops_at_any_of_its_ends():
    params = SamplingParams(stop=[[5], [1, 2]])
    assert [params.stops(tokens) for tokens in ([5], [3, 1, 2], [2], [1], [5, 1], [])] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
