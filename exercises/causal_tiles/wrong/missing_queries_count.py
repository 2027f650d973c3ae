# loses: test_last_keys, test_last_queries, test_every_shape, test_long_sequences
"""The elements of queries past the end count as hidden."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    visible = torch.zeros(rows * block_m, columns * block_n, dtype=torch.bool)
    mask = torch.ones(seq_query, seq_key, dtype=torch.bool).tril(seq_key - seq_query)
    visible[:seq_query, :seq_key] = mask
    tiles = visible.view(rows, block_m, columns, block_n).transpose(1, 2).flatten(2)
    return tiles.any(2).to(torch.int8) + tiles.all(2).to(torch.int8)
