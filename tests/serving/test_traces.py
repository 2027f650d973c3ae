"""Traces: lengths have the published means, arrivals are Poisson's, and a seed repeats them."""

import numpy as np
import pytest

from serving import traces
from serving.traces import ALPACA, SHAREGPT, TRANSLATION, Lengths


@pytest.mark.parametrize(
    ("lengths", "mean"),
    [
        (SHAREGPT.prompts, 161.31),
        (SHAREGPT.outputs, 337.99),
        (ALPACA.prompts, 19.31),
        (ALPACA.outputs, 58.45),
        (TRANSLATION.outputs, 30.0),
        (Lengths(1.01, 0.3, 50), 1.01),
        (Lengths(48.0, 3.0, 50), 48.0),
    ],
)
def test_the_mean_is_exactly_the_published_one(lengths, mean):
    probabilities = lengths.probabilities
    sizes = np.arange(1, lengths.longest + 1)
    assert probabilities.sum() == pytest.approx(1, rel=1e-12)
    assert probabilities @ sizes == pytest.approx(mean, rel=1e-9)
    assert (probabilities >= 0).all()


def test_the_spread_of_sharegpts_outputs_is_that_of_figure_2():
    sizes = np.arange(1, SHAREGPT.outputs.longest + 1)
    p = SHAREGPT.outputs.probabilities
    to_come = 0.133 * 15728 / 7  # slots of a request that will still be filled
    assert p @ sizes**2 / (p @ sizes) == pytest.approx(2 * to_come, rel=0.02)


def test_a_log_normal_has_the_spread_asked_for():
    p = Lengths(20.0, 0.4, 2000).probabilities
    logarithms = np.log(np.arange(1, 2001))
    mean = p @ logarithms
    assert np.sqrt(p @ (logarithms - mean) ** 2) == pytest.approx(0.4, rel=0.01)


def test_what_is_drawn_has_the_probabilities():
    count = 20_000
    drawn = np.array([r.output for r in traces.requests(ALPACA, count, rate=1.0)])
    p = ALPACA.outputs.probabilities
    sizes = np.arange(1, ALPACA.outputs.longest + 1)
    deviation = np.sqrt(p @ (sizes - 58.45) ** 2)
    assert abs(drawn.mean() - 58.45) < 4 * deviation / np.sqrt(count)
    # The share below a few lengths, each within four standard deviations.
    for below in (20, 50, 100, 200):
        share = p[:below].sum()
        found = (drawn <= below).mean()
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_arrivals_are_poissons():
    count, rate = 20_000, 3.0
    arrivals = np.array([r.arrival for r in traces.requests(SHAREGPT, count, rate)])
    gaps = np.diff(arrivals, prepend=0)
    assert (gaps > 0).all()
    assert abs(gaps.mean() * rate - 1) < 4 / np.sqrt(count)
    # An exponential's share beyond its mean is 1/e.
    share = np.exp(-1)
    assert abs((gaps > 1 / rate).mean() - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_at_an_infinite_rate_all_arrive_at_once():
    assert {r.arrival for r in traces.requests(SHAREGPT, 9, float("inf"))} == {0.0}


def test_a_seed_repeats_and_another_differs():
    first, again, other = (traces.requests(SHAREGPT, 50, 2.0, seed) for seed in (5, 5, 6))
    assert first == again != other
    assert traces.chat(50, 2.0, 5) == traces.chat(50, 2.0, 5) != traces.chat(50, 2.0, 6)
    # The lengths do not depend on the rate, so that rates can be compared.
    faster = traces.requests(SHAREGPT, 50, 8.0, 5)
    assert [r[1:] for r in first] == [r[1:] for r in faster]
    assert [r.arrival for r in faster] == pytest.approx([r.arrival / 4 for r in first])


def test_a_request_fits_the_model():
    for request in traces.requests(SHAREGPT, 5000, 1.0):
        assert request.prompt >= 1 and request.output >= 1
        assert request.prompt + request.output <= 2048


def test_only_the_prefix_is_shared():
    trace = traces.requests(TRANSLATION.with_prefix(80), 20, 1.0)
    prompts = [request.tokens(number) for number, request in enumerate(trace)]
    assert {tuple(prompt[:80]) for prompt in prompts} == {tuple(range(80))}
    own = [token for prompt in prompts for token in prompt[80:]]
    assert len(own) == len(set(own)) and min(own) > 80
    assert [len(prompt) for prompt in prompts] == [request.prompt for request in trace]
    assert min(request.prompt for request in trace) > 80


def test_a_conversation_grows_until_it_is_cut():
    trace = traces.chat(3000, 1.0)
    lengths = [request.prompt for request in trace]
    assert max(lengths) == 1024 and max(request.output for request in trace) <= 1024
    # One in CHAT_ROUNDS is the first of its conversation; most of the others are cut.
    assert 0.4 < np.mean(np.array(lengths) == 1024) < 1 - 1 / traces.CHAT_ROUNDS
    arrivals = [request.arrival for request in trace]
    assert arrivals == sorted(arrivals)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Lengths(0.5, 1.0, 10), "mean must lie between 1 and the longest, 10; got 0.5"),
        (lambda: Lengths(10.0, 1.0, 10), "got 10.0"),
        (lambda: Lengths(5.0, 0.0, 10), "spread must be above 0, got 0.0"),
        (lambda: traces.requests(ALPACA, 0, 1.0), "count must be a whole number.*got 0"),
        (lambda: traces.requests(ALPACA, 1, 0.0), "rate must be above 0, got 0.0"),
        (lambda: traces.chat(1, float("nan")), "rate must be above 0, got nan"),
    ],
)
def test_bad_numbers_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
