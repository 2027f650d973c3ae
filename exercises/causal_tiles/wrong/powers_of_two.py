# loses: test_every_shape
"""Positions are divided by shifting, as if all sides were powers of two."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    shift = block_n.bit_length() - 1
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    kinds = torch.zeros(rows, columns, dtype=torch.int8)
    for i, row in enumerate(kinds):
        first_sees = i * block_m + seq_key - seq_query
        last_sees = min((i + 1) * block_m, seq_query) - 1 + seq_key - seq_query
        row[: max(0, (last_sees >> shift) + 1)] = 1
        row[: max(0, first_sees + 1 >> shift)] = 2
    return kinds
