"""What happens at the ring of FlashAttention-3's kernel: every event at its slots, as plain numbers.

The kernel's own source runs on the simulator, as it is and with one mistake in it, until it ends or until
the simulator finds the mistake. Written down is what its partitions do to the tiles and barriers of the
ring of K and V, with the state in which each barrier is left. Order is the kernel's own; times are those
of :class:`HopperClock`.

``python -m instruments.ring_of_slots`` writes what the figure ``RingOfSlots`` shows if it is given nothing
else.
"""

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from instruments.gluon_simulator import Deadlock, HopperClock, Race, simulate
from instruments.gluon_simulator.engine import running
from instruments.gluon_simulator.memory import Barrier, SharedMemory
from instruments.warp_timeline import barrier_of, slot_of
from kernels import flash3_kernel, flash3_pipeline
from kernels.flash3 import Design, launch

RECORDED = Path(__file__).parents[1] / "figures" / "ring_of_slots.json"

STAGES = (1, 2, 3)
BLOCK_N = HEAD_DIM = 128
CONSUMERS = 2
TILES = 4

# A mistake, and the edit of the kernel's text that makes it: module, what stands there, what is put there.
MISTAKES = {
    "none": None,
    "parity": (
        flash3_pipeline,
        "mbarrier.wait(ring.empty.index(use % SLOTS), (use // SLOTS + 1) & 1)",
        "mbarrier.wait(ring.empty.index(use % SLOTS), (use // SLOTS) & 1)",
    ),
    "early": (
        flash3_kernel,
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n"
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n"
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n",
    ),
    "never": (
        flash3_kernel,
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
        "    if INDEX == 0:\n"
        "        finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
    ),
}
PARTITIONS = ("producer", *(f"consumer {i}" for i in range(CONSUMERS)))
# What an event is: of a barrier's wait, of a barrier's count, of a tile, or the end of a run.
DOES = (
    "waits",
    "goes on",
    "passes",
    "expects",
    "lands",
    "releases",
    "copies",
    "multiplies",
    "has multiplied",
    "race",
    "deadlock",
)
WHAT = ("key", "value", "full", "empty", "queries")


def runs() -> dict:
    """A run for each number of slots and each mistake, and what their numbers mean.

    ``events`` of a run are in order of time, each ``[cycle, place in does, place in partitions, place in
    what, slot, number]``. The number is a tile's, a wait's parity, or the bytes that a barrier was told to
    expect. An event that changes a barrier has three more: the arrivals that its phase still misses, the
    bytes, and the number of the phase, after the event; a tile that ``lands`` changes ``full``. A run with
    a mistake ends with the ``race`` or the ``deadlock`` that the simulator finds.
    """
    return {
        "tiles": TILES,
        "consumers": CONSUMERS,
        "tile_bytes": 2 * BLOCK_N * HEAD_DIM,
        "does": list(DOES),
        "partitions": list(PARTITIONS),
        "what": list(WHAT),
        "runs": [run(stages, mistake) for mistake in MISTAKES for stages in STAGES],
    }


def run(stages: int, mistake: str) -> dict:
    """One tile of queries against ``TILES`` tiles of keys, until its end or until a mistake shows."""
    design = Design(
        block_n=BLOCK_N, stages=stages, persistent=False, output_apart=False, warpgroups=CONSUMERS
    )
    query = torch.zeros(1, 1, CONSUMERS * design.rows, HEAD_DIM, dtype=torch.float16)
    key = torch.zeros(1, 1, TILES * BLOCK_N, HEAD_DIM, dtype=torch.float16)
    logsumexp = torch.empty(query.shape[:-1])
    grid, arguments, constants = launch(
        query, key, key, torch.empty_like(query), logsumexp, False, 1.0, design, 1
    )
    clock = HopperClock()
    with kernel_with(mistake) as kernel, watched() as events:
        try:
            simulate(kernel, grid, *arguments, clock=clock, num_warps=design.warps, **constants)
        except Race:
            pass  # the watch has noted it
        except Deadlock:
            last = max(event[0] for event in events)
            events.append([last, DOES.index("deadlock"), 0, WHAT.index("empty"), 0, 0])
    events.sort(key=lambda event: event[0])  # what has the same time stays in order
    # A partition that waits for its own product is ahead of its time; a race ends the run before that.
    ends = [at for at, event in enumerate(events) if event[1] == DOES.index("race")]
    del events[ends[0] + 1 if ends else len(events) :]
    return {
        "stages": stages,
        "mistake": mistake,
        "events": [[round(time), *rest] for time, *rest in events],
    }


@contextlib.contextmanager
def kernel_with(mistake: str) -> Iterator:
    """The kernel, with one edit of its text or of the pipeline's."""
    if MISTAKES[mistake] is None:
        yield flash3_kernel.flash3_kernel
        return
    edited, old, new = MISTAKES[mistake]
    names = {flash3_pipeline: "_edited_pipeline", flash3_kernel: "_edited_kernel"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for module, name in names.items():
                text = Path(module.__file__).read_text("utf-8")
                if module is edited:
                    if text.count(old) != 1:
                        raise ValueError(
                            f"{module.__name__} has {text.count(old)} of {old!r}, not 1"
                        )
                    text = text.replace(old, new)
                text = text.replace(f"from {flash3_pipeline.__name__} ", "from _edited_pipeline ")
                file = Path(folder, f"{name}.py")
                file.write_text(text, "utf-8")
                spec = importlib.util.spec_from_file_location(name, file)
                sys.modules[name] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[name])
            yield sys.modules["_edited_kernel"].flash3_kernel
        finally:
            for name in names.values():
                sys.modules.pop(name, None)


@contextlib.contextmanager
def watched() -> Iterator[list]:
    """The events at the ring while a kernel runs, from the simulator's methods through which they pass."""
    watch = Watch()
    methods = {
        (Barrier, "arrive"): watch.arrive,
        (Barrier, "land"): watch.land,
        (Barrier, "wait"): watch.wait,
        (SharedMemory, "begin"): watch.begin,
        (SharedMemory, "finish"): watch.finish,
    }
    originals = {(owner, name): getattr(owner, name) for owner, name in methods}
    for (owner, name), watching in methods.items():
        setattr(owner, name, around(watching, originals[owner, name]))
    try:
        yield watch.events
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def around(watching: Callable, original: Callable) -> Callable:
    """A method that hands what it is called with, and the original, to the one who watches."""

    def method(self, *arguments, **keywords):
        return watching(original, self, *arguments, **keywords)

    return method


class Watch:
    """Writes events down as they happen."""

    def __init__(self) -> None:
        self.events: list[list] = []
        self.tiles: dict[int, list] = {}  # the access's bit -> what it is about, its slot, its tile

    def note(self, does: str, what: int, slot: int, number: int, *, by=None, time=None) -> list:
        by = by or running()
        event = [
            by.time if time is None else time,
            *(DOES.index(does), PARTITIONS.index(by.name)),
            *(what, slot, number),
        ]
        self.events.append(event)
        return event

    def arrive(self, original, barrier, count=1, bytes_=0):
        original(barrier, count, bytes_)
        name, slot = barrier_of(barrier.label)
        if name.startswith("pairs"):
            does = "expects" if name == "pairs.full" else "releases"
            event = self.note(does, WHAT.index(name.removeprefix("pairs.")), slot, bytes_)
            event.extend(state(barrier))

    def land(self, original, barrier, by, bytes_, bit, time):
        original(barrier, by, bytes_, bit, time)
        if bit in self.tiles:
            self.note("lands", *self.tiles[bit], by=by, time=time).extend(state(barrier))

    def wait(self, original, barrier, parity):
        name, slot = barrier_of(barrier.label)
        if name == "queries.full":
            what = WHAT.index("queries")
        elif name.startswith("pairs"):
            what = WHAT.index(name.removeprefix("pairs."))
        else:
            return original(barrier, parity)
        event = self.note("waits", what, slot, parity & 1)
        original(barrier, parity)
        if running().time > event[0]:
            self.note("goes on", what, slot, parity & 1)
        elif name == "queries.full":
            self.events.remove(event)
        else:
            event[1] = DOES.index("passes")

    def begin(self, original, memory, what, **keywords):
        if "pairs" not in memory.label:
            return original(memory, what, **keywords)
        copies = keywords.get("writes", False)
        corner = keywords.get("tile") if copies else memory.tile
        tensor = WHAT.index("key" if "key" in memory.label else "value")
        about = [tensor, slot_of(memory.label), corner[2] // BLOCK_N]
        try:
            access = original(memory, what, **keywords)
        except Race:
            self.note("race", *about)
            raise
        self.note("copies" if copies else "multiplies", *about)
        self.tiles[access.bit] = about
        return access

    def finish(self, original, memory, access):
        original(memory, access)
        if access.bit in self.tiles:
            self.note("has multiplied", *self.tiles[access.bit])


def state(barrier: Barrier) -> tuple[int, int, int]:
    """Arrivals and bytes that the barrier's phase still misses, and the phase's number."""
    return barrier._missing, barrier._bytes, barrier._phases


def as_json(data: dict) -> str:
    """:func:`runs` as the figure's own file holds them, a run a line."""
    return json.dumps(data, separators=(",", ":")).replace('{"stages', '\n{"stages') + "\n"


if __name__ == "__main__":
    RECORDED.write_text(as_json(runs()), "utf-8")
