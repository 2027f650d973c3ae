"""Contiguous memory: pieces never overlap, none is lost, and requests get what was promised."""

from random import Random

import pytest

from serving.allocator import NoFreeBlocks
from serving.contiguous import BuddyPool, ContiguousAllocator, reserved_slots


@pytest.mark.parametrize(
    ("reservation", "slots"), [("max", 2048), ("pow2", 160 + 32 - 1), ("oracle", 160 + 25 - 1)]
)
def test_what_each_baseline_reserves(reservation, slots):
    # The paper's example: an output of 25 tokens is taken for one of 32.
    assert reserved_slots(reservation, 160, 25, 2048) == slots


def test_a_power_of_two_is_not_rounded_up():
    assert reserved_slots("pow2", 10, 32, 2048) == 10 + 32 - 1
    assert reserved_slots("pow2", 10, 1, 2048) == 10


def test_nobody_reserves_more_than_the_longest_sequence():
    assert reserved_slots("pow2", 1000, 1030, 2048) == 2048


def free_pieces(pool):
    return sorted((start, size) for size, starts in pool.free.items() for start in starts)


@pytest.mark.parametrize("slots", [1, 7, 64, 1000, 15728])
def test_all_slots_are_free_at_first_in_aligned_pieces(slots):
    pool = BuddyPool(slots)
    pieces = free_pieces(pool)
    end = 0
    for start, size in pieces:
        assert start == end and start % size == 0
        end = start + size
    assert end == slots
    assert [size for _, size in pieces] == sorted({size for _, size in pieces}, reverse=True)


@pytest.mark.parametrize("slots", [64, 1000])
def test_random_pieces_never_overlap_and_come_back_whole(slots):
    random = Random(slots)
    pool, taken = BuddyPool(slots), {}
    before = free_pieces(pool)
    refused = 0
    for _ in range(3000):
        if random.random() < 0.55:
            size = 1 << random.randrange(7)
            state = free_pieces(pool)
            try:
                start = pool.take(size)
            except NoFreeBlocks:
                refused += 1
                assert free_pieces(pool) == state
                assert all(piece < size for _, piece in state), "there was room"
                continue
            assert start % size == 0 and start + size <= slots and start not in taken
            taken[start] = size
        elif taken:
            start = random.choice([*taken])
            pool.release(start, taken.pop(start))
        covered = sorted([*taken.items(), *free_pieces(pool)])
        assert [start for start, _ in covered] == [0, *(s + size for s, size in covered[:-1])]
        assert sum(size for _, size in covered) == slots
        marks = [0] * slots
        for start, size in taken.items():
            marks[start : start + size] = [1] * size
        assert pool.reference_counts == marks
    assert refused > 20
    for start, size in taken.items():
        pool.release(start, size)
    assert free_pieces(pool) == before


def make(slots=64, asked=10, pieces=1, sequence=1, length=4):
    allocator = ContiguousAllocator(slots)
    allocator.promise(sequence, asked, pieces)
    allocator.allocate(sequence, [0] * length)
    return allocator


def test_a_sequence_grows_in_place_to_what_it_asked_for():
    allocator = make(asked=6, length=4)
    assert allocator.slots(1, 0, 4) == [0, 1, 2, 3]
    assert allocator.append([1]) == [] and allocator.append([1]) == []
    assert allocator.slots(1, 4, 6) == [4, 5]
    with pytest.raises(ValueError, match="sequence 1 has filled the 6 slots it asked for"):
        allocator.append([1])
    assert sum(allocator.gpu.reference_counts) == 8
    allocator.free(1)
    assert sum(allocator.gpu.reference_counts) == 0


def test_siblings_have_pieces_of_their_own_until_the_last_ends():
    allocator = make(pieces=3)
    assert sum(allocator.gpu.reference_counts) == 48
    allocator.fork(1, 2)
    allocator.fork(2, 3)
    assert sorted(allocator.tables[n].blocks[0] for n in (1, 2, 3)) == [0, 16, 32]
    assert {allocator.tables[n].length for n in (1, 2, 3)} == {4}
    allocator.free(2)
    allocator.free(1)
    assert sum(allocator.gpu.reference_counts) == 48, "a beam could fork again"
    allocator.fork(3, 4)
    assert len({allocator.tables[n].blocks[0] for n in (3, 4)}) == 2
    allocator.free(3)
    allocator.free(4)
    assert free_pieces(allocator.gpu) == [(0, 64)]


def test_a_beam_that_is_forked_before_another_is_dropped_gets_its_piece():
    allocator = make(pieces=2)
    allocator.fork(1, 2)
    allocator.fork(1, 3)  # as a scheduler does, before it drops 2
    assert allocator.tables[3].blocks == []
    left = allocator.tables[2].blocks
    allocator.free(2)
    assert allocator.tables[3].blocks == left != allocator.tables[1].blocks


def test_when_not_all_pieces_fit_none_is_taken():
    allocator = ContiguousAllocator(64)
    allocator.promise(1, 30, 3)
    with pytest.raises(NoFreeBlocks, match="no piece of 32 slots is free"):
        allocator.allocate(1, [0])
    assert free_pieces(allocator.gpu) == [(0, 64)] and not allocator.tables
    allocator.promise(2, 30, 2)
    assert allocator.allocate(2, [0]) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reserved_slots("guess", 1, 1, 8), "reservation must be one of.*got 'guess'"),
        (
            lambda: reserved_slots("max", 5, 4, 8),
            "longest sequence has 8 tokens; this one.*5 \\+ 4",
        ),
        (lambda: ContiguousAllocator(0), "num_slots must be a whole number.*got 0"),
    ],
)
def test_bad_numbers_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
