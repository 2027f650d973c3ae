"""The tiles of a causally masked matrix of scores: hidden, partial or full, told from two corners."""

import torch


def classify_tiles(seq_query: int, seq_key: int, block_m: int, block_n: int) -> torch.Tensor:
    """Tell for every tile of the scores how much of it a causal mask leaves visible.

    Args:
        seq_query, seq_key: how many queries and keys there are; the last query sees the last key.
        block_m, block_n: queries and keys of a tile.

    Returns:
        int8, one element a tile: 0 hidden, 1 partly visible, 2 full.
    """
    ### BEGIN SOLUTION
    ### tell the kind of every tile: a row for each tile of queries, a column for each of keys.
    offset = seq_key - seq_query  # query r sees the keys up to r + offset
    first_query = torch.arange(0, seq_query, block_m)[:, None]
    last_query = (first_query + block_m).clamp(max=seq_query) - 1
    first_key = torch.arange(0, seq_key, block_n)[None, :]
    last_key = first_key + block_n - 1

    # The last query sees the most and the first key is seen by the most: the tile's lower left corner.
    visible = first_key <= last_query + offset
    # And the upper right corner is the last to become visible. No query sees keys past the end, so a
    # tile that reaches there is never full.
    full = last_key <= first_query + offset
    return visible.to(torch.int8) + full.to(torch.int8)
    ### END SOLUTION
