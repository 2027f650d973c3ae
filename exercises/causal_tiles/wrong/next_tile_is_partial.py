# loses: test_square, test_single_scores, test_unequal_sides, test_more_keys, test_more_queries,
# test_every_shape, test_long_sequences
"""A block's end, one past its last query, is taken for the last query."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    first_query = torch.arange(0, seq_query, block_m)[:, None]
    last_query = (first_query + block_m).clamp(max=seq_query)
    first_key = torch.arange(0, seq_key, block_n)
    last_key = first_key + block_n - 1
    visible = first_key <= last_query + offset
    full = last_key <= first_query + offset
    return visible.to(torch.int8) + full.to(torch.int8)
