# loses: test_queries, test_causal, test_causal_lengths, test_queries_ragged, test_element, test_kernels
"""K and V are loaded once in order queries, as if programs shared them."""


def attention_bytes(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    query_bytes = seq_query * head_dim * element
    statistic_bytes = seq_query * 4
    if order == "queries":
        loaded = query_bytes + 2 * seq_key * head_dim * element
        return loaded, query_bytes + statistic_bytes
    passes = -(-seq_key // block_n)
    state_bytes = seq_query * head_dim * 4 + 2 * statistic_bytes
    loaded = 2 * seq_key * head_dim * element + passes * (query_bytes + state_bytes)
    return loaded, (passes - 1) * state_bytes + query_bytes + statistic_bytes
