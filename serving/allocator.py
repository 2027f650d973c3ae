"""Paged memory for keys and values: which physical block holds which part of which sequence.

A sequence sees its keys and values as logical blocks 0, 1, 2, ... of ``block_size`` tokens. Its block
table says which physical block holds each of them, so that any free block will do and at most the last
one is partly empty. Token ``p`` lives in slot ``table[p // block_size] * block_size + p % block_size``.

Sequences share blocks, and a reference count says how many do. A full block never changes, so sharing
it is free; it is found again by a hash of everything it depends on: its tokens, all tokens before them,
and a salt. A shared block that is not full is copied before it is written (copy-on-write).

The allocator only decides. It returns the copies that must be carried out before the next write, and
never touches a tensor. Every operation happens whole or, when blocks run out, not at all.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", section 4. Finding blocks by hash came later, in vLLM's automatic prefix caching.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class NoFreeBlocks(RuntimeError):
    """More blocks were asked for than are free; nothing was changed."""


class Copy(NamedTuple):
    """Copy the keys and values of one physical block to another."""

    source: int
    target: int


class BlockPool:
    """The physical blocks of one memory, numbered from 0.

    A block without references is free. It keeps its content, and can be found by it, until it is taken
    for another one: blocks that nobody can find go first, then those that were used least recently.
    """

    def __init__(self, num_blocks: int) -> None:
        self.reference_counts = [0] * num_blocks
        self.free = OrderedDict.fromkeys(range(num_blocks))  # in the order they will be taken
        self.block_of: dict[bytes, int] = {}  # by hash of the content
        self.hash_of: dict[int, bytes] = {}

    def take(self, count: int, spare: int = 0) -> list[int]:
        """Take ``count`` free blocks for new content, if ``spare`` more stay free."""
        if count + spare > len(self.free):
            raise NoFreeBlocks(
                f"{count} blocks and {spare} to spare, but {len(self.free)} are free"
            )
        taken = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.reference_counts[block] = 1
            if block in self.hash_of:
                del self.block_of[self.hash_of.pop(block)]
        return taken

    def share(self, block: int) -> None:
        """Add a reference to a block, free or not, whose content stays."""
        self.free.pop(block, None)
        self.reference_counts[block] += 1

    def release(self, block: int) -> None:
        """Give back one reference."""
        if self.reference_counts[block] == 0:
            raise ValueError(f"block {block} is already free")
        self.reference_counts[block] -= 1
        if self.reference_counts[block] == 0:
            self.free[block] = None
            self.free.move_to_end(block, last=block in self.hash_of)

    def publish(self, block: int, content: bytes) -> int:
        """Make a full block findable by the hash of its content.

        Returns the block to use from now on: if another holds the same content, that one, and the
        reference moves to it.
        """
        known = self.block_of.setdefault(content, block)
        if known == block:
            self.hash_of[block] = content
        else:
            self.share(known)
            self.release(block)
        return known


@dataclass
class BlockTable:
    """Where one sequence's keys and values are."""

    pool: BlockPool
    blocks: list[int]
    length: int  # slots in use
    salt: bytes
    hashes: list[bytes] = field(default_factory=list)  # of its first blocks, as far as published


class Allocator:
    """Gives sequences, named by a number, blocks of the GPU's memory and of the CPU's, for swapping.

    Args:
        gpu_blocks, cpu_blocks: physical blocks in each memory.
        block_size: tokens a block.
        watermark: the part of the GPU's blocks that ``spare`` stands for, kept free for the sequences
            that already run, so that a newcomer does not push one out at once.
    """

    def __init__(
        self, gpu_blocks: int, cpu_blocks: int = 0, *, block_size: int = 16, watermark: float = 0.01
    ) -> None:
        for name, number, least in (
            ("gpu_blocks", gpu_blocks, 1),
            ("cpu_blocks", cpu_blocks, 0),
            ("block_size", block_size, 1),
        ):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number, at least {least}; got {number!r}")
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be at least 0 and below 1, got {watermark!r}")
        self.gpu, self.cpu = BlockPool(gpu_blocks), BlockPool(cpu_blocks)
        self.block_size = block_size
        self.spare = round(watermark * gpu_blocks)
        self.tables: dict[int, BlockTable] = {}

    def blocks_for(self, length: int) -> int:
        """How many blocks hold ``length`` tokens."""
        return -(-length // self.block_size)

    def allocate(
        self, sequence: int, tokens: Sequence[int], *, salt: bytes = b"", spare: int = 0
    ) -> int:
        """Give a new sequence slots for all of its tokens, on the GPU.

        Returns how many of the first tokens need no computing, because blocks that hold their keys and
        values were found. The last token is never among them: computing it gives the next one.
        """
        if sequence in self.tables:
            raise ValueError(f"sequence {sequence} already has a block table")
        if not tokens:
            raise ValueError(f"sequence {sequence} has no tokens: there is nothing to allocate for")
        table = BlockTable(self.gpu, [], len(tokens), salt)
        for logical in range((len(tokens) - 1) // self.block_size):
            content = self._content(table, tokens, logical)
            if content not in self.gpu.block_of:
                break
            table.hashes.append(content)
            table.blocks.append(self.gpu.block_of[content])
        found = len(table.blocks)
        for block in table.blocks:  # before others are taken, which could be these
            self.gpu.share(block)
        try:
            table.blocks += self.gpu.take(self.blocks_for(len(tokens)) - found, spare)
        except NoFreeBlocks:
            self._release(table)
            raise
        self.tables[sequence] = table
        return found * self.block_size

    def append(self, sequences: Iterable[int]) -> list[Copy]:
        """Give each sequence one more slot; returns the copies to carry out before it is written."""
        tables = [self._on_gpu(sequence) for sequence in sequences]
        holders = {t.blocks[-1]: self.gpu.reference_counts[t.blocks[-1]] for t in tables}
        copy_first = []  # of those that share a block, the last to write may write into it
        for table in tables:
            shared = table.length % self.block_size != 0 and holders[table.blocks[-1]] > 1
            holders[table.blocks[-1]] -= shared
            copy_first.append(shared)
        full = [table.length % self.block_size == 0 for table in tables]
        fresh = iter(self.gpu.take(sum(copy_first) + sum(full)))
        copies = []
        for table, shared, is_full in zip(tables, copy_first, full, strict=True):
            if is_full:
                table.blocks.append(next(fresh))
            elif shared:
                copies.append(Copy(table.blocks[-1], next(fresh)))
                self.gpu.release(table.blocks[-1])
                table.blocks[-1] = copies[-1].target
            table.length += 1
        return copies

    def fork(self, parent: int, child: int) -> None:
        """Let a new sequence start as a copy of another: it shares all its blocks."""
        if child in self.tables:
            raise ValueError(f"sequence {child} already has a block table")
        table = self._on_gpu(parent)
        for block in table.blocks:
            self.gpu.share(block)
        self.tables[child] = BlockTable(
            table.pool, [*table.blocks], table.length, table.salt, [*table.hashes]
        )

    def commit(self, sequence: int, tokens: Sequence[int], computed: int) -> None:
        """Take note that the keys and values of the first ``computed`` tokens are now in memory.

        Full blocks among them can be shared from now on.
        """
        table = self._on_gpu(sequence)
        for logical in range(len(table.hashes), computed // self.block_size):
            content = self._content(table, tokens, logical)
            table.hashes.append(content)
            table.blocks[logical] = self.gpu.publish(table.blocks[logical], content)

    def free(self, sequence: int) -> None:
        """Give back a sequence's blocks, whichever memory they are in."""
        self._release(self._table(sequence))
        del self.tables[sequence]

    def swap_out(self, sequences: Iterable[int]) -> list[Copy]:
        """Move sequences to the CPU; returns the copies, from GPU blocks to CPU blocks."""
        return self._move([self._on_gpu(sequence) for sequence in sequences], self.cpu, 0)

    def swap_in(self, sequences: Iterable[int], *, spare: int = 0) -> list[Copy]:
        """Move sequences back to the GPU; returns the copies, from CPU blocks to GPU blocks."""
        tables = [self._table(sequence) for sequence in sequences]
        if any(table.pool is self.gpu for table in tables):
            raise ValueError("a sequence to swap in is already on the GPU")
        return self._move(tables, self.gpu, spare)

    def slots(self, sequence: int, start: int, stop: int) -> list[int]:
        """The slots of tokens ``start`` to ``stop``, one number a token."""
        blocks, size = self._on_gpu(sequence).blocks, self.block_size
        return [blocks[p // size] * size + p % size for p in range(start, stop)]

    def _move(self, tables: list[BlockTable], target: BlockPool, spare: int) -> list[Copy]:
        moved = dict.fromkeys(block for table in tables for block in table.blocks)
        moved = dict(zip(moved, target.take(len(moved), spare), strict=True))
        for table in tables:
            self._release(table)
            table.pool, table.blocks = target, [moved[block] for block in table.blocks]
            table.hashes = []  # the new blocks have not been published
            for block in table.blocks:
                target.share(block)
        for block in moved.values():  # the tables hold them now
            target.release(block)
        return [Copy(*pair) for pair in moved.items()]

    def _release(self, table: BlockTable) -> None:
        # From the end: a block is of use only after those before it, so it should be evicted first.
        for block in reversed(table.blocks):
            table.pool.release(block)

    def _content(self, table: BlockTable, tokens: Sequence[int], logical: int) -> bytes:
        before = table.hashes[logical - 1] if logical else hashlib.sha256(table.salt).digest()
        start = logical * self.block_size
        own = array("q", tokens[start : start + self.block_size]).tobytes()
        return hashlib.sha256(before + own).digest()

    def _table(self, sequence: int) -> BlockTable:
        if sequence not in self.tables:
            raise KeyError(f"sequence {sequence} has no block table")
        return self.tables[sequence]

    def _on_gpu(self, sequence: int) -> BlockTable:
        table = self._table(sequence)
        if table.pool is not self.gpu:
            raise ValueError(f"sequence {sequence} is swapped out: swap it in first")
        return table
