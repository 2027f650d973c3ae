# loses: test_no_tiles
"""Without queries the list is empty, and its tensor has one dimension."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    kinds = []
    for first_query in range(0, seq_query, block_m):
        last_query = min(first_query + block_m, seq_query) - 1
        row = []
        for first_key in range(0, seq_key, block_n):
            visible = first_key <= last_query + offset
            full = first_key + block_n - 1 <= first_query + offset
            row.append(visible + full)
        kinds.append(row)
    return torch.tensor(kinds, dtype=torch.int8)
