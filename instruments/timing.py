"""Timing: several functions interleaved in one run, with medians, spreads and ratios.

A GPU's clock follows its temperature and power, so the same kernel can differ by several percent from
one minute to the next. Functions that are compared therefore take turns (A B C, B A C, ...), and a ratio
is taken within each round before its median is.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import kernels
from instruments.progress import progress

# Writing this much between two calls pushes earlier data out of the L2 cache of every current GPU.
_CACHE_BYTES = 256 * 2**20
_CYCLES_A_SECOND = 2 * 10**9
_LONGEST_SLEEP = 0.1  # seconds


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call, one median for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, in milliseconds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the rounds, over the median."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / 2 / self.median

    def speedup_over(self, other: "Timing") -> float:
        """How many times faster than ``other``: the median of the ratios of each round."""
        return statistics.median(o / s for s, o in zip(self.rounds, other.rounds, strict=True))


def time_interleaved(
    functions: dict[str, Callable[[], object]],
    *,
    rounds: int = 9,
    milliseconds_a_round: float = 20.0,
) -> dict[str, Timing]:
    """Time functions of no arguments, taking turns.

    Args:
        functions: name to function; each is called untimed first.
        rounds: how often each gets its turn.
        milliseconds_a_round: about how long a turn lasts; at least three calls are made.

    Returns:
        Name to :class:`Timing`. On a GPU the L2 cache is overwritten before each call, the time is taken by
        events on the device, and only the later half of a turn counts, since the clock follows the power
        that was drawn before; on the CPU by the wall clock.
    """
    on_gpu = kernels.device().type == "cuda"
    time_call = _time_on_gpu if on_gpu else _time_on_cpu
    cache = torch.empty(_CACHE_BYTES if on_gpu else 0, dtype=torch.int8, device=kernels.device())
    calls = {}
    for name, function in progress(functions.items(), "first calls"):
        function()  # compiles, and allocates what is then reused
        once = time_call(function, cache, 2)[-1]
        calls[name] = max(3, min(200, int(milliseconds_a_round / max(once, 1e-3))))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    turns = random.Random(0)
    for _ in progress(range(rounds), "rounds"):
        # In a new order each round, so that each comes after each.
        for name in turns.sample(list(functions), len(functions)):
            taken[name].append(statistics.median(time_call(functions[name], cache, calls[name])))
    return {name: Timing(tuple(times)) for name, times in taken.items()}


def _time_on_gpu(function: Callable, cache: torch.Tensor, calls: int) -> list[float]:
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))
    began = time.perf_counter()
    function()
    a_call = time.perf_counter() - began
    # The GPU sleeps until all calls are queued. Otherwise a short kernel's time is that of its launch. What
    # takes the host longer waits for the GPU itself, or is too long for its launches to matter.
    sleep = min(1.5 * a_call * calls, _LONGEST_SLEEP)
    torch.cuda._sleep(int(_CYCLES_A_SECOND * sleep))
    for start, end in zip(starts, ends, strict=True):
        cache.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)][calls // 2 :]


def _time_on_cpu(function: Callable, cache: torch.Tensor, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return times
