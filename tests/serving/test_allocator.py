"""Blocks are shared, copied, found and evicted as the allocator says, and never lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from serving.allocator import Allocator, BlockPool, Copy, NoFreeBlocks
from tests.serving.memory import Memory, check_pools, state


def written(allocator: Allocator, sequence: int, tokens: list[int]) -> int:
    """Allocate a sequence and take its tokens as computed; returns how many were found."""
    found = allocator.allocate(sequence, tokens)
    allocator.commit(sequence, tokens, len(tokens))
    return found


def test_a_sequence_gets_the_blocks_its_tokens_need():
    allocator = Allocator(8, block_size=4)
    assert allocator.allocate(0, [*range(9)]) == 0
    assert allocator.tables[0].blocks == [0, 1, 2]
    assert allocator.slots(0, 3, 9) == [3, 4, 5, 6, 7, 8]
    assert len(allocator.gpu.free) == 5


def test_appending_fills_the_last_block_before_it_takes_another():
    allocator = Allocator(8, block_size=2)
    allocator.allocate(0, [7])
    assert allocator.append([0]) == []
    assert allocator.tables[0].blocks == [0]
    assert allocator.append([0]) == []
    assert allocator.tables[0].blocks == [0, 1]


def test_a_fork_copies_the_last_block_on_write_and_the_last_holder_does_not():
    allocator = Allocator(8, block_size=4)
    allocator.allocate(0, [*range(6)])
    allocator.fork(0, 1)
    allocator.fork(0, 2)
    assert allocator.gpu.reference_counts[:2] == [3, 3]
    assert allocator.append([0, 1, 2]) == [Copy(1, 2), Copy(1, 3)]
    assert [allocator.tables[number].blocks for number in range(3)] == [[0, 2], [0, 3], [0, 1]]
    assert allocator.append([0, 1, 2]) == []


def test_a_fork_at_the_end_of_a_block_copies_nothing():
    allocator = Allocator(8, block_size=4)
    allocator.allocate(0, [*range(4)])
    allocator.fork(0, 1)
    assert allocator.append([0, 1]) == []
    assert [allocator.tables[number].blocks for number in range(2)] == [[0, 1], [0, 2]]


def test_a_prefix_is_found_once_it_was_computed_and_only_in_full_blocks():
    allocator = Allocator(8, block_size=4)
    prompt = [*range(10)]
    allocator.allocate(0, prompt)
    assert allocator.allocate(1, prompt) == 0
    allocator.commit(0, prompt, 7)
    assert allocator.allocate(2, prompt) == 4
    assert allocator.tables[2].blocks[0] == allocator.tables[0].blocks[0]


def test_the_last_token_is_always_left_to_compute():
    allocator = Allocator(8, block_size=4)
    assert written(allocator, 0, [*range(8)]) == 0
    assert allocator.allocate(1, [*range(8)]) == 4
    assert allocator.allocate(2, [*range(9)]) == 8


def test_equal_tokens_after_another_beginning_or_with_another_salt_are_not_the_same():
    allocator = Allocator(16, block_size=2)
    written(allocator, 0, [1, 2, 3, 4, 5])
    assert allocator.allocate(1, [9, 2, 3, 4, 5]) == 0
    assert allocator.allocate(2, [3, 4, 5]) == 0
    assert allocator.allocate(3, [1, 2, 3, 4, 5], salt=b"other") == 0
    assert allocator.allocate(4, [1, 2, 3, 4, 5]) == 4


def test_two_blocks_with_the_same_content_become_one():
    allocator = Allocator(8, block_size=2)
    prompt = [1, 2, 3]
    allocator.allocate(0, prompt)
    allocator.allocate(1, prompt)
    allocator.commit(0, prompt, 3)
    allocator.commit(1, prompt, 3)
    assert allocator.tables[0].blocks == [0, 1]
    assert allocator.tables[1].blocks == [0, 3]
    assert 2 in allocator.gpu.free


def test_freed_blocks_are_found_until_they_are_evicted_least_recently_used_first():
    allocator = Allocator(4, block_size=2)
    first, second = [1, 1, 1], [2, 2, 2]
    written(allocator, 0, first)
    written(allocator, 1, second)
    allocator.free(0)
    allocator.free(1)
    # Of the four, two hold full blocks. The others, which nobody can find, go first.
    allocator.allocate(2, [3, 3, 3])
    assert written(allocator, 3, first) == 2  # takes the block of `second` for its last token
    allocator.free(2)
    assert allocator.allocate(4, second) == 0


def test_of_a_freed_sequence_the_end_is_evicted_before_the_beginning():
    allocator = Allocator(3, block_size=2)
    written(allocator, 0, [1, 2, 3, 4, 5, 6])
    allocator.free(0)
    allocator.allocate(1, [9])
    assert allocator.allocate(2, [1, 2, 3, 4]) == 2
    assert allocator.tables[2].blocks[0] == 0


def test_swapping_moves_shared_blocks_once_and_back():
    allocator = Allocator(4, 4, block_size=2)
    allocator.allocate(0, [1, 2, 3])
    allocator.fork(0, 1)
    assert allocator.swap_out([0, 1]) == [Copy(0, 0), Copy(1, 1)]
    assert len(allocator.gpu.free) == 4
    assert allocator.cpu.reference_counts == [2, 2, 0, 0]
    copies = allocator.swap_in([0, 1])
    assert [copy.source for copy in copies] == [0, 1]
    assert allocator.tables[0].blocks == allocator.tables[1].blocks
    assert allocator.append([0, 1])[0].source == copies[1].target
    check_pools(allocator)


def test_a_prefix_is_found_again_after_its_holder_was_swapped_in():
    allocator = Allocator(4, 4, block_size=2)
    tokens = [1, 2, 3]
    written(allocator, 0, tokens)
    allocator.swap_out([0])
    allocator.allocate(1, [9] * 8)  # evicts what was left on the GPU
    allocator.free(1)
    allocator.swap_in([0])
    allocator.commit(0, tokens, 3)
    assert allocator.allocate(2, tokens) == 2
    assert allocator.tables[2].blocks[0] == allocator.tables[0].blocks[0]


def test_forks_that_went_different_ways_are_told_apart():
    allocator = Allocator(16, block_size=2)
    tokens = [[1, 2], [1, 2]]
    written(allocator, 0, tokens[0])
    allocator.fork(0, 1)
    for pair in [(3, 5), (4, 6), (7, 7), (8, 8)]:
        allocator.append([0, 1])
        for number, token in enumerate(pair):
            tokens[number].append(token)
            allocator.commit(number, tokens[number], len(tokens[number]))
    last = [allocator.tables[number].blocks[-1] for number in range(2)]
    assert last[0] != last[1]
    for number in range(2):
        assert allocator.allocate(2 + number, [*tokens[number], 0]) == 6
        assert allocator.tables[2 + number].blocks[2] == last[number]


@pytest.mark.parametrize(
    "operation",
    [
        lambda allocator: allocator.allocate(9, [1, 2, 3, 4, 5, 6, 7]),
        lambda allocator: allocator.allocate(9, [5], spare=2),
        lambda allocator: allocator.append([0, 1, 2]),
        lambda allocator: allocator.swap_out([0]),
        lambda allocator: allocator.swap_in([3], spare=2),
    ],
    ids=["allocate", "watermark", "append", "swap_out", "swap_in"],
)
def test_without_enough_blocks_nothing_changes(operation):
    allocator = Allocator(4, 2, block_size=2)
    written(allocator, 3, [8])
    allocator.swap_out([3])
    written(allocator, 0, [1, 2, 3])
    allocator.fork(0, 1)
    allocator.fork(0, 2)
    allocator.allocate(4, [6])
    before = state(allocator)
    with pytest.raises(NoFreeBlocks):
        operation(allocator)
    assert state(allocator) == before


def test_a_prefix_found_is_not_evicted_by_the_rest_of_the_same_prompt():
    allocator = Allocator(2, block_size=2)
    written(allocator, 0, [1, 2, 3])
    allocator.free(0)
    assert allocator.allocate(1, [1, 2, 3]) == 2
    assert len(set(allocator.tables[1].blocks)) == 2


def test_a_block_is_not_freed_twice():
    pool = BlockPool(1)
    (block,) = pool.take(1)
    pool.release(block)
    with pytest.raises(ValueError, match="block 0 is already free"):
        pool.release(block)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda a: a.allocate(0, [1]), "sequence 0 already has a block table"),
        (lambda a: a.allocate(9, []), "sequence 9 has no tokens"),
        (lambda a: a.fork(0, 1), "sequence 1 already has a block table"),
        (lambda a: a.free(5), "sequence 5 has no block table"),
        (lambda a: a.append([1]), "sequence 1 is swapped out"),
        (lambda a: a.swap_out([1]), "sequence 1 is swapped out"),
        (lambda a: a.slots(1, 0, 1), "sequence 1 is swapped out"),
        (lambda a: a.swap_in([0]), "already on the GPU"),
    ],
)
def test_misuse_is_told(operation, message):
    allocator = Allocator(4, 4)
    allocator.allocate(0, [1])
    allocator.allocate(1, [1])
    allocator.swap_out([1])
    with pytest.raises((ValueError, KeyError), match=message):
        operation(allocator)
    check_pools(allocator)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu_blocks": 0}, "gpu_blocks must be a whole number, at least 1; got 0"),
        ({"gpu_blocks": 4, "cpu_blocks": -1}, "cpu_blocks .* at least 0; got -1"),
        ({"gpu_blocks": 4, "block_size": 2.5}, "block_size .* got 2.5"),
        ({"gpu_blocks": 4, "watermark": 1.0}, "watermark must be at least 0 and below 1, got 1.0"),
    ],
)
def test_an_impossible_memory_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Allocator(**arguments)


class AllocatorMachine(RuleBasedStateMachine):
    """Sequences come, grow, fork, move and go in any order; each reads what it wrote."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(8, 5, block_size=2)
        self.memory = Memory(self.allocator)
        self.tokens: dict[int, list[int]] = {}
        self.number = 0

    def unless_full(self, operation, *arguments, **options):
        before = state(self.allocator)
        try:
            return operation(*arguments, **options)
        except NoFreeBlocks:
            assert state(self.allocator) == before
            return None

    def on_gpu(self, sequence: int) -> bool:
        return self.allocator.tables[sequence].pool is self.allocator.gpu

    def compute(self, sequence: int, start: int) -> None:
        tokens = self.tokens[sequence]
        slots = self.allocator.slots(sequence, start, len(tokens))
        self.memory.write(self.allocator.tables[sequence].blocks, slots, tokens[start:], start)
        self.allocator.commit(sequence, tokens, len(tokens))

    @rule(
        target=sequences,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        spare=st.integers(0, 2),
    )
    def allocate(self, tokens, spare):
        self.number += 1
        found = self.unless_full(self.allocator.allocate, self.number, tokens, spare=spare)
        if found is not None:
            assert len(self.allocator.gpu.free) >= spare
            self.tokens[self.number] = tokens
            self.compute(self.number, found)
        return self.number

    @rule(chosen=st.lists(sequences, unique=True, max_size=4), token=st.integers(0, 1))
    def append(self, chosen, token):
        chosen = [number for number in chosen if number in self.tokens and self.on_gpu(number)]
        copies = self.unless_full(self.allocator.append, chosen)
        if copies is not None:
            self.memory.copy(copies, self.memory.gpu, self.memory.gpu)
            for number in chosen:
                self.tokens[number].append(token)
                self.compute(number, len(self.tokens[number]) - 1)

    @rule(target=sequences, parent=sequences)
    def fork(self, parent):
        self.number += 1
        if parent in self.tokens and self.on_gpu(parent):
            self.allocator.fork(parent, self.number)
            self.tokens[self.number] = self.tokens[parent].copy()
        return self.number

    @rule(sequence=consumes(sequences))
    def free(self, sequence):
        if sequence in self.tokens:
            self.allocator.free(sequence)
            del self.tokens[sequence]

    @rule(chosen=st.lists(sequences, unique=True, max_size=4))
    def swap(self, chosen):
        chosen = [number for number in chosen if number in self.tokens]
        out = [number for number in chosen if self.on_gpu(number)]
        back = [number for number in chosen if not self.on_gpu(number)]
        copies = self.unless_full(self.allocator.swap_out, out)
        self.memory.copy(copies or [], self.memory.gpu, self.memory.cpu)
        copies = self.unless_full(self.allocator.swap_in, back)
        self.memory.copy(copies or [], self.memory.cpu, self.memory.gpu)

    @invariant()
    def nothing_is_lost(self):
        check_pools(self.allocator)
        assert self.allocator.tables.keys() == self.tokens.keys()

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        for number, tokens in self.tokens.items():
            memory = self.memory.gpu if self.on_gpu(number) else self.memory.cpu
            self.memory.check(self.allocator.tables[number].blocks, tokens, memory)

    def teardown(self):
        for number in self.tokens:
            self.allocator.free(number)
        assert len(self.allocator.gpu.free) == 8
        assert len(self.allocator.cpu.free) == 5


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
