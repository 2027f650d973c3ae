"""What the allocator's blocks hold, without tensors: a slot holds a digest of all tokens up to its own.

Keys and values depend on a token and all before it, and so does the digest: a wrong copy, a write to a
block that another sequence reads, or a prefix taken for another one shows as a wrong digest.
"""

from serving.allocator import Allocator, BlockPool, Copy


def digest(before: int, token: int) -> int:
    return hash((before, token))


class Memory:
    """The slots of both memories, and the engine's work on them."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.size = allocator.block_size
        self.gpu: dict[int, int] = {}
        self.cpu: dict[int, int] = {}

    def copy(self, copies: list[Copy], source: dict[int, int], target: dict[int, int]) -> None:
        for copy in copies:
            for offset in range(self.size):
                target.pop(copy.target * self.size + offset, None)
                if (value := source.get(copy.source * self.size + offset)) is not None:
                    target[copy.target * self.size + offset] = value

    def write(self, block_table: list[int], slots: list[int], tokens: list[int], start: int) -> int:
        """Compute tokens from position ``start`` on; returns the digest of them and all before."""
        before = self._read(block_table, start - 1) if start else 0
        for position, (slot, token) in enumerate(zip(slots, tokens, strict=True), start):
            block = slot // self.size
            assert block_table[position // self.size] == block
            assert self.allocator.gpu.reference_counts[block] == 1, "a write to a shared block"
            assert block not in self.allocator.gpu.hash_of, "a write to a published block"
            self.gpu[slot] = before = digest(before, token)
        return before

    def check(self, block_table: list[int], tokens: list[int], memory: dict[int, int]) -> None:
        """All tokens' slots hold what was computed for them."""
        before = 0
        for position, token in enumerate(tokens):
            before = digest(before, token)
            slot = block_table[position // self.size] * self.size + position % self.size
            assert memory[slot] == before, (
                f"position {position} holds another one's keys and values"
            )

    def _read(self, block_table: list[int], position: int) -> int:
        return self.gpu[block_table[position // self.size] * self.size + position % self.size]


def check_pools(allocator: Allocator) -> None:
    """No block is lost, held by nobody, or counted wrongly; what is findable is what is named."""
    for pool in (allocator.gpu, allocator.cpu):
        held = [0] * len(pool.reference_counts)
        for table in allocator.tables.values():
            if table.pool is pool:
                assert len(table.blocks) == allocator.blocks_for(table.length)
                for block in table.blocks:
                    held[block] += 1
        assert pool.reference_counts == held
        assert set(pool.free) == {block for block, count in enumerate(held) if count == 0}
        assert {block: content for content, block in pool.block_of.items()} == pool.hash_of


def state(allocator: Allocator) -> tuple:
    """All that an operation which failed must leave as it was (but for the order of free blocks)."""

    def of(pool: BlockPool) -> tuple:
        return [*pool.reference_counts], {*pool.free}, {**pool.block_of}, {**pool.hash_of}

    tables = {
        number: (table.pool is allocator.gpu, [*table.blocks], table.length, [*table.hashes])
        for number, table in allocator.tables.items()
    }
    return of(allocator.gpu), of(allocator.cpu), tables
