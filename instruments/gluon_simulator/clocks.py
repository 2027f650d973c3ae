"""How long things take in a simulated run: at random, to find mistakes, or as on Hopper, to see a schedule.

A clock answers one question: how many cycles a job of some size occupies one of the units below.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

TENSOR_CORES = "tensor cores"  # work: floating-point operations
EXPONENTIALS = "exponential unit"  # work: elements
FLOAT32 = "float32 units"  # work: elements
COPIES = "copy engine"  # work: bytes
LATENCY = "latency"  # of memory, per access
STEP = "step"  # the instruction itself, of everything that synchronises or starts something


@dataclass(frozen=True)
class HopperClock:
    """A model of one SM of an H100 or H200 with all of its units shared by all partitions.

    It knows no instruction issue, no register traffic and no bank conflicts, and a unit serves whole
    operations in the order they come in. So it shows which unit a schedule leaves idle, and whom a
    partition waits for; it does not predict a kernel's time.

    Attributes:
        per_cycle: what each unit does in a cycle. Tensor cores: 989.4 TFLOP/s of dense float16 over 132 SMs
            at 1.83 GHz. Exponentials and float32: 4 and 32 a quadrant, of which there are 4. Copies:
            between what ``benchmarks.copy_rate`` measures when all SMs read the same tiles from the L2
            and when they read different ones.
        latency: cycles from starting a copy to its first byte, an assumption.
        step: cycles a barrier operation, or starting a product or a copy, keeps a partition busy.
    """

    per_cycle: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {TENSOR_CORES: 4096, EXPONENTIALS: 16, FLOAT32: 128, COPIES: 64}
        )
    )
    latency: float = 700
    step: float = 20

    def cycles(self, unit: str, work: float) -> float:
        """Cycles that ``work`` keeps ``unit`` busy."""
        if unit == LATENCY:
            return self.latency
        return self.step if unit == STEP else work / self.per_cycle[unit]


class RandomClock:
    """Durations drawn at random, over several orders of magnitude, so that all orders of events occur."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def cycles(self, unit: str, work: float) -> float:
        """A random number of cycles. Arithmetic takes none: steps already come at random times."""
        if unit in (FLOAT32, EXPONENTIALS, COPIES):
            return 0.0
        return 10 ** self._random.uniform(0, 3 if unit == STEP else 4)
