"""What every slot of the memory for keys and values is used for, counted slot by slot.

The categories are those of Kwon et al. 2023, Figure 2. A slot is one of

* ``tokens``: it holds the keys and values of a token;
* ``reserved``: it will, before its sequence ends;
* ``internal``: its sequence asked for it and will never need it;
* ``rounding``: its sequence did not ask for it, but pieces have sizes of their own (a buddy allocator's);
* ``free``: nobody holds it. While a request waits, that is because it does not fit.

The figure's "external fragmentation and others" is the last two together.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields

from serving.allocator import Allocator
from serving.contiguous import ContiguousAllocator


@dataclass(frozen=True)
class MemoryUse:
    """Slots of each kind; together all there are."""

    tokens: int
    reserved: int
    internal: int
    rounding: int
    free: int

    @property
    def slots(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self))


def memory_use(
    allocator: Allocator | ContiguousAllocator, written: Mapping[int, int], final: Mapping[int, int]
) -> MemoryUse:
    """Count the slots of the GPU's memory.

    Args:
        written: how many of its first tokens each sequence has in memory.
        final: how many slots it will have filled when it ends.
    """
    if isinstance(allocator, ContiguousAllocator):
        return _contiguous_use(allocator, written, final)
    return _paged_use(allocator, written, final)


def _paged_use(
    allocator: Allocator, written: Mapping[int, int], final: Mapping[int, int]
) -> MemoryUse:
    size = allocator.block_size
    # Slots in use in each block, now and in the end; of those that share it, the furthest counts.
    now, in_the_end = defaultdict(int), defaultdict(int)
    for number, table in allocator.tables.items():
        if table.pool is not allocator.gpu:
            continue
        for logical, block in enumerate(table.blocks):
            before = logical * size
            now[block] = max(now[block], min(size, written[number] - before))
            in_the_end[block] = max(in_the_end[block], min(size, final[number] - before))
    tokens, needed = sum(now.values()), sum(in_the_end.values())
    return MemoryUse(
        tokens=tokens,
        reserved=needed - tokens,
        internal=size * len(now) - needed,
        rounding=0,
        free=size * len(allocator.gpu.free),
    )


def _contiguous_use(
    allocator: ContiguousAllocator, written: Mapping[int, int], final: Mapping[int, int]
) -> MemoryUse:
    requests = {table.request for table in allocator.tables.values()}
    tokens = sum(written[number] for number in allocator.tables)
    held = sum(request.size * request.pieces for request in requests)
    asked = sum(request.asked * request.pieces for request in requests)
    needed = sum(
        request.pieces * max(final[n] for n, t in allocator.tables.items() if t.request is request)
        for request in requests
    )
    return MemoryUse(
        tokens=tokens,
        reserved=needed - tokens,
        internal=asked - needed,
        rounding=held - asked,
        free=len(allocator.gpu.reference_counts) - held,
    )
