# loses: test_single_scores, test_unequal_sides, test_every_shape
"""Queries are cut into block_n, and keys into block_m."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    first_query = torch.arange(0, seq_query, block_n)[:, None]
    last_query = (first_query + block_n).clamp(max=seq_query) - 1
    first_key = torch.arange(0, seq_key, block_m)
    last_key = first_key + block_m - 1
    visible = first_key <= last_query + offset
    full = last_key <= first_query + offset
    return visible.to(torch.int8) + full.to(torch.int8)
