# loses: test_last_keys, test_last_queries, test_every_shape
"""Only whole tiles are counted."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    rows, columns = seq_query // block_m, seq_key // block_n
    kinds = torch.zeros(rows, columns, dtype=torch.int8)
    for i, row in enumerate(kinds):
        last_sees = min((i + 1) * block_m, seq_query) - 1 + offset
        row[: max(0, last_sees // block_n + 1)] = 1
        row[: max(0, i * block_m + offset + 1) // block_n] = 2
    return kinds
