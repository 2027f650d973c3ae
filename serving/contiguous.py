"""Contiguous memory for keys and values, as serving systems had it before PagedAttention.

A kernel that knows no block table needs a sequence's keys and values in one piece. A piece cannot grow
where another one follows, so a request reserves all it may ever need before it starts. Three ways to say
how much that is are the baselines of Kwon et al. 2023, who name them after Orca (Yu et al. 2022):

* ``max``: as much as the longest sequence the model allows, which is all a system can know;
* ``pow2``: for the prompt and for the output rounded up to a power of two, as if guessed that well;
* ``oracle``: for the prompt and the output, as if known, which no system can.

Pieces come from a buddy allocator (Knowlton 1965): sizes are powers of two, a larger piece is halved, and
two free halves become one again. The allocator answers the same calls as ``serving.allocator``, so the
same scheduler runs on either. Nothing is shared, found again or swapped: what is reserved stays reserved.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serving.allocator import Copy, NoFreeBlocks

RESERVATIONS = ("max", "pow2", "oracle")


def reserved_slots(reservation: str, prompt: int, output: int, longest: int) -> int:
    """How many slots a request asks for: no more than the longest sequence, and none for its last token."""
    if reservation not in RESERVATIONS:
        raise ValueError(f"reservation must be one of {RESERVATIONS}, got {reservation!r}")
    if prompt + output > longest:
        raise ValueError(
            f"the longest sequence has {longest} tokens; this one has {prompt} + {output}"
        )
    if reservation == "max":
        return longest
    if reservation == "pow2":
        output = 1 << (output - 1).bit_length()
    return min(prompt + output - 1, longest)


class BuddyPool:
    """Slots in pieces of a power of two, each at a multiple of its size.

    Where the number of slots is no power of two, it is cut into such pieces, the largest first.
    """

    def __init__(self, num_slots: int) -> None:
        self.reference_counts = [0] * num_slots  # 1 where a piece is taken
        self.free: dict[int, set[int]] = {}  # where the free pieces of each size start
        start = 0
        for exponent in reversed(range(num_slots.bit_length())):
            self.free[1 << exponent] = set()
            if num_slots >> exponent & 1:
                self.free[1 << exponent].add(start)
                start += 1 << exponent

    def take(self, size: int) -> int:
        """Take a piece of a power of two; returns where it starts."""
        large = size
        while large in self.free and not self.free[large]:
            large *= 2
        if large not in self.free:
            raise NoFreeBlocks(f"no piece of {size} slots is free")
        start = min(self.free[large])  # the first that fits
        self.free[large].remove(start)
        while large > size:
            large //= 2
            self.free[large].add(start + large)
        self.reference_counts[start : start + size] = [1] * size
        return start

    def release(self, start: int, size: int) -> None:
        """Give a piece back; with its free neighbour of the same size it becomes one, and so on."""
        self.reference_counts[start : start + size] = [0] * size
        while (buddy := start ^ size) in self.free[size]:
            self.free[size].remove(buddy)
            start, size = min(start, buddy), 2 * size
        self.free[size].add(start)


@dataclass(eq=False)
class Piece:
    """Where one sequence's keys and values are, and how far they reach."""

    pool: BuddyPool
    blocks: list[int]  # the piece's first slot; empty until a dropped sibling leaves one
    length: int
    request: "Reservation"


@dataclass(eq=False)
class Reservation:
    """What a request was promised: a piece for each of its sequences, until the last of them ends."""

    asked: int  # slots a sequence may fill
    pieces: int
    starts: list[int] = field(default_factory=list)
    spare: deque[int] = field(default_factory=deque)  # pieces that no sequence holds
    members: list[Piece] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Slots of a piece: what was asked for, rounded up to a power of two."""
        return 1 << (self.asked - 1).bit_length()


class ContiguousAllocator:
    """Gives every sequence one piece of memory, reserved before its request starts."""

    block_size = 1
    spare = 0

    def __init__(self, num_slots: int) -> None:
        if not isinstance(num_slots, int) or num_slots < 1:
            raise ValueError(f"num_slots must be a whole number, at least 1; got {num_slots!r}")
        self.gpu = BuddyPool(num_slots)
        self.tables: dict[int, Piece] = {}
        self._promised: dict[int, Reservation] = {}

    def blocks_for(self, length: int) -> int:
        return length

    def promise(self, sequence: int, asked: int, pieces: int = 1) -> None:
        """Say how many slots a new sequence will ask for, and how many siblings it will become."""
        self._promised[sequence] = Reservation(asked, pieces)

    def allocate(
        self, sequence: int, tokens: Sequence[int], *, salt: bytes = b"", spare: int = 0
    ) -> int:
        """Reserve what was promised, for all siblings to come; returns 0, as nothing is found again."""
        request = self._promised[sequence]
        starts = []
        try:
            for _ in range(request.pieces):
                starts.append(self.gpu.take(request.size))
        except NoFreeBlocks:
            for start in starts:
                self.gpu.release(start, request.size)
            raise
        del self._promised[sequence]
        request.starts, request.spare = starts, deque(starts)
        self._add(sequence, request, len(tokens))
        return 0

    def append(self, sequences: Iterable[int]) -> list[Copy]:
        """Give each sequence one more slot of its own piece: there is nothing to copy."""
        for sequence in sequences:
            piece = self.tables[sequence]
            if piece.length == piece.request.asked:
                raise ValueError(
                    f"sequence {sequence} has filled the {piece.length} slots it asked for"
                )
            piece.length += 1
        return []

    def fork(self, parent: int, child: int) -> None:
        """Start a new sequence as a copy of another, in a piece of its own."""
        self._add(child, self.tables[parent].request, self.tables[parent].length)

    def commit(self, sequence: int, tokens: Sequence[int], computed: int) -> None:
        """Nothing can be shared, so there is nothing to take note of."""

    def free(self, sequence: int) -> None:
        """Leave a sequence's piece to a sibling that has none; the last one gives all pieces back."""
        piece = self.tables.pop(sequence)
        request = piece.request
        request.members.remove(piece)
        homeless = [member for member in request.members if not member.blocks]
        if homeless:
            homeless[0].blocks = piece.blocks
        else:
            request.spare.extend(piece.blocks)
        if not request.members:
            for start in request.starts:
                self.gpu.release(start, request.size)

    def slots(self, sequence: int, start: int, stop: int) -> list[int]:
        """The slots of tokens ``start`` to ``stop``."""
        (first,) = self.tables[sequence].blocks
        return list(range(first + start, first + stop))

    def _add(self, sequence: int, request: Reservation, length: int) -> None:
        blocks = [request.spare.popleft()] if request.spare else []
        piece = Piece(self.gpu, blocks, length, request)
        request.members.append(piece)
        self.tables[sequence] = piece
