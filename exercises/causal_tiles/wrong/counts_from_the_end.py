# loses: test_more_queries, test_every_shape
"""A negative number of visible tiles is taken by the slice as counted from the end."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    kinds = torch.zeros(rows, columns, dtype=torch.int8)
    for i, row in enumerate(kinds):
        last_sees = min((i + 1) * block_m, seq_query) - 1 + offset
        row[: last_sees // block_n + 1] = 1
        row[: (i * block_m + offset + 1) // block_n] = 2
    return kinds
