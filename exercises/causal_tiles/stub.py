"""Classify the tiles of a causal mask: the file to write your solution in."""

import torch


def classify_tiles(seq_query: int, seq_key: int, block_m: int, block_n: int) -> torch.Tensor:
    """Tell for every tile of the scores how much of it a causal mask leaves visible.

    Args:
        seq_query, seq_key: how many queries and keys there are; the last query sees the last key.
        block_m, block_n: queries and keys of a tile.

    Returns:
        int8, one element a tile: 0 hidden, 1 partly visible, 2 full.
    """
    # Your turn: tell the kind of every tile: a row for each tile of queries, a column for each of keys.
    raise NotImplementedError("classify_tiles is not written yet")
