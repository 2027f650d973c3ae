"""What works on by itself: TMA, the tensor cores, and the barriers that tell when they are done."""

import math
import types
from dataclasses import dataclass

import torch

from instruments.gluon_simulator.clocks import COPIES, LATENCY, TENSOR_CORES
from instruments.gluon_simulator.engine import (
    InFlight,
    NotSimulated,
    SimulationError,
    frames_of,
    place,
    running,
)
from instruments.gluon_simulator.memory import Access, SharedMemory
from instruments.gluon_simulator.tensors import (
    GLUON_DTYPES,
    HALF,
    Accumulator,
    Tensor,
    scalar_value,
    unwrap,
)


class Descriptor:
    """A tensor in HBM as TMA sees it: the name and the attributes of Gluon's ``tensor_descriptor``."""

    def __init__(self, host, name: str) -> None:
        base = host.base.detach()
        self.dtype = GLUON_DTYPES[base.dtype]
        self.block_shape = list(map(int, host.block_shape))
        self.shape, self.strides = list(map(int, host.shape)), list(map(int, host.strides))
        self.layout, self.name = host.layout, name
        self._check(base)
        self.nbytes_per_cta = math.prod(self.block_shape) * base.itemsize
        self.block_type = types.SimpleNamespace(
            element_ty=self.dtype, shape=self.block_shape, nbytes=self.nbytes_per_cta
        )
        self._elements = base.as_strided(self.shape, self.strides)
        self._padding = math.nan if getattr(host, "padding", "zero") == "nan" else 0

    def _check(self, base: torch.Tensor) -> None:
        bytes_ = base.itemsize
        if base.data_ptr() % 16 or any(s * bytes_ % 16 for s in self.strides[:-1]):
            raise SimulationError(
                f"TMA takes a base and strides that are multiples of 16 bytes; {self.name} has base "
                f"{base.data_ptr():#x} and strides {[s * bytes_ for s in self.strides]} bytes"
            )
        if self.strides[-1] != 1:
            raise SimulationError(
                f"TMA takes tensors whose last stride is 1; {self.name}'s is {self.strides[-1]}"
            )
        if max(self.block_shape) > 256 or self.block_shape[-1] * bytes_ % 16:
            raise SimulationError(
                f"TMA copies boxes of at most 256 elements a dimension and whole 16 bytes in the last; "
                f"{self.name}'s is {self.block_shape}"
            )

    def load(self, corner: tuple[int, ...]) -> torch.Tensor:
        """The tile at a corner, with zeros outside the tensor."""
        tile = torch.full(self.block_shape, self._padding, dtype=self._elements.dtype)
        inside, here = self._inside(corner)
        tile[here] = self._elements[inside]
        return tile

    def store(self, corner: tuple[int, ...], tile: torch.Tensor) -> None:
        """Write what of the tile lies inside the tensor."""
        inside, here = self._inside(corner)
        self._elements[inside] = tile.reshape(self.block_shape)[here]

    def bytes_inside(self, corner: tuple[int, ...]) -> int:
        """How much of the tile lies inside the tensor."""
        return self._elements[self._inside(corner)[0]].numel() * self._elements.itemsize

    def _inside(self, corner) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part inside the tensor, as slices of the tensor and of the tile."""
        inside, here = [], []
        for start, length, size in zip(corner, self.block_shape, self.shape, strict=True):
            first, last = min(max(start, 0), size), max(min(start + length, size), 0)
            inside.append(slice(first, max(first, last)))
            here.append(slice(first - start, max(first, last) - start))
        # Where nothing is inside, slices of the tile may start before or after it; they must be empty.
        if any(part.start >= part.stop for part in inside):
            here = [slice(0, part.stop - part.start) for part in inside]
        return tuple(inside), tuple(here)

    def corner(self, coordinates) -> tuple[int, ...]:
        """Coordinates as numbers."""
        corner = tuple(int(scalar_value(c)) for c in coordinates)
        if len(corner) != len(self.shape):
            raise SimulationError(
                f"{self.name} has {len(self.shape)} dimensions; the copy at {place(frames_of())} gives "
                f"{len(corner)} coordinates"
            )
        if corner[-1] * self._elements.itemsize % 16:
            raise SimulationError(
                f"the copy at {place(frames_of())} starts at element {corner[-1]} of {self.name}'s rows, "
                "which is no multiple of 16 bytes"
            )
        return corner

    def check_tile(self, tile: SharedMemory) -> None:
        """Raise an error unless a tile in shared memory is one of this tensor's."""
        if tile.dtype != self.dtype or tile.shape != self.block_shape:
            raise SimulationError(
                f"{self.name}'s tiles are {self.dtype} {self.block_shape}; {tile.label} at "
                f"{place(frames_of())} is {tile.dtype} {tile.shape}"
            )


def tma_load(tensor_desc, coord, barrier, result, pred=True, multicast=False) -> None:
    """Start a copy to shared memory. It lands later; its bytes then count towards the barrier."""
    if not pred:
        return
    if multicast:
        raise NotSimulated(f"multicast at {place(frames_of())}")
    by = running()
    by.step()
    corner = tensor_desc.corner(coord)
    tensor_desc.check_tile(result)
    access = result.begin("starts a TMA copy into", writes=True, asynchronous=True, tile=corner)
    by.program.loads.append(access)
    bytes_ = tensor_desc.bytes_inside(corner)
    by.engine.count(tensor_desc.name, "loaded", bytes_)
    landed = _copy(by, bytes_)
    by.record(result.label, "fill", by.time, landed, result.label, corner)

    def land(time: float) -> None:
        result.data.copy_(tensor_desc.load(corner))
        # Bytes outside the tensor count too: they are written, as zeros.
        barrier.land(by, result.data.nbytes, access.bit, time)

    by.engine.at(landed, land)


def _copy(by, bytes_: int) -> float:
    """When a copy that starts now is over."""
    start, end = by.occupy(COPIES, bytes_, by.time)
    if end > start:
        by.record(COPIES, "copy", start, end)
    return end + by.engine.clock.cycles(LATENCY, 1)


@dataclass
class _Drain:
    """A TMA store in flight."""

    descriptor: Descriptor
    corner: tuple[int, ...]
    source: SharedMemory
    access: Access
    end: float


def tma_store(tensor_desc, coord, src) -> None:
    """Start a copy from shared memory, which reads as late as it may: when it is waited for."""
    by = running()
    by.step()
    corner = tensor_desc.corner(coord)
    tensor_desc.check_tile(src)
    access = src.begin("starts a TMA store from", asynchronous=True)
    bytes_ = tensor_desc.bytes_inside(corner)
    by.engine.count(tensor_desc.name, "stored", bytes_)
    end = _copy(by, bytes_)
    by.record(src.label, "drain", by.time, end, src.label, corner)
    by.drains.append(_Drain(tensor_desc, corner, src, access, end))


def store_wait(pendings=0) -> None:
    """Wait until all but the last so many of the partition's own stores have read their source."""
    by = running()
    by.step()
    since = by.time
    while len(by.drains) > int(pendings):
        drain = by.drains.pop(0)
        by.time = max(by.time, drain.end)
        drain.descriptor.store(drain.corner, drain.source.data)
        drain.source.finish(drain.access)
    if by.time > since:
        by.record(by.name, "wait", since, by.time, "store_wait")


@dataclass
class _Product:
    """A wgmma in flight."""

    left: object
    right: SharedMemory
    initial: object
    result: Accumulator
    reads: list[tuple[SharedMemory, Access]]
    end: float

    def finish(self) -> None:
        """Read the operands, as late as the hardware may, and compute."""
        left = self.left.data.float() @ self.right.data.float()
        if self.initial is not None:
            initial = self.initial
            left += initial.value if isinstance(initial, Accumulator) else initial.data
        self.result.value = left
        for buffer, access in self.reads:
            buffer.finish(access)


def warpgroup_mma(
    a,
    b,
    acc,
    *,
    use_acc=True,
    precision=None,
    max_num_imprecise_acc=None,
    is_async=False,
):
    """Start a product on the tensor cores; operands in shared memory are read until it is waited for."""
    by = running()
    by.step()
    _check_product(a, b, acc)
    reads = [
        (part, part.begin("starts a wgmma that reads", asynchronous=True))
        for part in (a, b)
        if isinstance(part, SharedMemory)
    ]
    rows, depth = a.shape
    columns = b.shape[1]
    start, end = by.occupy(TENSOR_CORES, 2 * rows * columns * depth, by.time)
    by.record(TENSOR_CORES, "wgmma", start, end, b.label, b.tile)
    for buffer, _ in reads:
        by.record(buffer.label, "read", by.time, end, buffer.label, buffer.tile)
    result = Accumulator([rows, columns])
    by.products.append(_Product(a, b, acc if use_acc else None, result, reads, end))
    return result if is_async else warpgroup_mma_wait(0, [result])


def _check_product(a, b, acc) -> None:
    where = place(frames_of())
    if not isinstance(b, SharedMemory) or not isinstance(a, SharedMemory | Tensor):
        for operand in (a, b):
            unwrap(operand)  # names an accumulator in flight
        raise SimulationError(f"the right operand of the wgmma at {where} is not in shared memory")
    shapes = a.shape, b.shape, acc.shape
    if len(a.shape) != 2 or shapes != (
        [*a.shape],
        [a.shape[1], b.shape[1]],
        [a.shape[0], b.shape[1]],
    ):
        raise SimulationError(
            f"a wgmma of shapes {shapes[0]} @ {shapes[1]} + {shapes[2]} at {where}"
        )
    rows, depth = a.shape
    kind = a.data.dtype
    if kind != b.data.dtype or not (kind in HALF or kind.itemsize == 1):
        raise NotSimulated(f"a wgmma of {a.dtype} and {b.dtype} at {where}")
    along_the_sum = [b.data.stride(0)] + [a.data.stride(1)] * isinstance(a, SharedMemory)
    if kind.itemsize == 1 and any(stride != 1 for stride in along_the_sum):
        raise SimulationError(
            "8-bit tiles in shared memory must be contiguous along what is summed; the wgmma at "
            f"{where} has one that is not"
        )
    if rows % 64 or b.shape[1] % 8 or depth * kind.itemsize % 32:
        raise SimulationError(
            f"wgmma multiplies 64 rows at a time, a multiple of 8 columns, and 32 bytes of depth; got "
            f"{shapes[0]} @ {shapes[1]} at {where}"
        )


def warpgroup_mma_wait(num_outstanding=0, deps=None):
    """Wait until all but the last so many of the partition's own products are done."""
    if deps is None:
        raise SimulationError(f"warpgroup_mma_wait without deps at {place(frames_of())}")
    by = running()
    by.step()
    since = by.time
    while len(by.products) > int(num_outstanding):
        product = by.products.pop(0)
        by.time = max(by.time, product.end)
        product.finish()
    if by.time > since:
        by.record(by.name, "wait", since, by.time, TENSOR_CORES)
    results = tuple(
        Tensor(one.value) if isinstance(one, Accumulator) and one.value is not None else one
        for one in deps
    )
    return results[0] if len(results) == 1 else results


def check_finished() -> None:
    """Raise an error if the running partition leaves something of its own in flight."""
    by = running()
    for what, word in ((by.products, "a wgmma"), (by.drains, "a TMA store")):
        if what:
            raise InFlight(f"{by.name} ends with {word} in flight that it never waited for")


def check_landed() -> None:
    """Raise an error if nobody waited for a TMA copy of the program that ends."""
    by = running()
    for access in by.program.loads:
        if not access.bit & by.seen:
            raise InFlight(f"the program ends, and nobody waited for this: {access.what}")


def barrier_init(mbarrier, count) -> None:
    mbarrier.init(count)


def barrier_invalidate(mbarrier) -> None:
    mbarrier.invalidate()


def barrier_expect(mbarrier, bytes_per_cta=None, pred=True, bytes=None) -> None:
    """One arrival, and so many bytes more to come."""
    if pred:
        running().step()
        mbarrier.arrive(bytes_=int(bytes_per_cta if bytes is None else bytes))


def barrier_arrive(mbarrier, *, count=1, pred=True) -> None:
    if pred:
        running().step()
        mbarrier.arrive(int(count))


def barrier_wait(mbarrier, phase, pred=True, deps=()) -> None:
    if pred:
        running().step()
        mbarrier.wait(int(phase))
