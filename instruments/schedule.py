"""When and where the programs of an attention kernel run: a model of a GPU's multiprocessors.

A launch is a list of programs. The GPU hands them out in the order of their ids, each to the slot that
is free first, and a program stays where it started until it ends: a *greedy list schedule*. No slot
waits while there are programs left, so a GPU only idles at the end, in the *tail*; how long that is
depends on how the work was cut into programs, which Section 3.2 of FlashAttention-2 (Dao, 2023) is
about.

Time counts in *tile steps*: one tile of BLOCK_M x BLOCK_N scores, the same on every multiprocessor
(SM). The model's assumptions, beside that one:

* a program costs ``OVERHEAD`` steps beside its tiles: it loads its queries before the first and stores
  its output after the last, with nothing to compute meanwhile;
* with more than one split it costs ``MERGE`` further steps: its share of merging the partial outputs;
* the slots of an SM do not hold each other up. With two slots a step is the time a tile takes while
  both are busy, so steps of one and of two slots are not the same length.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

OVERHEAD = 1
MERGE = 1
ORDERS = ("first", "longest")
PARALLEL = ("heads", "tiles")


@dataclass(frozen=True)
class Program:
    """One program of the launch.

    Attributes:
        batch_head: which head of which sequence, counted through.
        query_tile: which tile of queries; ``None`` if it works through all of them.
        split: which run of the keys.
        tiles: tiles of scores it visits.
        steps: what it costs.
    """

    batch_head: int
    query_tile: int | None
    split: int
    tiles: int
    steps: int


def programs(
    batch: int,
    heads: int,
    seq_query: int,
    seq_key: int,
    *,
    block_m: int,
    block_n: int,
    causal: bool = False,
    order: str = "first",
    splits: int = 1,
    parallel: str = "tiles",
) -> list[Program]:
    """The programs of a forward pass, in the order of their ids.

    ``parallel="heads"`` makes one program a head; ``"tiles"`` one a head, tile of queries and split.
    ``order="first"`` starts with the first head's first tile and goes head by head; ``"longest"`` starts
    with the last tile of every head, which under a causal mask sees the most keys. Either goes through
    the first split before the second. So does :mod:`kernels.flash2_forward`, for some heads at a time.
    """
    _check(
        batch=batch,
        heads=heads,
        seq_query=seq_query,
        seq_key=seq_key,
        block_m=block_m,
        block_n=block_n,
        splits=splits,
    )
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}.")
    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be one of {', '.join(PARALLEL)}, got {parallel!r}.")
    if parallel == "heads" and splits != 1:
        raise ValueError(f"A program a head takes all keys: splits must be 1, got {splits}.")

    key_tiles = ceil(seq_key / block_n)
    visited = [
        ceil(_visible_keys(end, seq_query, seq_key, causal) / block_n)
        for end in _tile_ends(seq_query, block_m)
    ]
    every_head = range(batch * heads)
    if parallel == "heads":
        return [
            Program(head, None, 0, sum(visited), sum(visited) + OVERHEAD) for head in every_head
        ]

    last = len(visited) - 1
    if order == "first":
        places = [(head, tile) for head in every_head for tile in range(last + 1)]
    else:
        places = [(head, tile) for tile in range(last, -1, -1) for head in every_head]
    extra = OVERHEAD + (MERGE if splits > 1 else 0)
    runs = [split_range(key_tiles, splits, split) for split in range(splits)]
    launch = []
    for split, (start, end) in enumerate(runs):
        for head, tile in places:
            tiles = max(0, min(visited[tile], end) - start)
            launch.append(Program(head, tile, split, tiles, tiles + extra))
    return launch


def split_range(key_tiles: int, splits: int, split: int) -> tuple[int, int]:
    """[start, end) of the tiles of keys in this split: equally many, but for the last ones."""
    run = ceil(key_tiles / splits)
    return min(split * run, key_tiles), min((split + 1) * run, key_tiles)


def _tile_ends(seq_query: int, block_m: int) -> list[int]:
    return [min(start + block_m, seq_query) for start in range(0, seq_query, block_m)]


def _visible_keys(end: int, seq_query: int, seq_key: int, causal: bool) -> int:
    """Keys that the queries before ``end`` see; causal is aligned at the bottom right."""
    return max(0, end + seq_key - seq_query) if causal else seq_key


@dataclass(frozen=True)
class Schedule:
    """Where and when each program ran; ``starts``, ``ends`` and ``sms`` are in the order of their ids.

    Attributes:
        slot_ends: when each slot of the GPU is done for good; slot ``k`` belongs to SM ``k % sm_count``.
    """

    starts: list[int]
    ends: list[int]
    sms: list[int]
    slot_ends: list[int]

    @property
    def makespan(self) -> int:
        """Steps until the last program ends."""
        return max(self.slot_ends)

    @property
    def utilisation(self) -> float:
        """Busy time over the time that all slots have until the end."""
        return sum(self.slot_ends) / (len(self.slot_ends) * self.makespan)

    @property
    def waves(self) -> float:
        """How often the programs fill the GPU."""
        return len(self.starts) / len(self.slot_ends)

    @property
    def tail_start(self) -> int:
        """When the first slot finds no program left."""
        return min(self.slot_ends)

    def busy_at(self, time: int) -> int:
        """Slots at work in the step that begins at ``time``: none idles before its last program."""
        return sum(end > time for end in self.slot_ends)


def greedy_schedule(costs: Sequence[int], sm_count: int, slots: int = 1) -> Schedule:
    """Hand the programs out in their order, each to the slot that is free first (of equals, the first)."""
    _check(sm_count=sm_count, slots=slots)
    if not costs:
        raise ValueError("There must be at least one program to schedule, got none.")
    if min(costs) < 1:
        raise ValueError(f"A program costs at least 1 step, got {min(costs)}.")
    # One slot of every SM comes before the second of any: the GPU fills its SMs evenly.
    free = [(0, slot) for slot in range(sm_count * slots)]
    starts, ends, sms, slot_ends = [], [], [], [0] * len(free)
    for cost in costs:
        start, slot = free[0]
        end = start + cost
        heapq.heapreplace(free, (end, slot))
        starts.append(start)
        ends.append(end)
        sms.append(slot % sm_count)
        slot_ends[slot] = end
    return Schedule(starts, ends, sms, slot_ends)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {count!r}.")
