"""The figure's slots against the allocator's own, and its tiles against what a kernel would gather."""

import itertools

import pytest

from figures import block_table_walk
from figures.block_table_walk import BlockTableWalk
from serving.allocator import Allocator, BlockTable

SLOTS, KV_HEADS, HEAD_DIM = 96, 8, 128


def expected(options):
    """What the figure must find, from the allocator that has the same block table."""
    context, size, tile = options["context"], options["block_size"], options["tile"]
    token = min(options["token"], context - 1)
    blocks = [(5 * logical + 3) % (SLOTS // size) for logical in range(-(-context // size))]
    allocator = Allocator(SLOTS // size, block_size=size)
    allocator.tables[0] = BlockTable(allocator.gpu, blocks, context, b"")
    slots = allocator.slots(0, 0, context)
    first = token // tile * tile
    gathered = slots[first : first + tile]
    return {
        "table": blocks,
        "token": token,
        "rows": [{"token": first + row, "slot": slot} for row, slot in enumerate(gathered)]
        + [None] * (tile - len(gathered)),
        "logical": token // size,
        "offset": token % size,
        "physical": blocks[token // size],
        "slot": slots[token],
        "bytes": slots[token] * KV_HEADS * HEAD_DIM * 2,
        "tileNumber": token // tile,
        "row": token % tile,
        "tiles": -(-context // tile),
        "blocks": [*dict.fromkeys(slot // size for slot in gathered)],
        "pieces": 1 + sum(b != a + 1 for a, b in itertools.pairwise(gathered)),
    }


def every_case():
    return [
        {"context": context, "block_size": size, "tile": tile, "token": token}
        for context in (1, 2, 17, 32, 47, 48)
        for size in block_table_walk.BLOCK_SIZES
        for tile in block_table_walk.TILES
        for token in sorted({0, context // 3, context - 1, 47})
    ]


def test_every_token_is_in_the_allocators_slot(in_node):
    cases = every_case()
    answers = in_node("block_table_walk", "data.map((options) => figure.walk(options))", cases)
    for options, answer in zip(cases, answers, strict=True):
        assert answer == expected(options), options


@pytest.mark.parametrize("size", block_table_walk.BLOCK_SIZES)
def test_no_block_is_in_the_table_twice(in_node, size):
    table = in_node(
        "block_table_walk", "figure.blockTable(data)", {"context": 48, "block_size": size}
    )
    assert len(set(table)) == len(table) == 48 // size
    assert max(table) < SLOTS // size
    # Not in order, or there would be nothing to look up.
    assert size == 16 or table != sorted(table)


def test_the_values_it_offers_are_the_ones_it_takes(in_node):
    offered = in_node(
        "block_table_walk",
        "[figure.LONGEST, figure.BLOCK_SIZES, figure.TILES, figure.SLOTS, figure.KV_HEADS,"
        " figure.HEAD_DIM]",
    )
    longest = BlockTableWalk.class_traits()["context"].max
    assert offered == [
        longest,
        block_table_walk.BLOCK_SIZES,
        block_table_walk.TILES,
        SLOTS,
        KV_HEADS,
        HEAD_DIM,
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, "context.*1.*0"),
        ({"context": 49}, "context.*48.*49"),
        ({"block_size": 3}, "block_size.*1, 2.*3"),
        ({"tile": 64}, "tile.*4, 8.*64"),
        ({"token": 48}, "token.*47.*48"),
        ({"page": 4}, "no option 'page'.*block_size"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        BlockTableWalk(**options)
    assert "\n" not in str(caught.value)
