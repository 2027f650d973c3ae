"""The figure's visits against the Python trace of the same algorithm, and against the kernels."""

import itertools
import math

import numpy as np
import pytest

from figures.tile_stepper import TileStepper
from instruments import io_model
from instruments.tile_trace import trace

ORDERS = ("keys", "queries")
ELEMENT = {"fp32": 4, "fp16": 2, "bf16": 2}

# JSON has no infinities: they come back as words.
IN_JAVASCRIPT = """((run) => JSON.parse(JSON.stringify(data.map(run),
  (key, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value),
)))"""


def numbers(value):
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [numbers(part) for part in value]
    assert value != "NaN"
    return -math.inf if value == "-Infinity" else value


@pytest.fixture
def run_all(in_node):
    """run_all("(shape) => …", shapes): the function's value for each shape."""
    return lambda function, shapes: numbers(
        in_node("tile_stepper", f"{IN_JAVASCRIPT}({function})", shapes)
    )


def example(seq_query, seq_key):
    """The figure's example, whose scores are whole numbers."""
    r, c = np.arange(seq_query), np.arange(seq_key)
    query = np.stack([(r + 1) % 3, 3 * r % 4 - 1], axis=1)
    key = np.stack([(3 * c + 2) % 4 - 1, 2 * c % 3 - 1], axis=1)
    return query, key, np.stack([(3 * c + 1) % 5, c % 2], axis=1)


def python_trace(shape):
    """The same run in Python. Bytes follow from the example's own vectors of two numbers."""
    return trace(
        *example(shape["seq_query"], shape["seq_key"]),
        scale=1.0,
        element=ELEMENT[shape["dtype"]],
        **{name: shape[name] for name in ("block_m", "block_n", "order", "causal")},
    )


def every_shape(lengths, blocks=(1, 2, 4, 8), **fixed):
    names = ("seq_query", "seq_key", "block_m", "block_n", "order", "causal")
    choices = itertools.product(lengths, lengths, blocks, blocks, ORDERS, (False, True))
    return [dict(zip(names, choice, strict=True)) | fixed for choice in choices]


AS_TRACED = {"head_dim": 2, "dtype": "fp16", "row_tokens": 1}


def transfers(moves):
    return [(move["buffer"], move["tile"], move["bytes"]) for move in moves]


def assert_close(numbers, expected):
    assert len(numbers) == len(expected)
    for number, other in zip(numbers, expected, strict=True):
        assert number == other or math.isclose(number, other, rel_tol=1e-12)


def test_each_visit_is_pythons(run_all):
    shapes = every_shape((4, 7, 8, 16), **AS_TRACED)
    function = "(shape) => figure.tileTrace(shape)"
    for shape, steps in zip(shapes, run_all(function, shapes), strict=True):
        expected = python_trace(shape)
        assert len(steps) == len(expected.steps)
        for step, other in zip(steps, expected.steps, strict=True):
            assert (step["i"], step["j"]) == (other.query_tile, other.key_tile)
            assert transfers(step["loads"]) == [(t.buffer, t.tile, t.bytes) for t in other.loads]
            assert transfers(step["stores"]) == [(t.buffer, t.tile, t.bytes) for t in other.stores]
            rows = step["rows"]
            assert [row["row"] for row in rows] == list(other.rows)
            assert [row["max"] for row in rows] == list(other.running_max)
            assert_close([row["sum"] for row in rows], other.running_sum)
            assert_close([row["rescale"] for row in rows], other.rescale)
            for dim in range(2):
                assert_close([row["output"][dim] for row in rows], other.accumulator[:, dim])


def test_what_moved_is_what_python_counts(run_all):
    shapes = every_shape((5, 8, 13), dtype="fp32", head_dim=2, row_tokens=1)
    function = "(shape) => figure.movedBy(figure.tileTrace(shape))"
    for shape, moved in zip(shapes, run_all(function, shapes), strict=True):
        expected = python_trace(shape)
        buffers = {name: vars(count) for name, count in expected.buffers.items()}
        assert moved["buffers"] == buffers
        assert moved["total"] == expected.total
        assert sum(moved["crossings"].values()) == sum(expected.transfers.values())
        for (buffer, tile), count in expected.transfers.items():
            letter = {"query": "Q", "key": "K", "value": "V", "logsumexp": "L"}.get(buffer)
            assert letter is None or moved["crossings"][f"{letter} {tile}"] == count
        # What crosses for the first time is what attention cannot do without.
        once = {letter: part["once"] for letter, part in moved["tensors"].items()}
        rows, keys = 2 * 4 * shape["seq_query"], 2 * 4 * shape["seq_key"]
        seen = {tile for buffer, tile in expected.transfers if buffer == "key"}
        starts = range(0, shape["seq_key"], shape["block_n"])
        assert (len(seen) == len(starts)) == (once["K"] == keys)
        assert (once["Q"], once["O"], once["L"]) == (rows, rows, 4 * shape["seq_query"])
        assert once["m"] == once["ℓ"] == 0


@pytest.mark.parametrize("order", ORDERS)
def test_at_16_tokens_a_row_it_moves_what_the_kernels_move(order, run_all):
    torch = pytest.importorskip("torch")
    import kernels
    from instruments import traffic
    from kernels import flash1

    if not kernels.INTERPRETED:
        pytest.skip("bytes are counted by the interpreter")
    kernel = {"keys": flash1.printed_attention, "queries": flash1.attention}[order]
    shapes = [
        dict(zip(("seq_query", "seq_key", "block_m", "block_n"), sizes, strict=True))
        | {"causal": causal, "order": order, "head_dim": 64, "dtype": "fp16", "row_tokens": 16}
        for sizes in [(8, 8, 2, 2), (5, 7, 1, 2), (9, 4, 2, 1), (4, 11, 8, 4), (4, 4, 4, 8)]
        for causal in (False, True)
    ]
    function = "(shape) => figure.movedBy(figure.tileTrace(shape)).buffers"
    for shape, buffers in zip(shapes, run_all(function, shapes), strict=True):
        query = torch.ones(1, 1, 16 * shape["seq_query"], 64, dtype=torch.float16)
        key = torch.ones(1, 1, 16 * shape["seq_key"], 64, dtype=torch.float16)
        blocks = {name: 16 * shape[name] for name in ("block_m", "block_n")}
        with traffic.counting() as counted:
            kernel(query, key, key.clone(), causal=shape["causal"], **blocks)
        assert buffers == {name: vars(count) for (_, name), count in counted.buffers.items()}


def test_standard_attention_is_chapter_1s_at_its_best(run_all):
    shapes = [
        {"seq_query": n, "seq_key": m, "head_dim": d, "dtype": dtype, "row_tokens": tokens}
        for n, m, d in [(8, 8, 64), (4, 16, 128), (11, 5, 16)]
        for dtype, tokens in [("fp16", 64), ("fp32", 1)]
    ]
    names = {"query": "Q", "key": "K", "value": "V", "output": "O", "logsumexp": "L"}
    names |= {"scores": "S", "probabilities": "P"}
    for shape, moved in zip(shapes, run_all("figure.standardBytes", shapes), strict=True):
        problem = io_model.AttentionShape(
            shape["seq_query"] * shape["row_tokens"],
            shape["seq_key"] * shape["row_tokens"],
            shape["head_dim"],
            {"fp16": "float16", "fp32": "float32"}[shape["dtype"]],
        )
        expected = dict.fromkeys(names.values(), 0)
        for (_, buffer), count in io_model.naive_compulsory(problem).items():
            expected[names[buffer]] += count.loaded + count.stored
        assert {name: part["once"] for name, part in moved["tensors"].items()} == expected
        assert moved["total"] == sum(expected.values())


def test_on_the_chip_is_what_the_trace_holds(run_all):
    shapes = every_shape((4, 7, 11), blocks=(2, 8), **AS_TRACED)
    function = """(shape) => { const steps = figure.tileTrace(shape);
      return steps.map((_, index) => figure.onChip(steps, index, shape)); }"""
    letters = {"query": "Q", "key": "K", "value": "V", "accumulator": "O", "running_max": "m"}
    for shape, visits in zip(shapes, run_all(function, shapes), strict=True):
        before = set()
        for held, step in zip(visits, python_trace(shape).steps, strict=True):
            expected = {letters[name] for name, _ in step.on_chip if name in letters}
            if step.key_tile is not None:
                expected.add("S")
            assert {entry["tensor"] for entry in held} == expected and len(held) == len(expected)
            loaded = {letters.get(transfer.buffer) for transfer in step.loads}
            stayed = {
                letters[b] for b, tile in step.on_chip if (b, tile) in before and b in letters
            }
            stored = {letters.get(transfer.buffer) for transfer in step.stores}
            if any(transfer.buffer == "output" for transfer in step.stores):
                stored.add("O")
            for entry in held:
                tensor, words = entry["tensor"], entry["words"]
                if tensor == "S":
                    assert words == "computed"
                    continue
                came = (
                    "loaded" if tensor in loaded else "stays" if tensor in stayed else "made here"
                )
                assert words.startswith(came)
                assert (", stored" in words) == (tensor in stored)
            size = len(step.rows)
            columns = min(
                shape["block_n"], shape["seq_key"] - (step.key_tile or 0) * shape["block_n"]
            )
            sizes = {
                "Q": 4 * size,
                "O": 8 * size,
                "m": 8 * size,
                "K": 4 * columns,
                "V": 4 * columns,
            }
            sizes["S"] = 4 * size * columns
            assert all(entry["bytes"] == sizes[entry["tensor"]] for entry in held)
            before = set(step.on_chip)


@pytest.mark.parametrize(
    ("block_m", "block_n", "dtype", "fits"),
    [
        (2, 2, "fp16", True),  # tiles of 128 by 128
        (4, 2, "fp16", True),
        (4, 4, "fp16", False),  # 256 kB for S alone
        (1, 8, "fp16", True),
        (1, 8, "fp32", False),  # K and V
    ],
)
def test_tiles_must_fit_one_sm(run_all, block_m, block_n, dtype, fits):
    shape = {"seq_query": 8, "seq_key": 8, "block_m": block_m, "block_n": block_n, "dtype": dtype}
    (use,) = run_all("figure.chipUse", [shape | {"head_dim": 64, "row_tokens": 64}])
    rows, columns = 64 * block_m, 64 * block_n
    shared = (rows + 2 * columns) * 64 * ELEMENT[dtype]
    registers = (rows * 64 + 2 * rows + rows * columns) * 4
    assert use == {"shared": shared, "registers": registers, "fits": fits}
    assert fits == (shared <= 227 * 1024 and registers <= 256 * 1024)


def test_the_last_step_is_the_one_after_all_visits(run_all):
    shapes = every_shape((4, 5, 8, 15, 16), **AS_TRACED)
    counts = run_all("(shape) => figure.tileTrace(shape).length", shapes)
    for shape, count in zip(shapes, counts, strict=True):
        state = {name: value for name, value in shape.items() if name not in AS_TRACED}
        assert TileStepper(**state).last_step == count + 1, shape


def test_the_example_tells_the_story(run_all):
    """With the tiles it starts with, some maxima rise at every tile of keys, and some do not."""
    shape = AS_TRACED | {"seq_query": 8, "seq_key": 8, "block_m": 2, "block_n": 2}
    (steps,) = run_all("figure.tileTrace", [shape | {"order": "keys", "causal": False}])
    for j in range(1, 4):
        factors = [row["rescale"] for step in steps if step["j"] == j for row in step["rows"]]
        assert 1 in factors and any(factor < 1 for factor in factors)


@pytest.mark.parametrize(
    ("number", "text"), [(2, "2"), (-3, "−3"), (3.374, "3.37"), (0.001, "0.00"), (0, "0")]
)
def test_statistics_are_said_correctly(in_node, number, text):
    assert in_node("tile_stepper", "figure.showStatistic(data)", number) == text


def test_the_statistics_of_nothing_are_said(in_node):
    assert in_node("tile_stepper", "figure.showStatistic(-Infinity)") == "−∞"


def test_a_step_that_is_gone_becomes_the_last_one():
    figure = TileStepper(step=17)
    figure.block_m = 8
    assert (figure.step, figure.last_step) == (5, 5)
    figure.order, figure.block_m, figure.causal = "queries", 2, True
    assert figure.last_step == 1 + 2 + 3 + 4 + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seq_query": 3}, "seq_query.*3"),
        ({"seq_key": 17}, "seq_key.*17"),
        ({"block_m": 3}, "block_m.*1, 2, 4, 8.*3"),
        ({"block_n": 16}, "block_n.*1, 2, 4, 8.*16"),
        ({"order": "rows"}, "order.*keys.*queries.*rows"),
        ({"causal": "yes"}, "causal.*boolean.*yes"),
        ({"head_dim": 80}, "head_dim.*16.*80"),
        ({"dtype": "fp8"}, "dtype.*fp32.*fp8"),
        ({"row_tokens": 2}, "row_tokens.*1, 16.*2"),
        ({"step": 18}, "step is a whole number from 0 to 17; got 18"),
        ({"step": -1}, "from 0 to 17; got -1"),
        ({"tile": 2}, "no option 'tile'.*block_m, block_n, causal"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        TileStepper(**options)
    assert "\n" not in str(caught.value)
