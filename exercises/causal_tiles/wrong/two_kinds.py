# loses: test_square, test_single_scores, test_unequal_sides, test_more_keys, test_more_queries,
# test_last_keys, test_last_queries, test_every_shape, test_long_sequences
"""Whatever is not hidden is called full."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    first_query = torch.arange(0, seq_query, block_m)[:, None]
    last_query = (first_query + block_m).clamp(max=seq_query) - 1
    first_key = torch.arange(0, seq_key, block_n)
    visible = first_key <= last_query + offset
    return visible.to(torch.int8) * 2
