"""The twin of FlashAttention-1 against the kernels (same result, same bytes) and the reference."""

import itertools
import math

import numpy as np
import pytest
import torch

import kernels
from instruments import traffic
from instruments.tile_trace import ORDERS, trace
from kernels import flash1, reference

KERNELS = {"keys": flash1.printed_attention, "queries": flash1.attention}

# seq_query, seq_key, head_dim, block_m, block_n: ragged, of one tile, longer one way and the other.
SHAPES = [
    (64, 64, 16, 16, 16),
    (61, 47, 32, 16, 32),
    (50, 17, 80, 32, 16),
    (20, 70, 16, 32, 32),
    (33, 65, 64, 16, 64),
    (1, 40, 16, 16, 16),
    (40, 1, 16, 16, 16),
]


def matrices(seq_query, seq_key, head_dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = (seq_query, head_dim), (seq_key, head_dim), (seq_key, head_dim)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def traced(tensors, **options):
    return trace(*(tensor.double().numpy() for tensor in tensors), **options)


def batched(tensors):
    return [tensor[None, None] for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_moves_the_kernels_bytes_and_ends_where_they_do(shape, order, causal, dtype):
    if not kernels.INTERPRETED:
        pytest.skip("bytes are counted by the interpreter")
    *sizes, block_m, block_n = shape
    tensors = matrices(*sizes, dtype)
    options = {"causal": causal, "block_m": block_m, "block_n": block_n}
    with traffic.counting() as counted:
        output, logsumexp = KERNELS[order](*batched(tensors), return_logsumexp=True, **options)
    twin = traced(tensors, order=order, element=dtype.itemsize, **options)
    assert twin.buffers == {buffer: moved for (_, buffer), moved in counted.buffers.items()}
    assert twin.total == counted.total

    budget = reference.error_budget(*batched(tensors), causal=causal)
    assert reference.errors(output[0, 0], torch.from_numpy(twin.output)).within(budget)
    budget = reference.logsumexp_budget(*batched(tensors), causal=causal)
    assert reference.errors(logsumexp[0, 0], torch.from_numpy(twin.logsumexp)).within(budget)


def small_runs():
    """Every order, mask and kind of raggedness in small; with the scores that each run must see."""
    for seq_query, seq_key, block_m, block_n, order, causal in itertools.product(
        (1, 4, 7), (1, 4, 9), (1, 2, 8), (1, 3, 8), ORDERS, (False, True)
    ):
        tensors = [x.double().numpy() for x in matrices(seq_query, seq_key, 16)]
        options = {"block_m": block_m, "block_n": block_n, "order": order, "causal": causal}
        scores = 0.5 * tensors[0] @ tensors[1].T
        if causal:
            visible = np.tri(seq_query, seq_key, seq_key - seq_query, dtype=bool)
            scores = np.where(visible, scores, -math.inf)
        yield tensors, options, scores, trace(*tensors, scale=0.5, **options)


def test_every_step_holds_the_softmax_of_the_keys_read_so_far():
    for (query, key, value), options, scores, run in small_runs():
        # Roundings of the scores' sums and of the sums over keys, relative to the largest of each.
        size = 1 + 0.5 * (np.abs(query) @ np.abs(key).T).max()
        slack = 2 * (query.shape[1] + len(key)) * size * np.finfo(np.float64).eps
        before = np.full(len(query), -math.inf)
        for step in run.steps:
            read = 0 if step.key_tile is None else (step.key_tile + 1) * options["block_n"]
            stored = any(transfer.buffer == "output" for transfer in step.stores)
            for index, row in enumerate(step.rows):
                seen = scores[row, :read][np.isfinite(scores[row, :read])]
                largest = seen.max(initial=-math.inf)
                weights = np.exp(seen - largest)
                kept = step.running_max[index]
                assert kept == largest or abs(kept - largest) <= slack
                assert abs(step.running_sum[index] - weights.sum()) <= slack * weights.sum()
                if step.key_tile is not None:
                    expected = math.exp(before[row] - kept) if kept > -math.inf else 0
                    assert step.rescale[index] == pytest.approx(expected, rel=slack)
                before[row] = kept
                divisor = (weights.sum() or 1) if options["order"] == "keys" or stored else 1
                difference = step.accumulator[index] - weights @ value[: len(seen)] / divisor
                assert np.abs(difference).max() <= slack * len(key) * np.abs(value).max()
        assert np.array_equal(np.isneginf(run.logsumexp), np.isneginf(scores.max(axis=1)))


def test_what_is_on_the_chip_was_loaded_stayed_or_was_made_there():
    for _, options, _, run in small_runs():
        before = set()
        statistics = {"accumulator", "running_max", "running_sum"}
        made = statistics if options["order"] == "queries" else set()
        for step in run.steps:
            on_chip = set(step.on_chip)
            loaded = {(transfer.buffer, transfer.tile) for transfer in step.loads}
            assert loaded <= on_chip
            assert all(buffer in made for buffer, _ in on_chip - loaded - before)
            before = on_chip


def test_running_bytes_and_transfers_add_up_to_the_totals():
    for _, _, _, run in small_runs():
        moved = 0
        for step in run.steps:
            moved += sum(transfer.bytes for transfer in step.loads + step.stores)
            assert step.loaded + step.stored == moved
        assert run.total == moved == sum(b.loaded + b.stored for b in run.buffers.values())
        crossings = sum(len(step.loads) + len(step.stores) for step in run.steps)
        assert sum(run.transfers.values()) == crossings


def test_each_order_reads_once_what_its_outer_loop_holds():
    query, key, value = (x.double().numpy() for x in matrices(8, 8, 16))
    options = {"block_m": 2, "block_n": 2}
    keys = trace(query, key, value, order="keys", **options).transfers
    queries = trace(query, key, value, order="queries", **options).transfers
    for tile in range(4):
        assert (keys["key", tile], keys["value", tile], keys["query", tile]) == (1, 1, 4)
        assert keys["accumulator", tile] == keys["running_max", tile] == 4 + 3
        assert (queries["key", tile], queries["value", tile], queries["query", tile]) == (4, 4, 1)
        assert queries["accumulator", tile] == queries["running_max", tile] == 0
        assert keys["output", tile] == queries["output", tile] == 1


@pytest.mark.parametrize("order", ORDERS)
def test_without_keys_the_output_is_zero(order):
    empty = np.zeros((0, 16))
    run = trace(np.ones((5, 16)), empty, empty, block_m=2, block_n=2, order=order)
    assert not run.output.any() and np.isneginf(run.logsumexp).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "rows"}, "order is one of keys, queries; got 'rows'"),
        ({"block_m": 0}, "block_m is a whole number from 1; got 0"),
        ({"block_n": 2.0}, "block_n is a whole number from 1; got 2.0"),
        ({"scale": math.inf}, "scale is a finite number above 0, or None; got inf"),
        ({"query": np.ones((1, 4, 8))}, "matrices .* got query of shape"),
        ({"key": np.ones((4, 9))}, "same number of columns.* got key of shape \\(4, 9\\)"),
        ({"value": np.ones((3, 8))}, "one shape; got \\(4, 8\\) and \\(3, 8\\)"),
    ],
)
def test_what_it_cannot_trace_is_refused_in_one_sentence(change, words):
    given = {name: np.ones((4, 8)) for name in ("query", "key", "value")}
    given |= {"block_m": 2, "block_n": 2, "order": "keys"} | change
    with pytest.raises(ValueError, match=words) as caught:
        trace(**given)
    assert "\n" not in str(caught.value)
