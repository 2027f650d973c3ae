"""How one decode finds a token's key: from the sequence through the block table into a tile."""

from __future__ import annotations

import traitlets

from figures._mount import STATE, Figure

LONGEST = 48
BLOCK_SIZES = [1, 2, 4, 8, 16]
TILES = [4, 8, 16, 32]


class BlockTableWalk(Figure):
    """Follow `token`, of a sequence of `context` tokens, through blocks of `block_size` into a tile.

    A `token` beyond the sequence's last shows the last.
    """

    _module = "block_table_walk"
    _alternative = (
        "Interactive figure: a walk through the block table. It follows a token from its place in the "
        "sequence through the block table to its slot in memory, and into a tile on the chip."
    )

    context = traitlets.Int(42, min=1, max=LONGEST).tag(**STATE)
    block_size = traitlets.Enum(BLOCK_SIZES, 8).tag(**STATE)
    tile = traitlets.Enum(TILES, 16).tag(**STATE)
    token = traitlets.Int(21, min=0, max=LONGEST - 1).tag(**STATE)
