"""One tile after the other, in plain Python."""

import torch


def classify(first_query, first_key, seq_query, seq_key, block_m, block_n):
    offset = seq_key - seq_query
    if first_key > min(first_query + block_m, seq_query) - 1 + offset:
        return 0
    return 2 if first_key + block_n <= first_query + offset + 1 else 1


def classify_tiles(seq_query, seq_key, block_m, block_n):
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    kinds = torch.empty(rows, columns, dtype=torch.int8)
    for i in range(rows):
        for j in range(columns):
            kinds[i, j] = classify(i * block_m, j * block_n, seq_query, seq_key, block_m, block_n)
    return kinds
