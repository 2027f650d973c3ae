"""Runs Gluon kernels for Hopper on the CPU.

    run = simulate(kernel, (programs,), *args, BLOCK=64, seed=3)

The kernel's own source runs: every partition is a thread with a clock, TMA copies land late, products
read their operands until they are waited for, barriers have arrivals, bytes and phases. By default all
of it takes random times, and mistakes in the protocol show: as an error that names who did what where,
or as a wrong answer. With a :class:`HopperClock` the same run is a timeline.

What is simulated: shared memory, TMA loads and stores, mbarriers, named barriers, wgmma, fences, warp
specialization, and the arithmetic around them with its rounding. What is not: layouts, registers, and
whatever :mod:`instruments.gluon_simulator.language` does not list, which raises :class:`NotSimulated`.

One difference remains in what Python can tell: a counter that begins as a literal and only ever meets
literals stays a Python number, whose ``//`` and ``%`` differ from the hardware's below zero.
"""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

import kernels  # noqa: F401 - decides how Triton runs, before Triton is imported
from instruments.gluon_simulator.asynchronous import check_finished, check_landed
from instruments.gluon_simulator.clocks import HopperClock, RandomClock
from instruments.gluon_simulator.engine import (
    BarrierMisuse,
    Deadlock,
    Engine,
    InFlight,
    MissingFence,
    NotSimulated,
    Partition,
    Program,
    Race,
    SimulationError,
    Span,
    running,
)
from instruments.gluon_simulator.language import argument, runnable_kernel
from instruments.traffic import Traffic

__all__ = [
    "BarrierMisuse",
    "Deadlock",
    "HopperClock",
    "InFlight",
    "MissingFence",
    "NotSimulated",
    "Race",
    "Run",
    "SimulationError",
    "Span",
    "simulate",
]


@dataclass(frozen=True)
class Run:
    """What a simulated launch did.

    Attributes:
        cycles: when its last program ended. Means something only with a :class:`HopperClock`.
        trace: all that took place, in the order in which it was begun.
        traffic: bytes moved between HBM and the chip; buffers have their arguments' names.
        shared_bytes: shared memory that a program allocates, if none of it is used twice.
    """

    cycles: float
    trace: tuple[Span, ...]
    traffic: Traffic
    shared_bytes: int

    def rows(self) -> list[dict]:
        """The trace as plain rows."""
        return [asdict(span) for span in self.trace]


def simulate(
    kernel,
    grid: Sequence[int],
    *args: object,
    seed: int = 0,
    clock: HopperClock | None = None,
    sms: int = 1,
    num_warps: int = 4,
    **keywords: object,
) -> Run:
    """Launch a Gluon kernel on the CPU.

    Args:
        kernel: a ``@gluon.jit`` function.
        grid: numbers of programs.
        args, keywords: the kernel's arguments: CPU tensors, ``TensorDescriptor``s of them, numbers, and
            compile-time constants.
        seed: of the random times that things take. A run depends on nothing else.
        clock: the times that things take instead, to see a schedule.
        sms: programs that run side by side; the next one starts where one ends.
        num_warps: of the program and its default partition.

    Raises:
        SimulationError: a deadlock, a race, a misused barrier, a missing fence, something in flight at
            the wrong time, or an operation that the simulator does not know.
    """
    engine = Engine(clock or RandomClock(seed))
    sizes = (*map(int, grid), 1, 1)[:3]
    # As the hardware deals them out: along the grid's first dimension first.
    waiting = [
        (x, y, z) for z, y, x in itertools.product(*(range(size) for size in reversed(sizes)))
    ]
    programs = [Program(number, index, sizes) for number, index in enumerate(waiting)]
    launch = _Launch(runnable_kernel(kernel), _arguments(kernel, args, keywords), iter(programs))
    for sm in range(min(sms, len(programs))):
        engine.start(
            Partition(engine, None, sm, kernel.__name__, num_warps, launch.programs_of_an_sm)
        )
    with _one_thread():
        engine.run()
    traffic = Traffic()
    for (name, kind), bytes_ in engine.bytes.items():
        setattr(traffic.buffers[kernel.__name__, name.removesuffix("_ptr")], kind, bytes_)
    return Run(
        cycles=max((span.end for span in engine.trace), default=0.0),
        trace=tuple(engine.trace),
        traffic=traffic,
        shared_bytes=max((program.shared_bytes for program in programs), default=0),
    )


@dataclass
class _Launch:
    """What the SMs of a launch share."""

    function: Callable
    arguments: dict
    programs: Iterator[Program]

    def programs_of_an_sm(self) -> None:
        """Run programs, one after another, until none is left."""
        partition = running()
        while True:
            partition.step()
            partition.program = next(self.programs, None)
            if partition.program is None:
                return
            partition.seen = 0
            self.function(**self.arguments)
            check_finished()
            check_landed()


def _arguments(kernel, args: tuple, keywords: dict) -> dict:
    """The kernel's arguments by name, as its code sees them."""
    bound = inspect.signature(kernel.fn).bind(*args, **keywords)
    bound.apply_defaults()
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    return {
        name: argument(value, name, name in constants) for name, value in bound.arguments.items()
    }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch's own threads cost more than they save on tiles, of which one partition has one at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
