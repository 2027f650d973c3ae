"""Shared memory, its barriers, and who may touch what when."""

import functools
import math
from dataclasses import dataclass

import torch

from instruments.gluon_simulator.engine import (
    BarrierMisuse,
    MissingFence,
    Partition,
    Race,
    SimulationError,
    frames_of,
    place,
    running,
)
from instruments.gluon_simulator.tensors import TORCH_DTYPES, Tensor, poison, scalar_value, unwrap


@dataclass(frozen=True)
class Region:
    """Bytes of an allocation: from ``start`` up to ``stop``; ``mask``, if any, says which of them."""

    start: int
    stop: int
    mask: torch.Tensor | None

    def overlaps(self, other: "Region") -> bool:
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        if start >= stop or (self.mask is None and other.mask is None):
            return start < stop
        return bool((self.part(start, stop) & other.part(start, stop)).any())

    def covers(self, other: "Region") -> bool:
        return self.mask is None and self.start <= other.start and other.stop <= self.stop

    def part(self, start: int, stop: int) -> torch.Tensor:
        if self.mask is None:
            return torch.ones(stop - start, dtype=torch.bool)
        return self.mask[start - self.start : stop - self.start]


@functools.lru_cache(maxsize=4096)
def region_of(offset: int, shape: tuple, strides: tuple, itemsize: int) -> Region:
    """The bytes of a view, whose elements have so many bytes."""
    length = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    mask = None
    if length != math.prod(shape):
        mask = torch.zeros(length, dtype=torch.bool)
        mask.as_strided(shape, strides).fill_(True)
        mask = mask.repeat_interleave(itemsize)
    return Region(offset * itemsize, (offset + length) * itemsize, mask)


@dataclass
class Access:
    """One access to shared memory. ``bit`` is in the ``seen`` of those who know that it is over."""

    bit: int
    region: Region
    what: str
    writes: bool
    unfenced: bool = False
    tile: tuple[int, ...] | None = None


class Allocation:
    """A piece of a program's shared memory, and the accesses to it that still matter."""

    def __init__(self, shape: tuple[int, ...], bytes_: int) -> None:
        self.shape, self.bytes = shape, bytes_
        self.accesses: list[Access] = []
        self._name: str | None = None
        self.program = running().program
        self.program.allocations.append(self)

    @property
    def name(self) -> str:
        """What the kernel calls it: ``shared.key.tiles``."""
        self.find_name()
        return self._name or f"allocation {self.program.allocations.index(self)}"

    def find_name(self) -> None:
        """Look for a variable that holds it, from the outermost function on."""
        for frame in () if self._name else reversed(frames_of()):
            for name, value in frame.f_locals.items():
                self._name = self._name or self._path(value, name)

    def _path(self, value: object, path: str) -> str | None:
        if isinstance(value, SharedMemory | Barriers):
            return path if value.allocation is self and value.is_whole else None
        if isinstance(value, tuple):
            names = getattr(value, "_fields", range(len(value)))
            for name, part in zip(names, value, strict=True):
                longer = f"{path}.{name}" if isinstance(name, str) else f"{path}[{name}]"
                if found := self._path(part, longer):
                    return found
        return None

    def slot(self, start: int, stop: int) -> str:
        """Its name, with the slot of its first dimension that these bytes lie in."""
        size = self.bytes // self.shape[0]
        inside = self.shape[0] > 1 and start // size == (stop - 1) // size
        return f"{self.name}[{start // size}]" if inside else self.name


class SharedMemory:
    """A view of shared memory; the name and the methods of Gluon's ``shared_memory_descriptor``."""

    def __init__(self, allocation: Allocation, data: torch.Tensor, dtype, layout=None) -> None:
        self.allocation, self.data, self.dtype, self.layout = allocation, data, dtype, layout

    @classmethod
    def allocate(cls, dtype, shape, layout) -> "SharedMemory":
        shape = tuple(map(int, shape))
        data = poison(shape, TORCH_DTYPES[dtype.name])
        return cls(Allocation(shape, data.nbytes), data, dtype, layout)

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def rank(self) -> int:
        return self.data.ndim

    @property
    def numel(self) -> int:
        return self.data.numel()

    @property
    def is_whole(self) -> bool:
        return self.data.nbytes == self.allocation.bytes

    @property
    def label(self) -> str:
        region = self._region
        return self.allocation.slot(region.start, region.stop)

    @property
    def _region(self) -> Region:
        data = self.data
        return region_of(data.storage_offset(), tuple(data.shape), data.stride(), data.itemsize)

    def _view(self, data: torch.Tensor) -> "SharedMemory":
        return SharedMemory(self.allocation, data, self.dtype, self.layout)

    def index(self, index) -> "SharedMemory":
        return self._view(self.data[checked_index(index, self.data.shape[0], self.allocation)])

    def slice(self, start, length, dim=0) -> "SharedMemory":
        return self._view(self.data.narrow(int(dim), int(start), int(length)))

    def permute(self, order) -> "SharedMemory":
        return self._view(self.data.permute(tuple(map(int, order))))

    def reshape(self, shape) -> "SharedMemory":
        return self._view(self.data.view(tuple(map(int, shape))))

    def _reinterpret(self, dtype, shape, layout) -> "SharedMemory":
        data = self.data.view(TORCH_DTYPES[dtype.name]).view(tuple(map(int, shape)))
        return SharedMemory(self.allocation, data, dtype, layout)

    def _keep_alive(self) -> None:
        pass

    def load(self, layout=None) -> Tensor:
        running().step()
        self.finish(self.begin("loads"))
        return Tensor(self.data.clone())

    def store(self, value) -> None:
        running().step()
        access = self.begin("stores to", writes=True, unfenced=True)
        data = unwrap(value)
        if data.dtype != self.data.dtype or data.ndim and data.shape != self.data.shape:
            raise SimulationError(
                f"{self.label} is {self.dtype} {self.shape}; what is stored there is "
                f"{Tensor(data).dtype} {list(data.shape)}"
            )
        self.data.copy_(data)
        running().program.unfenced.append(access)
        self.finish(access)

    def begin(
        self, what: str, *, writes=False, unfenced=False, asynchronous=False, tile=None
    ) -> Access:
        """Start an access by the running partition.

        Args:
            what: a verb: ``loads``.
            unfenced: it writes like a store does, so TMA and tensor cores need a fence before they read.
            asynchronous: by TMA or the tensor cores.

        Raises:
            Race: it conflicts with an access that nothing says is over.
            MissingFence: it is asynchronous and reads what was stored without a fence.
        """
        by, region = running(), self._region
        about = f"{by.name} {what} {self.label} at {place(frames_of())}"
        for earlier in self.allocation.accesses:
            if not (writes or earlier.writes) or not region.overlaps(earlier.region):
                continue
            if not earlier.bit & by.seen:
                raise Race(
                    f"{about}, but nothing it waited for says that this is over: {earlier.what}"
                )
            if asynchronous and not writes and earlier.unfenced:
                raise MissingFence(
                    f"{about}, with no fence_async_shared() since this: {earlier.what}"
                )
        access = Access(next(by.program.bits), region, about, writes, unfenced, tile)
        kept = self.allocation.accesses
        if writes:
            kept = [one for one in kept if not region.covers(one.region)]
        self.allocation.accesses = [*kept, access]
        return access

    def finish(self, access: Access) -> None:
        """The running partition knows that an access of its own is over."""
        running().seen |= access.bit

    @property
    def tile(self) -> tuple[int, ...] | None:
        """Coordinates of the tile that TMA last brought here."""
        region = self._region
        for access in reversed(self.allocation.accesses):
            if access.tile is not None and region.overlaps(access.region):
                return access.tile
        return None


def fence() -> None:
    """Let TMA and the tensor cores read what was stored before."""
    by = running()
    by.step()
    left = []
    for access in by.program.unfenced:
        access.unfenced = not access.bit & by.seen
        if access.unfenced:
            left.append(access)
    by.program.unfenced = left


class Barrier:
    """An mbarrier: a phase completes when all its arrivals and all the bytes it expects have come."""

    def __init__(self, allocation: Allocation, slot: int) -> None:
        self._allocation, self._slot = allocation, slot
        self._count: int | None = None
        self._missing = self._bytes = 0
        self._phases, self._completed_at = 0, 0.0
        self._arriving = self._released = (
            0  # bits that those who arrived had seen, of this phase and before
        )

    @property
    def label(self) -> str:
        return self._allocation.slot(8 * self._slot, 8 * self._slot + 8)

    def init(self, count) -> None:
        if self._missing != (self._count or 0) or self._bytes:
            raise BarrierMisuse(f"{self.label} is initialised in the middle of a phase")
        self._count = self._missing = int(count)

    def invalidate(self) -> None:
        self._check()
        self._count, self._missing = None, 0

    def arrive(self, count: int = 1, bytes_: int = 0) -> None:
        """The running partition arrives, and expects so many bytes."""
        self._check()
        by = running()
        if count > self._missing:
            raise BarrierMisuse(
                f"{by.name} arrives {count} times at {self.label} at {place(frames_of())}, whose phase "
                f"{self._phases} takes {self._missing} more of its {self._count} arrivals"
            )
        self._missing -= count
        self._bytes += bytes_
        self._arriving |= by.seen
        self._complete(by, by.time)

    def land(self, by: Partition, bytes_: int, bit: int, time: float) -> None:
        """Bytes that TMA was asked for have come."""
        self._bytes -= bytes_
        self._arriving |= bit
        if self._bytes < 0 and self._missing == 0:
            raise BarrierMisuse(
                f"{-self._bytes} more bytes land on {self.label} than its phase {self._phases} expects"
            )
        self._complete(by, time)

    def wait(self, parity: int) -> None:
        """Wait until the phase of this parity, 0 or 1, is complete."""
        self._check()
        by = running()
        parity, since, label = parity & 1, by.time, self.label
        by.wait(
            # The current phase has number _phases; the last one before it had the other parity.
            lambda: None if self._phases & 1 == parity else self._completed_at,
            lambda: (
                f"{label}, a phase of parity {parity} (it is in phase {self._phases}: "
                f"{self._missing} of {self._count} arrivals and {self._bytes} bytes are missing)"
            ),
        )
        by.seen |= self._released
        if by.time > since:
            by.record(by.name, "wait", since, by.time, label)

    def _complete(self, by: Partition, time: float) -> None:
        if self._missing or self._bytes:
            return
        since = self._completed_at
        by.record(self.label, "phase", since, time, self.label, (self._phases,))
        self._missing = self._count
        self._phases += 1
        self._completed_at = time
        self._released |= self._arriving

    def _check(self) -> None:
        self._allocation.find_name()  # here, as bytes land while any other code may run
        if self._count is None:
            raise BarrierMisuse(
                f"{self.label} is used at {place(frames_of())} before mbarrier.init"
            )


class Barriers:
    """Shared memory that holds mbarriers, [SLOTS, 1] or [1]."""

    def __init__(self, shape, layout) -> None:
        self.shape, self.layout = list(map(int, shape)), layout
        slots = self.shape[0]
        self.allocation = Allocation((slots, 1), 8 * slots)
        self._barriers = [Barrier(self.allocation, slot) for slot in range(slots)]
        self.is_whole = True

    def index(self, index) -> Barrier:
        return self._barriers[checked_index(index, len(self._barriers), self.allocation)]

    def __getattr__(self, name):
        """One barrier needs no index."""
        if name.startswith("_") or len(self._barriers) > 1:
            raise AttributeError(
                f"{self.allocation.name} holds {self.shape[0]} barriers; index one"
            )
        return getattr(self._barriers[0], name)


class NamedBarrier:
    """A barrier of the hardware's own, which counts threads: ``bar.sync`` and ``bar.arrive``."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._threads = self._arrived = self._rounds = 0
        self._completed_at = 0.0
        self._arriving = self._released = 0

    def arrive(self, threads: int) -> None:
        by = running()
        if self._arrived and threads != self._threads:
            raise BarrierMisuse(
                f"{by.name} arrives at named barrier {self._number} for {threads} threads at "
                f"{place(frames_of())}; others arrived there for {self._threads}"
            )
        self._threads = threads
        self._arrived += 32 * by.warps
        self._arriving |= by.seen
        if self._arrived > threads:
            raise BarrierMisuse(
                f"{self._arrived} threads arrived at named barrier {self._number}, which takes {threads}"
            )
        if self._arrived == threads:
            self._rounds, self._arrived, self._completed_at = self._rounds + 1, 0, by.time
            self._released |= self._arriving

    def sync(self, threads: int) -> None:
        by, mine, since = running(), self._rounds, running().time
        self.arrive(threads)
        label = f"named barrier {self._number}"
        by.wait(
            lambda: None if self._rounds == mine else self._completed_at,
            lambda: f"{label} ({self._arrived} of {self._threads} threads arrived)",
        )
        by.seen |= self._released
        if by.time > since:
            by.record(by.name, "wait", since, by.time, label)


def checked_index(index, length: int, allocation: Allocation) -> int:
    """An index as a number, if it is one of ``length`` slots."""
    number = scalar_value(index)
    if not 0 <= number < length:
        raise SimulationError(
            f"{allocation.name} has slots 0 to {length - 1}, got {number} at {place(frames_of())}"
        )
    return number
