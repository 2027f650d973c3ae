# loses: test_single_scores, test_every_shape
"""A query is taken not to see the last key that it sees."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    first_query = torch.arange(0, seq_query, block_m)[:, None]
    last_query = (first_query + block_m).clamp(max=seq_query) - 1
    first_key = torch.arange(0, seq_key, block_n)
    last_key = first_key + block_n - 1
    visible = first_key < last_query + offset
    full = last_key < first_query + offset
    return visible.to(torch.int8) + full.to(torch.int8)
