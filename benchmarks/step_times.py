"""Time what a serving step is made of, for a model of OPT-13B's shape with random weights, on one GPU.

    python -m benchmarks.step_times --experiment step_times

40 layers, 5120 wide, 40 heads, float16, over a paged cache of 15 616 slots, what an A100 of 40 GB leaves to
keys and values, in whole blocks of 256. ``instruments.step_cost`` makes the time of any step of the rows,
told apart by ``step``; all have ``ms``:

* ``tokens``: all layers but their attention, for so many ``tokens``, with the logits of LOGITS at most;
* ``decode``: the attention of all layers for ``sequences`` equally long ones that read ``tokens_read`` in
  all, with blocks of ``block_size``;
* ``prefill``: the attention of all layers for ``tokens`` of one sequence after ``tokens_before``;
* ``swap``: ``slots`` tokens moved to pinned memory of the CPU, or back, the mean of the two, in blocks of
  ``block_size`` that do not lie side by side; the host's work included;
* ``whole``: a whole step, with ``predicted``, what is made of the others for it.

What runs on the GPU alone is timed as a CUDA graph. Where more tokens are read than the cache has slots,
several sequences share blocks, as they do with a common prefix.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from benchmarks.occupancy import captured
from instruments import records
from instruments.step_cost import BLOCK_SIZE, StepCost
from instruments.timing import time_interleaved
from kernels import paged
from serving.model import Config, Model

DTYPE = torch.float16
LOGITS = 256
ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """What to time."""

    config: Config
    slots: int
    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    tokens_read: tuple[int, ...]
    # A step before the first point is as long as at it.
    prefill_tokens: tuple[int, ...]
    tokens_before: tuple[int, ...]
    block_sizes: tuple[int, ...]
    usual: tuple[int, int]  # sequences and tokens read at which block sizes are compared
    swapped: int


OPT_13B = Plan(
    Config(layers=40, width=5120, heads=40, vocabulary=50272, positions=2048),
    slots=61 * 256,
    tokens=(1, 16, 64, 128, 256, 512, 1024, 2048),
    sequences=(1, 8, 32, 128, 256),
    tokens_read=(1024, 4096, 15616, 62464, 249_856),
    prefill_tokens=(16, 128, 512, 2048),
    tokens_before=(0, 512, 2048),
    block_sizes=(16, 1, 4, 8, 32, 64, 128, 256),
    usual=(32, 15616),
    swapped=512,
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the parts of a serving step.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    if kernels.device().type != "cuda":
        raise SystemExit("a serving step is timed on a CUDA GPU, and PyTorch sees none here")
    rows = []
    for row in time_steps(OPT_13B):
        print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
        rows.append(row)
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


@torch.inference_mode()
def time_steps(plan: Plan) -> Iterator[dict]:
    """All rows, the ones that the others are compared with first."""
    torch.manual_seed(0)
    model, cache = random_model(plan.config), random_cache(plan.config, plan.slots)
    rows = []
    for part in (
        time_tokens(plan, model, cache),
        time_decode(plan, cache),
        time_prefill(plan, cache),
        time_swap(plan, cache),
    ):
        for row in part:
            rows.append(row)
            yield row
    yield from time_whole(plan, model, cache, StepCost(rows))


def random_model(config: Config) -> Model:
    """A model whose weights are made where they stay: in float32 they would not fit beside each other."""
    with torch.device("meta"):
        model = Model(config)
    model = model.to(DTYPE).to_empty(device=kernels.device()).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.normal_(std=0.02)
    return model


def random_cache(config: Config, slots: int) -> Tensor:
    """Slots of keys and values of all layers, in blocks of one: ``in_blocks`` makes larger ones."""
    shape = (config.layers, 2, slots, 1, config.kv_heads, config.head_dim)
    return torch.empty(shape, dtype=DTYPE, device=kernels.device()).normal_()


def in_blocks(cache: Tensor, block_size: int) -> Tensor:
    return cache.view(*cache.shape[:2], -1, block_size, *cache.shape[4:])


def time_tokens(plan: Plan, model: Model, cache: Tensor) -> Iterator[dict]:
    for tokens in plan.tokens:
        slots = torch.randperm(plan.slots)[:tokens].to(cache.device)
        # No attention: what it would mix is given back.
        step = whole_step(model, cache, slots, lambda layer, query: query)
        yield {"step": "tokens", "tokens": tokens, "ms": milliseconds(step)}


def time_decode(plan: Plan, cache: Tensor) -> Iterator[dict]:
    points = [(BLOCK_SIZE, *at) for at in itertools.product(plan.sequences, plan.tokens_read)]
    points += [(size, *plan.usual) for size in plan.block_sizes if size != BLOCK_SIZE]
    for block_size, sequences, read in points:
        attend = decoding(in_blocks(cache, block_size), even_parts(read, sequences))
        query = random_rows(plan.config, sequences)
        yield {
            "step": "decode",
            "sequences": sequences,
            "tokens_read": read,
            "block_size": block_size,
            "ms": milliseconds(functools.partial(all_layers, attend, query, plan.config.layers)),
        }


def time_prefill(plan: Plan, cache: Tensor) -> Iterator[dict]:
    for tokens, before in itertools.product(plan.prefill_tokens, plan.tokens_before):
        attend = prefilling(in_blocks(cache, BLOCK_SIZE), tokens, before)
        query = random_rows(plan.config, tokens)
        yield {
            "step": "prefill",
            "tokens": tokens,
            "tokens_before": before,
            "ms": milliseconds(functools.partial(all_layers, attend, query, plan.config.layers)),
        }


def time_swap(plan: Plan, cache: Tensor) -> Iterator[dict]:
    shape = (*cache.shape[:2], plan.swapped, *cache.shape[3:])
    pinned = torch.zeros(shape, dtype=DTYPE, pin_memory=cache.is_cuda)
    for block_size in plan.block_sizes:
        here, there = in_blocks(cache, block_size), in_blocks(pinned, block_size)
        ours = torch.randperm(here.shape[2])[: there.shape[2]]
        out = torch.stack((ours, torch.randperm(there.shape[2])), dim=1)
        taken = [
            wall_milliseconds(functools.partial(paged.swap_blocks, source, target, moves))
            for source, target, moves in ((here, there, out), (there, here, out.flip(1)))
        ]
        yield {
            "step": "swap",
            "block_size": block_size,
            "slots": plan.swapped,
            "ms": round(statistics.mean(taken), 4),
        }


def time_whole(plan: Plan, model: Model, cache: Tensor, cost: StepCost) -> Iterator[dict]:
    sequences, read = plan.usual
    tokens = plan.prefill_tokens[-2]
    blocks = in_blocks(cache, BLOCK_SIZE)
    for count, attend, step in (
        (
            sequences,
            decoding(blocks, even_parts(read, sequences)),
            {"decodes": even_parts(read, sequences)},
        ),
        (tokens, prefilling(blocks, tokens, 0), {"prefills": [(tokens, 0)]}),
    ):
        slots = torch.randperm(plan.slots)[:count].to(cache.device)
        yield {
            "step": "whole",
            **{name: len(value) if name == "decodes" else value for name, value in step.items()},
            "ms": milliseconds(whole_step(model, cache, slots, attend)),
            "predicted": round(1000 * cost.seconds(**step), 4),
        }


Attend = Callable[[int, Tensor], Tensor]


def whole_step(model: Model, cache: Tensor, slots: Tensor, attend: Attend) -> Callable[[], Tensor]:
    """A call that computes one token for each slot and the logits of the first of them."""
    tokens = torch.randint(model.config.vocabulary, slots.shape, device=slots.device)
    positions = torch.randint(model.config.positions, slots.shape, device=slots.device)

    def append_and_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        paged.append(key, value, cache[layer, 0], cache[layer, 1], slots)
        return attend(layer, query)

    return lambda: model.logits(model.hidden(tokens, positions, append_and_attend)[:LOGITS])


def decoding(blocks: Tensor, contexts: list[int]) -> Attend:
    """Attention of one query a sequence."""
    tables = random_tables(blocks, contexts)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=blocks.device)

    def attend(layer: int, query: Tensor) -> Tensor:
        return paged.decode(query, blocks[layer, 0], blocks[layer, 1], tables, lengths)

    return attend


def prefilling(blocks: Tensor, tokens: int, before: int) -> Attend:
    """Attention of the last tokens of one sequence."""
    tables = random_tables(blocks, [before + tokens])
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=blocks.device)
    lengths = torch.tensor([before + tokens], dtype=torch.int32, device=blocks.device)

    def attend(layer: int, query: Tensor) -> Tensor:
        key_cache, value_cache = blocks[layer]
        return paged.prefill(
            query, key_cache, value_cache, tables, starts, lengths, max_query_length=tokens
        )

    return attend


def all_layers(attend: Attend, query: Tensor, layers: int) -> None:
    for layer in range(layers):
        attend(layer, query)


def random_tables(blocks: Tensor, contexts: list[int]) -> Tensor:
    """Block tables that go through the cache's blocks in a random order, again and again if they must."""
    num_blocks, block_size = blocks.shape[2:4]
    counts = [-(-context // block_size) for context in contexts]
    order = torch.randperm(num_blocks, dtype=torch.int32)
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    taken = 0
    for table, count in zip(tables, counts, strict=True):
        table[:count] = order[torch.arange(taken, taken + count) % num_blocks]
        taken += count
    return tables.to(blocks.device)


def random_rows(config: Config, tokens: int) -> Tensor:
    shape = (tokens, config.heads, config.head_dim)
    return torch.empty(shape, dtype=DTYPE, device=kernels.device()).normal_()


def even_parts(total: int, count: int) -> list[int]:
    """``total`` as a sum of ``count`` numbers, as even as can be."""
    return [(total + place) // count for place in range(count)]


def milliseconds(call: Callable[[], object]) -> float:
    """On the GPU, without the host."""
    timing = time_interleaved({"call": captured(call)}, rounds=ROUNDS, milliseconds_a_round=10.0)[
        "call"
    ]
    return round(timing.median, 4)


def wall_milliseconds(call: Callable[[], object]) -> float:
    """By the host's clock, until the GPU has done it."""
    taken = []
    for _ in range(ROUNDS):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def synchronize() -> None:
    if kernels.device().type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
