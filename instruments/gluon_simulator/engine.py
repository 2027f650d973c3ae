"""Partitions that take turns: the clockwork of the simulator.

Each partition is a Python thread, but only one runs at a time: the one whose own clock is earliest. At
every operation that others could notice it lets its clock advance by the operation's cost and hands over
to whoever is then the earliest. So things happen in the order of their times, a run depends on nothing
but its clock's numbers, and a deadlock is seen the moment it happens: nobody can run and nothing is in
flight.

What a partition may rely on is tracked too. Every access to shared memory has a bit of its own, and a
partition's ``seen`` holds the bits of the accesses that are over for certain, whatever the latencies: its
own, and those that barriers told it of. An access that conflicts with one not in ``seen`` is a race, even
when this run's latencies happened to hide it.
"""

import heapq
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from instruments.gluon_simulator.clocks import FLOAT32, STEP

# Set in the globals of every function of a kernel that runs here, so that its frames can be told.
MARK = "__simulated__"
# A row's worth of elements goes by unnoticed between bigger operations: it occupies no unit.
SMALL = 1024


class SimulationError(RuntimeError):
    """The kernel did what the hardware does not allow, or what the simulator does not know."""


class Deadlock(SimulationError):
    """Every partition waits for another, and nothing is in flight."""


class Race(SimulationError):
    """Two accesses to shared memory with no barrier between them, one of them a write."""


class MissingFence(SimulationError):
    """TMA or a tensor core reads what was stored without ``fence_async_shared()`` after it."""


class BarrierMisuse(SimulationError):
    """More arrivals or bytes than a barrier's phase takes, or a barrier that was never initialised."""


class InFlight(SimulationError):
    """An accumulator used, or the program ended, before an asynchronous operation was waited for."""


class NotSimulated(SimulationError):
    """Something of Gluon that the simulator does not know."""


class _Stopped(BaseException):
    """Ends a partition because another one failed."""


@dataclass(frozen=True)
class Span:
    """Something that took place from ``start`` to ``end``, in cycles.

    Attributes:
        sm, program: where, and the number of the program in the grid.
        lane: a partition, a unit, a buffer or a barrier.
        name: what: ``wait``, ``wgmma``, ``exp2``, ``fill`` (a TMA load, from start to landing), ``read``
            (by the tensor cores), ``drain`` (by a TMA store), ``phase`` (of a barrier, since the last one).
        partition: who did it.
        buffer: the buffer, or barrier, concerned.
        tile: coordinates of the tile that the buffer then holds, or the number of the barrier's phase.
    """

    sm: int
    program: int
    lane: str
    name: str
    start: float
    end: float
    partition: str
    buffer: str | None = None
    tile: tuple[int, ...] | None = None


@dataclass
class Program:
    """One program of the grid: what its partitions share."""

    number: int
    index: tuple[int, ...]
    grid: tuple[int, ...]
    bits: Iterable[int] = field(default_factory=lambda: map((1).__lshift__, itertools.count()))
    allocations: list = field(default_factory=list)
    named_barriers: dict = field(default_factory=dict)
    unfenced: list = field(default_factory=list)  # accesses that stored and were not fenced yet
    loads: list = field(default_factory=list)  # accesses by which TMA wrote

    @property
    def shared_bytes(self) -> int:
        """Shared memory that it has allocated."""
        return sum(allocation.bytes for allocation in self.allocations)


class Partition:
    """A thread of the program, as :func:`warp_specialize` starts it; the program itself is one, too."""

    def __init__(
        self,
        engine: "Engine",
        program: Program | None,
        sm: int,
        name: str,
        warps: int,
        body: Callable[[], object],
    ) -> None:
        self.engine, self.program, self.sm = engine, program, sm
        self.name, self.warps = name, warps
        self.entry = None  # the code of the function that it runs, where others called that one
        self.time, self.seen = 0.0, 0
        self.products: list = []  # wgmma in flight, oldest first
        self.drains: list = []  # TMA stores in flight, oldest first
        # None while it can run; else what tells when it can go on (None: not yet), and what it waits for.
        self.released_at: Callable[[], float | None] | None = None
        self.waiting_for: Callable[[], str] | None = None
        self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()
        self._body = body
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        _running.partition = self
        try:
            self._await_turn()
            self._body()
            self.done = True
            self.engine.partitions.remove(self)
            self.engine.hand_over()
        except _Stopped:
            pass
        except BaseException as error:
            if self.program and not isinstance(error, Deadlock):
                error.add_note(f"in {self.name} of program {self.program.index}")
            self.engine.finish(error)

    def _await_turn(self) -> None:
        self.turn.acquire()
        if self.engine.failure:
            raise _Stopped

    def _switch(self) -> None:
        if self.engine.hand_over(self) is not self:
            self._await_turn()

    def step(self) -> None:
        """An instruction that others can notice: it takes place when this partition is the earliest."""
        self.time += self.engine.clock.cycles(STEP, 1)
        self._switch()

    def wait(self, released_at: Callable[[], float | None], waiting_for: Callable[[], str]) -> None:
        """Stand still until ``released_at`` names a time."""
        self.released_at, self.waiting_for = released_at, waiting_for
        self._switch()
        self.released_at = self.waiting_for = None

    def occupy(self, unit: str, work: float, start: float) -> tuple[float, float]:
        """Queue work for a unit of the SM; when it starts and ends."""
        free = self.engine.free_from
        start = max(start, free[self.sm, unit])
        end = free[self.sm, unit] = start + self.engine.clock.cycles(unit, work)
        return start, end

    def compute(self, work: int, unit: str = FLOAT32, name: str = "arithmetic") -> None:
        """Arithmetic on so many elements, which the partition waits for."""
        cycles = self.engine.clock.cycles(unit, work)
        if not cycles:
            return
        if work < SMALL:
            self.time += cycles
            return
        self._switch()
        start, self.time = self.occupy(unit, work, self.time)
        self.record(unit, name, start, self.time)

    def record(self, lane, name, start, end, buffer=None, tile=None) -> None:
        """Write down what happened."""
        self.engine.trace.append(
            Span(self.sm, self.program.number, lane, name, start, end, self.name, buffer, tile)
        )


class Engine:
    """Runs partitions in the order of their clocks."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.partitions: list[Partition] = []  # that have not ended
        self.free_from: Counter = Counter()  # (sm, unit) -> when it has finished all that is queued
        self.trace: list[Span] = []
        self.bytes: Counter = Counter()  # (buffer, "loaded" or "stored") -> bytes
        self.failure: BaseException | None = None
        self._events: list = []
        self._order = itertools.count()
        self._threads: list[threading.Thread] = []
        self._finished = threading.Event()

    def start(self, partition: Partition) -> None:
        """Add a partition; it runs when its turn comes."""
        self.partitions.append(partition)
        self._threads.append(partition.thread)
        partition.thread.start()

    def count(self, buffer: str, kind: str, bytes_: int) -> None:
        """Bytes that cross between HBM and the chip."""
        self.bytes[buffer, kind] += bytes_

    def at(self, time: float, event: Callable[[float], None]) -> None:
        """Let something happen at a time, unasked."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def run(self) -> None:
        """Run all partitions to their end.

        Raises:
            SimulationError: or whatever else a partition raised first.
        """
        self.hand_over()
        self._finished.wait()
        for partition in self.partitions:  # some are left only after a failure, which ends them
            partition.turn.release()
        for thread in self._threads:
            thread.join()
        if self.failure:
            raise self.failure

    def finish(self, failure: BaseException | None = None) -> None:
        """End the run."""
        self.failure = self.failure or failure
        self._finished.set()

    def hand_over(self, giving: Partition | None = None) -> Partition | None:
        """Let events happen and give the turn to the earliest partition, which may be ``giving`` itself."""
        following = self._earliest()
        if following is None:
            self.finish()
        elif following is not giving:
            following.turn.release()
        return following

    def _earliest(self) -> Partition | None:
        while True:
            best, best_time = None, float("inf")
            for partition in self.partitions:
                released = 0.0 if partition.released_at is None else partition.released_at()
                if released is not None and max(partition.time, released) < best_time:
                    best, best_time = partition, max(partition.time, released)
            if self._events and self._events[0][0] <= best_time:
                time, _, event = heapq.heappop(self._events)
                event(time)
                continue
            if best is None and self.partitions:
                raise Deadlock(self._deadlock())
            if best is not None:
                best.time = best_time
            return best

    def _deadlock(self) -> str:
        lines = [
            f"  {partition.name} of program {partition.program.index} waits at "
            f"{place(frames_of(partition))} for {partition.waiting_for()}"
            for partition in self.partitions
        ]
        return "\n".join(["nobody can go on, and nothing is in flight:", *lines])


_running = threading.local()


def running() -> Partition:
    """The partition whose code runs."""
    return _running.partition


def frames_of(partition: Partition | None = None) -> list:
    """The kernel's frames of a partition (of the running one), innermost first."""
    partition = partition or running()
    here = partition.thread is threading.current_thread()
    frame = sys._getframe() if here else sys._current_frames()[partition.thread.ident]
    found = []
    while frame:
        if MARK in frame.f_globals:
            found.append(frame)
        frame = None if found and found[-1].f_code is partition.entry else frame.f_back
    return found


def place(frames: list) -> str:
    """Where the code is: ``wait_full (flash3.py:129) < consumer (flash3.py:210)``."""
    return " < ".join(
        f"{frame.f_code.co_name} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"
        for frame in frames
    )
