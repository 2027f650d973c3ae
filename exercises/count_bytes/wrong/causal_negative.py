# loses: test_causal_lengths
"""Queries that see no key count as fewer than none."""


def attention_bytes(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    query_bytes = seq_query * head_dim * element
    statistic_bytes = seq_query * 4
    if order == "queries":
        keys_loaded = 0
        for start in range(0, seq_query, block_m):
            visible = seq_key
            if causal:
                last_query = min(start + block_m, seq_query) - 1
                visible = last_query + 1 + seq_key - seq_query
            keys_loaded += min(seq_key, -(-visible // block_n) * block_n)
        loaded = query_bytes + 2 * keys_loaded * head_dim * element
        return loaded, query_bytes + statistic_bytes
    passes = -(-seq_key // block_n)
    state_bytes = seq_query * head_dim * 4 + 2 * statistic_bytes
    loaded = 2 * seq_key * head_dim * element + passes * (query_bytes + state_bytes)
    return loaded, (passes - 1) * state_bytes + query_bytes + statistic_bytes
