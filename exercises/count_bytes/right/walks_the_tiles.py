"""Runs the loops and adds up row by row."""


def attention_bytes(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    query_tiles = [
        range(start, min(start + block_m, seq_query)) for start in range(0, seq_query, block_m)
    ]
    key_tiles = [
        range(start, min(start + block_n, seq_key)) for start in range(0, seq_key, block_n)
    ]
    row = head_dim * element
    state = 4 * (head_dim + 2)
    loaded = stored = 0
    if order == "keys":
        for number, keys in enumerate(key_tiles, start=1):
            loaded += 2 * row * len(keys)
            for queries in query_tiles:
                loaded += (row + state) * len(queries)
                if number < len(key_tiles):
                    stored += state * len(queries)
                else:
                    stored += (row + 4) * len(queries)
        return loaded, stored
    for queries in query_tiles:
        loaded += row * len(queries)
        stored += (row + 4) * len(queries)
        for keys in key_tiles:
            sees = any(keys.start <= query + seq_key - seq_query for query in queries)
            if sees or not causal:
                loaded += 2 * row * len(keys)
    return loaded, stored
