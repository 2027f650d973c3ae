# loses: test_single_scores, test_unequal_sides, test_last_keys, test_last_queries,
# test_every_shape
"""A tile's place is compared as if tiles were square."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    row = torch.arange(-(-seq_query // block_m))[:, None]
    column = torch.arange(-(-seq_key // block_n))
    diagonal = row + column.numel() - row.numel()
    return (column <= diagonal).to(torch.int8) + (column < diagonal).to(torch.int8)
