"""How many tiles the first and the last query of a row of tiles see, wholly and at least in part."""

import torch


def classify_tiles(seq_query, seq_key, block_m, block_n):
    kinds = torch.zeros((seq_query + block_m - 1) // block_m, -(seq_key // -block_n)).char()
    for i, row in enumerate(kinds):
        first_sees = max(0, i * block_m + 1 + seq_key - seq_query)
        # Past the last query there is nothing more to see, and no tile either.
        last_sees = max(0, (i + 1) * block_m + seq_key - seq_query)
        row[: -(last_sees // -block_n)] = 1
        row[: first_sees // block_n] = 2
    return kinds
