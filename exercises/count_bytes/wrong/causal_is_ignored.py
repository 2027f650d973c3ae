# loses: test_causal, test_causal_lengths, test_queries_ragged, test_kernels
"""Order queries visits every tile of keys, with a causal mask, too."""


def attention_bytes(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    query_bytes = seq_query * head_dim * element
    statistic_bytes = seq_query * 4
    if order == "queries":
        keys_loaded = 0
        for _ in range(0, seq_query, block_m):
            keys_loaded += seq_key
        loaded = query_bytes + 2 * keys_loaded * head_dim * element
        return loaded, query_bytes + statistic_bytes
    passes = -(-seq_key // block_n)
    state_bytes = seq_query * head_dim * 4 + 2 * statistic_bytes
    loaded = 2 * seq_key * head_dim * element + passes * (query_bytes + state_bytes)
    return loaded, (passes - 1) * state_bytes + query_bytes + statistic_bytes
