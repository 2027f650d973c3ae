"""The figure's steps against the same recurrence in Python, and against the definition of softmax."""

import math
import random
import struct

import pytest

from figures.online_softmax import DEFAULT_SCORES, OnlineSoftmax

INFINITY = math.inf

# JSON has no infinities: scores travel as None, and what comes back says "-Infinity" (or "NaN").
IN_JAVASCRIPT = """((run) => JSON.parse(JSON.stringify(
  data.map(([scores, ...rest]) => run(scores.map((score) => score ?? -Infinity), ...rest)),
  (key, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value),
)))"""


def numbers(value):
    """What came back, with its infinities as numbers again."""
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [numbers(part) for part in value]
    assert value != "NaN"
    return float(value) if value in ("Infinity", "-Infinity") else value


@pytest.fixture
def run_all(in_node):
    """run_all("(scores, block) => …", cases): the function's value for each case."""

    def run(function, cases):
        sent = [[[None if x == -INFINITY else x for x in row], *rest] for row, *rest in cases]
        return numbers(in_node("online_softmax", f"{IN_JAVASCRIPT}({function})", sent))

    return run


def online_trace(scores, block):
    """(maximum, rescale factor, sum) after each block, as the textbook has it."""
    running_max, running_sum, trace = -INFINITY, 0.0, []
    for start in range(0, len(scores), block):
        new_max = max(running_max, *scores[start : start + block])
        shift = 0.0 if new_max == -INFINITY else new_max
        rescale = math.exp(running_max - shift)
        terms = [math.exp(score - shift) for score in scores[start : start + block]]
        running_max, running_sum = new_max, rescale * running_sum + math.fsum(terms)
        trace.append((running_max, rescale, running_sum))
    return trace


def statistics(scores):
    """Maximum and sum by their definition."""
    largest = max(scores)
    if largest == -INFINITY:
        return largest, 0.0
    return largest, math.fsum(math.exp(score - largest) for score in scores)


def softmax(scores):
    largest, total = statistics(scores)
    return [math.exp(score - largest) / total if total else 0.0 for score in scores]


def close(one, other):
    return one == other or math.isclose(one, other, rel_tol=1e-12)


def random_rows(count):
    """Rows of every length, some with hidden scores, some with nothing else."""
    generator = random.Random(2)
    rows = [[-INFINITY] * 8, [-INFINITY] * 15 + [3.0], [3.0] + [-INFINITY] * 15, [100.0] * 16]
    while len(rows) < count:
        hidden = generator.choice([0, 0, 0.2, 0.7])
        spread = generator.choice([1, 6, 100])
        rows.append(
            [
                -INFINITY if generator.random() < hidden else generator.uniform(-spread, spread)
                for _ in range(generator.randint(8, 16))
            ]
        )
    return rows


def test_each_step_is_pythons(run_all):
    cases = [(row, block) for row in random_rows(500) for block in (1, 2, 4, 8)]
    answers = run_all("(scores, block) => figure.onlineTrace(scores, block)", cases)
    for (row, block), (start, *steps) in zip(cases, answers, strict=True):
        assert (start["max"], start["sum"]) == (-INFINITY, 0)
        expected = online_trace(row, block)
        assert len(steps) == len(expected)
        for step, (running_max, rescale, running_sum) in zip(steps, expected, strict=True):
            assert step["max"] == running_max
            assert close(step["alpha"], rescale) and close(step["sum"], running_sum)
            assert step["blockMax"] == max(row[step["from"] : step["to"]])
        read = [index for step in steps for index in range(step["from"], step["to"])]
        assert read == list(range(len(row)))


def test_however_it_is_read_the_end_is_the_softmax(run_all):
    cases = [
        (row, block, split)
        for row in random_rows(250)
        for block in (1, 2, 4, 8)
        for split in (False, True)
    ]
    function = """(scores, block, split) => {
      const frame = figure.softmaxFrames(scores, block, split).at(-1);
      const shares = figure.frameTerms(frame, scores).map(({ value }) => value);
      return { ...frame.sums[0], shares };
    }"""
    for (row, *_), end in zip(cases, run_all(function, cases), strict=True):
        largest, total = statistics(row)
        assert end["max"] == largest and close(end["sum"], total)
        assert all(map(close, end["shares"], softmax(row)))


def test_at_every_step_the_terms_held_add_up_to_the_sum(run_all):
    """Also: every term of before is the factor times smaller, and no state has a NaN in it."""
    cases = [
        (row, block, split)
        for row in random_rows(120)
        for block in (1, 2, 4, 8)
        for split in (False, True)
    ]
    function = """(scores, block, split) => figure.softmaxFrames(scores, block, split)
      .map((frame) => ({ ...frame, terms: figure.frameTerms(frame, scores) }))"""
    for (row, block, split), frames in zip(cases, run_all(function, cases), strict=True):
        figure = OnlineSoftmax(scores=row, block=block, split=split)
        assert figure.last_step == len(frames) - 1
        for frame in frames:
            terms = frame["terms"]
            for part in frame["sums"]:
                held = [term["held"] for term in terms[part["start"] : part["read"]]]
                assert math.isclose(math.fsum(held), part["sum"], rel_tol=1e-12)
            for group in frame["groups"]:
                assert all(term["held"] is None for term in terms[group["read"] : group["end"]])
                for term in terms[group["start"] : group["from"]]:
                    product = term["before"] * group["factor"]
                    # Not below the smallest normal number, where a factor has few digits.
                    assert math.isclose(term["held"], product, rel_tol=1e-9, abs_tol=1e-290)


def rounded(value, code):
    try:
        return struct.unpack(code, struct.pack(code, value))[0]
    except OverflowError:
        return INFINITY


@pytest.mark.parametrize(("dtype", "code"), [("fp16", "<e"), ("fp32", "<f")])
def test_a_naive_sum_overflows_where_the_format_does(run_all, dtype, code):
    rows = random_rows(300) + [[peak / 100] * 8 for peak in range(850, 1120)]
    rows += [[peak / 100] + [-100.0] * 7 for peak in [*range(1100, 1115), *range(8865, 8880)]]
    rows += [[88.5] * 16, [-18.0] * 8, [-17.0] * 8]
    outcomes = set()
    answers = run_all("(row, dtype) => figure.naiveSum(row, dtype)", [(r, dtype) for r in rows])
    for row, answer in zip(rows, answers, strict=True):
        largest, total = math.exp(max(row)), sum(map(math.exp, row))
        if rounded(largest, code) == INFINITY:
            expected = "a term overflows"
        elif rounded(total, code) == INFINITY:
            expected = "the sum overflows"
        else:
            expected = "vanishes" if rounded(largest, code) == 0 else "fits"
        assert answer["outcome"] == expected, row
        outcomes.add(expected)
    assert outcomes == {"a term overflows", "the sum overflows", "vanishes", "fits"}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("showScore(-Infinity)", "−∞"),
        ("showScore(2)", "2.0"),
        ("showScore(-3.14)", "−3.14"),
        ("showScore(-0.001)", "0.0"),
        ("showNumber(0)", "0"),
        ("showNumber(1)", "1"),
        ("showNumber(0.99999)", "1.000"),
        ("showNumber(0.0005)", "0.001"),
        ("showNumber(3.2e-8)", "3e−8"),
        ("FORMATS.fp16.largest", 65504),
        ("Math.fround(figure.FORMATS.fp32.largest) === figure.FORMATS.fp32.largest", True),
    ],
)
def test_numbers_are_said_correctly(in_node, call, text):
    expression = call if call.startswith("Math") else f"figure.{call}"
    assert in_node("online_softmax", expression) == text


def test_the_row_it_starts_with_tells_the_story():
    """The maximum is set, raised, left alone and raised again."""
    factors = [rescale for _, rescale, _ in online_trace(DEFAULT_SCORES, 2)]
    assert factors[0] == 0 and factors[2] == 1
    assert 0.1 < factors[1] < 0.5 and 0.1 < factors[3] < 0.5


def test_hidden_scores_are_kept_as_json_can_say_them():
    figure = OnlineSoftmax(scores=[-INFINITY, None, 1, 2, 3, 4, 5, 6])
    assert figure.scores == [None, None, 1, 2, 3, 4, 5, 6]


def test_a_step_that_is_gone_becomes_the_last_one():
    figure = OnlineSoftmax(block=1, step=9)
    figure.block = 4
    assert (figure.step, figure.last_step) == (3, 3)
    figure.split = True
    assert (figure.step, figure.last_step) == (3, 3)
    figure.block = 1
    figure.step = 6
    figure.split = False
    assert (figure.step, figure.last_step) == (6, 9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": [1.0] * 7}, "8 to 16 scores; got 7"),
        ({"scores": [1.0] * 17}, "8 to 16 scores; got 17"),
        ({"scores": [0.0] * 7 + [float("nan")]}, "A score is a number .*-inf .*got nan"),
        ({"scores": [0.0] * 7 + [INFINITY]}, "from -100 to 100.*got inf"),
        ({"scores": [0.0] * 7 + ["1"]}, "A score is a number .*got '1'"),
        ({"scores": 3}, "scores.*list.*3"),
        ({"block": 3}, "block.*1, 2, 4, 8.*3"),
        ({"step": 6}, "step is a whole number from 0 to 5; got 6"),
        ({"step": -1}, "from 0 to 5; got -1"),
        ({"split": "yes"}, "split.*boolean.*yes"),
        ({"dtype": "bf16"}, "dtype.*fp16.*bf16"),
        ({"row": []}, "no option 'row'.*block, dtype, scores, split, step"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        OnlineSoftmax(**options)
    assert "\n" not in str(caught.value)
