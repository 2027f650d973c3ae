# loses: test_long_sequences
"""The definition, which looks at every element."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    visible = torch.zeros(seq_query, columns * block_n, dtype=torch.bool)
    visible[:, :seq_key] = torch.ones(seq_query, seq_key, dtype=torch.bool).tril(
        seq_key - seq_query
    )
    kinds = torch.empty(rows, columns, dtype=torch.int8)
    for i in range(rows):
        for j in range(columns):
            queries = slice(i * block_m, (i + 1) * block_m)
            tile = visible[queries, j * block_n : (j + 1) * block_n]
            kinds[i, j] = int(tile.any()) + int(tile.all())
    return kinds
