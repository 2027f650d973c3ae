"""A step's time from a record's rows: exact at its points, linear between them, and no guess beyond."""

import pytest

from instruments.step_cost import StepCost


def rows():
    """Milliseconds from formulas that are linear along each axis, so that every value is known."""
    made = [{"step": "tokens", "tokens": n, "ms": 5 + 0.01 * n} for n in (1, 64, 2048)]
    made += [
        {"step": "decode", "sequences": b, "tokens_read": t, "block_size": 16, "ms": decode(b, t)}
        for b in (1, 8, 256)
        for t in (1000, 4000, 16000)
    ]
    made += [
        {"step": "decode", "sequences": 8, "tokens_read": 4000, "block_size": size, "ms": factor}
        for size, factor in ((1, 3 * decode(8, 4000)), (64, decode(8, 4000) / 2))
    ]
    made += [
        {"step": "prefill", "tokens": n, "tokens_before": t, "ms": prefill(n, t)}
        for n in (16, 512, 2048)
        for t in (0, 512, 2048)
    ]
    made += [
        {"step": "swap", "block_size": size, "slots": 512, "ms": 512 * each}
        for size, each in ((1, 0.5), (16, 0.1), (64, 0.05))
    ]
    return made


def decode(sequences, read):
    return 0.001 * read + 0.002 * sequences + 1e-6 * sequences * read


def prefill(tokens, before):
    return 0.003 * tokens + 1e-6 * tokens * before


def milliseconds(cost, **step):
    return 1000 * cost.seconds(**step)


@pytest.mark.parametrize("contexts", [[1000], [500] * 8, [100, 900, 3000], [62] * 256, [700] * 20])
def test_decoding(contexts):
    count, read = len(contexts), sum(contexts)
    expected = 5 + 0.01 * count + decode(count, read)
    assert milliseconds(StepCost(rows()), decodes=contexts) == pytest.approx(expected)


@pytest.mark.parametrize(("tokens", "before"), [(16, 0), (300, 700), (2048, 2048), (777, 1)])
def test_prefill(tokens, before):
    expected = 5 + 0.01 * tokens + prefill(tokens, before)
    assert milliseconds(StepCost(rows()), prefills=[(tokens, before)]) == pytest.approx(expected)


def test_a_mixed_step_is_the_sum_and_the_weights_are_read_once():
    found = milliseconds(
        StepCost(rows()), decodes=[500, 700], prefills=[(100, 0), (40, 60)], swapped=32
    )
    expected = 5 + 0.01 * 142 + decode(2, 1200) + prefill(100, 0) + prefill(40, 60) + 3.2
    assert found == pytest.approx(expected)


def test_below_the_first_point_it_is_the_first_points():
    cost = StepCost(rows())
    assert milliseconds(cost, decodes=[10]) == pytest.approx(5.01 + decode(1, 1000))
    assert milliseconds(cost, prefills=[(2, 0)]) == pytest.approx(5.02 + prefill(16, 0))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"decodes": [1] * 257}, "sequences was measured up to 256, and 257 are asked for"),
        ({"decodes": [9000] * 2}, "tokens read was measured up to 16000, and 18000"),
        ({"prefills": [(2049, 0)]}, "tokens was measured up to 2048, and 2049"),
        ({"prefills": [(20, 3000)]}, "tokens before was measured up to 2048, and 3000"),
    ],
)
def test_nothing_is_guessed_beyond_what_was_measured(step, words):
    with pytest.raises(ValueError, match=words):
        StepCost(rows()).seconds(**step)


def test_a_block_size_scales_decoding_and_has_its_own_swapping():
    for size, factor, each in ((1, 3, 0.5), (64, 0.5, 0.05), (16, 1, 0.1)):
        cost = StepCost(rows(), size)
        expected = 5.04 + factor * decode(4, 2000)
        assert milliseconds(cost, decodes=[500] * 4) == pytest.approx(expected)
        assert milliseconds(cost, swapped=64) == pytest.approx(64 * each)
    with pytest.raises(ValueError, match=r"block_size must be one of \[1, 16, 64\], got 32"):
        StepCost(rows(), 32)


def test_a_step_that_does_nothing_takes_no_time():
    assert StepCost(rows()).seconds() == 0
