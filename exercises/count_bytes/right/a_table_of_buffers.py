"""One entry a buffer: how many bytes it has, how often it is loaded, how often stored."""


def attention_bytes(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    tiles_of_keys = (seq_key + block_n - 1) // block_n
    tiles_of_queries = (seq_query + block_m - 1) // block_m
    queries = seq_query * head_dim * element
    keys = seq_key * head_dim * element
    column = 4 * seq_query
    if order == "keys":
        table = [
            (keys, 1, 0),  # K
            (keys, 1, 0),  # V
            (queries, tiles_of_keys, 0),  # Q
            (column * head_dim, tiles_of_keys, tiles_of_keys - 1),  # accumulator
            (column, tiles_of_keys, tiles_of_keys - 1),  # running maximum
            (column, tiles_of_keys, tiles_of_keys - 1),  # running sum
            (queries, 0, 1),  # output
            (column, 0, 1),  # logsumexp
        ]
    else:
        # Keys a tile of queries does not visit, for all of these tiles.
        skipped = 0
        if causal:
            for tile in range(tiles_of_queries - 1):  # the last tile sees the last key
                seen = (tile + 1) * block_m + seq_key - seq_query
                visited = max(0, -(-seen // block_n)) * block_n
                skipped += max(0, seq_key - visited)
        table = [
            (queries, 1, 0),
            (keys, 2 * tiles_of_queries, 0),
            (2 * skipped * head_dim * element, -1, 0),
            (queries, 0, 1),
            (column, 0, 1),
        ]
    loaded = sum(size * loads for size, loads, _ in table)
    stored = sum(size * stores for size, _, stores in table)
    return loaded, stored
