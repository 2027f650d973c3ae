"""What each warp of FlashAttention-3 does when: simulated runs of one tile of queries, as plain numbers.

The kernel's own source runs on the simulator with a :class:`HopperClock`, once in every setting that the
figure ``WarpTimeline`` offers. So the order of things and what overlaps are the kernel's own; how long each
takes is the clock's model.

``python -m instruments.warp_timeline`` writes what the figure shows if it is given nothing else.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from instruments.gluon_simulator import HopperClock, Run, Span, simulate
from instruments.gluon_simulator.clocks import COPIES, EXPONENTIALS, FLOAT32, STEP, TENSOR_CORES
from kernels.flash3 import OVERLAPS, Design, launch
from kernels.flash3_kernel import flash3_kernel

RECORDED = Path(__file__).parents[1] / "figures" / "warp_timeline.json"

HEAD_DIMS = (64, 128)
STAGES = (1, 2, 3)
BLOCK_N = 128
TILES = 6
# With a producer: as many consumers as their registers allow, 64 queries each.
WARPGROUPS = {64: 3, 128: 2}

# What a partition does, or waits for: a unit, its own store, or a barrier as the kernel calls it. Rows of a
# run's ``partitions`` name it by its place here.
DOES = (
    "work",
    "products",
    "store",
    EXPONENTIALS,
    FLOAT32,
    "queries.full",
    "pairs.full",
    "pairs.empty",
    "turn",
)
TENSORS = ("query", "key", "value")
NO_TILE = -1
UNITS = (EXPONENTIALS, FLOAT32)
# Where partitions take turns at a unit, operation by operation, they count as working.
SHORT_WAIT = 150


def settings() -> Iterator[dict]:
    """Every setting of the figure."""
    switches = itertools.product(HEAD_DIMS, ("alone", "producer"), STAGES, OVERLAPS)
    for head_dim, loader, stages, overlap in switches:
        for pingpong in (False, True) if loader == "producer" else (False,):
            yield {
                "head_dim": head_dim,
                "loader": loader,
                "stages": stages,
                "overlap": overlap,
                "pingpong": pingpong,
            }


def design_of(setting: dict) -> Design:
    """How the kernel is launched in a setting.

    The output leaves through the queries' memory: for one tile of queries that changes nothing, and three
    slots fit beside it.
    """
    specialized = setting["loader"] == "producer"
    return Design(
        block_n=BLOCK_N,
        warpgroups=WARPGROUPS[setting["head_dim"]] if specialized else 2,
        stages=setting["stages"],
        specialized=specialized,
        overlap=setting["overlap"],
        pingpong=setting["pingpong"],
        persistent=False,
        output_apart=False,
    )


def simulated(setting: dict) -> Run:
    """One tile of queries against ``TILES`` tiles of keys."""
    design, head_dim = design_of(setting), setting["head_dim"]
    query = torch.zeros(1, 1, design.consumers * design.rows, head_dim, dtype=torch.float16)
    key = torch.zeros(1, 1, TILES * BLOCK_N, head_dim, dtype=torch.float16)
    logsumexp = torch.empty(query.shape[:-1])
    grid, arguments, constants = launch(
        query, key, key, torch.empty_like(query), logsumexp, False, 1.0, design, 1
    )
    clock = HopperClock()
    return simulate(
        flash3_kernel, grid, *arguments, clock=clock, num_warps=design.warps, **constants
    )


def timelines() -> dict:
    """The runs of all settings, in whole cycles, and what their numbers mean.

    Each run has, besides its setting and ``queries`` and ``cycles``, rows of numbers in order of time:

    * ``partitions``, a list for each, the producer first if there is one:
      ``[place in does, start, end]``, then of work the tile whose softmax it belongs to, as the rescaling
      by that tile's factor does, or ``NO_TILE`` for the output, and of a wait on a barrier its slot and the
      number of the phase. Between its rows a partition gives orders: it arrives at barriers, starts
      products and copies.
    * ``products``: ``[consumer, 0 of scores or 1 of the output, tile, issued, start, end]``
    * ``exponentials``: ``[consumer, tile, start, end]``
    * ``copies``: ``[place in tensors, slot, tile, asked for, start, end, landed, released]``; of queries
      the slot is the consumer's. A slot of K and V is full when both have landed, and they are released
      together.
    * ``stores``: ``[consumer, asked for, start, end, done]``

    ``clock`` holds the assumptions that no data sheet gives.
    """
    clock = HopperClock()
    return {
        "block_n": BLOCK_N,
        "tiles": TILES,
        "clock": {
            "bytes_per_cycle": clock.per_cycle[COPIES],
            "latency": clock.latency,
            "step": clock.step,
        },
        "does": list(DOES),
        "tensors": list(TENSORS),
        "runs": [timeline(setting) for setting in settings()],
    }


def timeline(setting: dict) -> dict:
    """One run; see :func:`timelines`."""
    run, design = simulated(setting), design_of(setting)
    names = [f"consumer {i}" for i in range(design.consumers)]
    if design.specialized:
        names.insert(0, "producer")
    else:
        names = [flash3_kernel.__name__]
    consumers = {name: i for i, name in enumerate(names[design.specialized :])}
    loads, stores = copies(run, consumers)
    return {
        **setting,
        "queries": design.consumers * design.rows,
        "cycles": round(run.cycles),
        "partitions": [partition_rows(run, name) for name in names],
        "products": products(run, consumers),
        "exponentials": exponentials(run, consumers),
        "copies": loads,
        "stores": stores,
    }


def products(run: Run, consumers: dict) -> list[list]:
    """The products, with when they were issued: their right operand counts as read from then on."""
    issued = {}
    for span in run.trace:
        if span.name == "read":
            issued[span.partition, span.end] = span.start
    return [
        [
            consumers[span.partition],
            int(tensor_of(span.buffer) == "value"),
            tile_of(span),
            *map(round, (issued[span.partition, span.end], span.start, span.end)),
        ]
        for span in run.trace
        if span.lane == TENSOR_CORES
    ]


def exponentials(run: Run, consumers: dict) -> list[list]:
    """The exponentials; those of a consumer come tile by tile, from the last to the first."""
    seen = defaultdict(lambda: itertools.count(TILES - 1, -1))
    return [
        [consumers[span.partition], next(seen[span.partition]), round(span.start), round(span.end)]
        for span in run.trace
        if span.lane == EXPONENTIALS
    ]


def copies(run: Run, consumers: dict) -> tuple[list[list], list[list]]:
    """Loads and stores. Each is recorded just after the copy engine's share in it."""
    completed = defaultdict(list)
    for span in run.trace:
        if span.name == "phase":
            completed[barrier_of(span.lane)].append(span.end)
    loads, stores, engine = [], [], None
    for span in run.trace:
        if span.lane == COPIES:
            engine = span
        elif span.name == "fill":
            tensor, slot = tensor_of(span.buffer), slot_of(span.buffer)
            empty = "queries.empty" if tensor == "query" else "pairs.empty"
            released = next(time for time in completed[empty, slot] if time >= span.end)
            times = span.start, engine.start, engine.end, span.end, released
            loads.append([TENSORS.index(tensor), slot, tile_of(span), *map(round, times)])
        elif span.name == "drain":
            times = span.start, engine.start, engine.end, span.end
            stores.append([consumers[span.partition], *map(round, times)])
    return loads, stores


def partition_rows(run: Run, name: str) -> list[list]:
    """What a partition does: arithmetic, one row if it goes on at once, and waits; of those for a unit only
    the ones longer than ``SHORT_WAIT``."""
    step = HopperClock().cycles(STEP, 1)
    phases = {(span.lane, span.end): span.tile[0] for span in run.trace if span.name == "phase"}
    freed = {(span.lane, span.end): span.partition for span in run.trace if span.lane in UNITS}
    rows, now, about = [], 0.0, NO_TILE
    work = DOES.index("work")
    for span in run.trace:
        if span.partition != name:
            continue
        if span.lane == TENSOR_CORES:
            # Between a step's two products its accumulator is rescaled, by the factor of the tile before.
            # So a tile's arithmetic begins with the product of that tile's V, or with the first scores.
            if tensor_of(span.buffer) == "value":
                about = tile_of(span) - 1 if tile_of(span) else NO_TILE
            elif tile_of(span) == TILES - 1:
                about = tile_of(span)
        elif span.lane == name:
            rows.append(waited_for(span, phases))
            now = span.end
        elif span.lane in UNITS:
            queued = freed.get((span.lane, span.start), name) != name
            if queued and span.start - now > SHORT_WAIT:
                rows.append([DOES.index(span.lane), now, span.start])
            elif rows and rows[-1][0] == work and rows[-1][3] == about:
                if queued or span.start - now <= step:
                    rows[-1][2] = now = span.end
                    continue
            rows.append([work, span.start, span.end, about])
            now = span.end
    return [[does, round(start), round(end), *rest] for does, start, end, *rest in rows]


def waited_for(span: Span, phases: dict) -> list:
    """The row of a wait."""
    times = span.start, span.end
    if span.buffer == TENSOR_CORES:
        return [DOES.index("products"), *times]
    if span.buffer == "store_wait":
        return [DOES.index("store"), *times]
    name, slot = barrier_of(span.buffer)
    return [DOES.index(name), *times, slot, phases[span.buffer, span.end]]


def tensor_of(buffer: str) -> str:
    """Whose tiles a buffer holds."""
    return next(tensor for tensor in TENSORS if tensor in buffer)


def barrier_of(label: str) -> tuple[str, int]:
    """The barrier's name, without whose it is, and its slot."""
    return label.removeprefix("shared.").partition("[")[0], slot_of(label)


def slot_of(buffer: str) -> int:
    """The slot in its name; where there is only one it has none there."""
    slot = re.search(r"\[(\d+)\]$", buffer)
    return int(slot[1]) if slot else 0


def tile_of(span: Span) -> int:
    """Which tile of its tensor's rows a span is about."""
    return span.tile[2] // BLOCK_N


def as_json(runs: dict) -> str:
    """:func:`timelines` as the figure's own file holds them, a run a line."""
    return json.dumps(runs, separators=(",", ":")).replace('{"head_dim', '\n{"head_dim') + "\n"


if __name__ == "__main__":
    RECORDED.write_text(as_json(timelines()), "utf-8")
