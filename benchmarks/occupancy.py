"""Time the forward pass where heads are too few to fill the GPU, beside what the schedule predicts.

    python -m benchmarks.occupancy --experiment occupancy

Three comparisons in float16, told apart by a row's ``comparison``. Only the product of ``batch`` and
``heads`` matters here; ``heads`` is 1. Every row has ``gain``, medians of the ratios within each round,
and ``predicted``, the same ratio of the makespans that :mod:`instruments.schedule` gives for chapter 5's
tiles with one program at a time on each SM.

* ``heads``: a program for each head (chapter 3's printed order) beside a program for each tile of queries
  (its swapped loops, and chapter 5), as heads become more: ``kernel, batch, heads, n, d, causal, ms,
  spread, tflops, gain``, over the printed order.
* ``splits``: few queries, many keys, and the keys divided: ``batch, heads, n_query, n_key, d, splits,
  chosen, ms, spread, tbs, gain``, over one split, and ``over_fa2``, over PyTorch's FlashAttention-2, which
  splits too. ``chosen`` marks what ``split_attention`` takes by itself. ``tbs`` counts K and V read once.
* ``causal``: 16 384 tokens with and without a causal mask: ``batch, heads, n, d, ms, spread, gain``, over
  no mask.

What is timed is a CUDA graph of the call: the shortest of these kernels take less time than Python needs
to launch them.
"""

import argparse
import functools
import itertools
from collections.abc import Callable

import torch

import kernels
from benchmarks import contestants
from benchmarks.attention import TOKENS, WIDTH
from instruments import records, schedule
from instruments.io_model import AttentionShape
from instruments.timing import Timing, time_interleaved
from kernels import flash2, flash2_forward

DTYPE = "float16"
HEAD_DIMS = (64, 128)
# A program for each head comes first: the others are compared with it.
KERNELS = ("flash1_printed", "flash1", "flash2")
HEADS_LENGTH, HEADS_BATCHES = 4096, (1, 2, 4, 8, 16, 32, 64, 128)
# Queries and head dimension: decoding at both, several queries at one.
SPLIT_QUERIES = ((1, 64), (1, 128), (16, 128), (128, 128))
SPLIT_KEYS, SPLIT_BATCHES = (4096, 32768, 131072), (8, 32, 64)
SPLITS = (1, 2, 4, 8, 16, 32, 64)
SMS_OF_AN_H200 = 132


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time attention where heads are few.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    if not torch.cuda.is_available():
        raise SystemExit("occupancy is that of a CUDA GPU, and PyTorch sees none here")
    rows = []
    for head_dim, batch in itertools.product(HEAD_DIMS, HEADS_BATCHES):
        rows += time_heads(batch, HEADS_LENGTH, head_dim)
    for (queries, head_dim), keys, batch in itertools.product(
        SPLIT_QUERIES, SPLIT_KEYS, SPLIT_BATCHES
    ):
        rows += time_splits(batch, queries, keys, head_dim, SPLITS)
    for head_dim in HEAD_DIMS:
        rows.append(time_causal(WIDTH // head_dim, TOKENS, head_dim))
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def time_heads(batch: int, length: int, head_dim: int, rounds: int = 9) -> list[dict]:
    """One row for each kernel at so many heads in all."""
    inputs = random_inputs(batch, length, length, head_dim)
    taken = time_calls(
        {name: functools.partial(contestants.kernel(name), *inputs, False) for name in KERNELS},
        rounds,
    )
    flops = AttentionShape(length, length, head_dim, DTYPE, batch, 1).flops
    a_head = launched(batch, length, length, head_dim, parallel="heads")
    a_tile = launched(batch, length, length, head_dim)
    rows = []
    for name, timing in taken.items():
        launch = a_head if name == KERNELS[0] else a_tile
        rows.append(
            {
                "comparison": "heads",
                "kernel": name,
                "batch": batch,
                "heads": 1,
                "n": length,
                "d": head_dim,
                "causal": False,
                **in_figures(timing),
                "tflops": round(1e-9 * flops / timing.median, 2),
                "gain": round(timing.speedup_over(taken[KERNELS[0]]), 3),
                "predicted": predicted_gain(a_head, launch),
            }
        )
    gains = "  ".join(f"{row['kernel']} {row['gain']} ({row['predicted']})" for row in rows)
    print(f"{batch} heads, n {length}, d {head_dim}: {gains}", flush=True)
    return rows


def time_splits(
    batch: int, queries: int, keys: int, head_dim: int, splits: tuple[int, ...], rounds: int = 9
) -> list[dict]:
    """One row for each number of splits, also for the one that the launcher would choose."""
    query, key, value = random_inputs(batch, queries, keys, head_dim)
    chosen = flash2._splits_to_fill(query, key)
    calls = {
        each: functools.partial(flash2.split_attention, query, key, value, splits=each)
        for each in sorted({*splits, chosen})
    }
    calls["fa2"] = functools.partial(contestants.peer("fa2"), query, key, value, False)
    taken = time_calls(calls, rounds)
    fa2 = taken.pop("fa2")
    launches = {each: launched(batch, queries, keys, head_dim, splits=each) for each in taken}
    moved = sum(tensor.numel() * tensor.element_size() for tensor in (query, key, value, query))
    rows = [
        {
            "comparison": "splits",
            "batch": batch,
            "heads": 1,
            "n_query": queries,
            "n_key": keys,
            "d": head_dim,
            "splits": each,
            "chosen": each == chosen,
            **in_figures(timing),
            "tbs": round(1e-9 * moved / timing.median, 3),
            "gain": round(timing.speedup_over(taken[1]), 3),
            "predicted": predicted_gain(launches[1], launches[each]),
            "over_fa2": round(timing.speedup_over(fa2), 3),
        }
        for each, timing in taken.items()
    ]
    gains = "  ".join(f"{row['splits']}: {row['gain']} ({row['predicted']})" for row in rows)
    print(f"{batch} heads, {queries} x {keys}, d {head_dim}, chosen {chosen} | {gains}", flush=True)
    return rows


def time_causal(batch: int, length: int, head_dim: int, rounds: int = 9) -> dict:
    """One row: what a causal mask saves."""
    inputs = random_inputs(batch, length, length, head_dim)
    taken = time_calls(
        {c: functools.partial(contestants.kernel("flash2"), *inputs, c) for c in (False, True)},
        rounds,
    )
    launches = (
        launched(batch, length, length, head_dim),
        launched(batch, length, length, head_dim, causal=True, order="longest"),
    )
    row = {
        "comparison": "causal",
        "batch": batch,
        "heads": 1,
        "n": length,
        "d": head_dim,
        **in_figures(taken[True]),
        "gain": round(taken[True].speedup_over(taken[False]), 3),
        "predicted": predicted_gain(*launches),
    }
    print(f"causal, n {length}, d {head_dim}: {row['gain']} ({row['predicted']})", flush=True)
    return row


def random_inputs(batch: int, queries: int, keys: int, head_dim: int) -> list[torch.Tensor]:
    """Query, key and value from N(0, 1), one head a sequence."""
    torch.manual_seed(0)
    return [
        torch.randn(
            batch, 1, length, head_dim, device=kernels.device(), dtype=getattr(torch, DTYPE)
        )
        for length in (queries, keys, keys)
    ]


def time_calls(calls: dict, rounds: int) -> dict[object, Timing]:
    """Time the calls in turns; short turns, as there are some hundred calls."""
    replays = {name: captured(call) for name, call in calls.items()}
    return time_interleaved(replays, rounds=rounds, milliseconds_a_round=1.0)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A function that does what the call does on the GPU, with no Python between its launches.

    The caller keeps the call's inputs alive. On the CPU there is nothing to capture.
    """
    if kernels.device().type != "cuda":
        return call
    call()  # compiles, which cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def launched(batch: int, queries: int, keys: int, head_dim: int, **how) -> list[schedule.Program]:
    """The programs of a launch with the tiles of :func:`kernels.flash2_forward.forward_kernel`."""
    on = torch.empty(0, device=kernels.device())
    sizes, _ = flash2_forward.forward_blocks(
        getattr(torch, DTYPE), head_dim, flash2_forward.architecture(on)
    )
    tile = {"block_m": sizes["BLOCK_M"], "block_n": sizes["BLOCK_N"]}
    return schedule.programs(batch, 1, queries, keys, **tile, **how)


def predicted_gain(before: list[schedule.Program], after: list[schedule.Program]) -> float:
    """How many times sooner the second launch ends, on this GPU's SMs."""
    sms = SMS_OF_AN_H200
    if kernels.device().type == "cuda":
        sms = torch.cuda.get_device_properties(0).multi_processor_count
    ends = [
        schedule.greedy_schedule([program.steps for program in launch], sms).makespan
        for launch in (before, after)
    ]
    return round(ends[0] / ends[1], 3)


def in_figures(timing: Timing) -> dict:
    """Milliseconds and their spread, as records have them."""
    return {"ms": round(timing.median, 5), "spread": round(timing.spread, 4)}


if __name__ == "__main__":
    main()
