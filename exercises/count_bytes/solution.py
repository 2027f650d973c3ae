"""The bytes of attention that pass between HBM and the chip, from the loop order and the sizes."""


def attention_bytes(
    order: str,
    seq_query: int,
    seq_key: int,
    head_dim: int,
    block_m: int,
    block_n: int,
    element: int,
    causal: bool,
) -> tuple[int, int]:
    """Bytes that one head of attention loads from HBM, and bytes that it stores there.

    Args:
        order: "keys" if the outer loop walks along the keys, "queries" if it walks along the queries.
        seq_query, seq_key, head_dim: Q is (seq_query, head_dim), K and V are (seq_key, head_dim).
        block_m, block_n: queries a tile and keys a tile.
        element: bytes a number of Q, K, V and the output; every other number is float32.
        causal: whether query r sees only the keys up to r + seq_key - seq_query.

    Returns:
        (loaded, stored).
    """
    ### BEGIN SOLUTION
    ### add up what each line of the two loops loads and stores.
    query_bytes = seq_query * head_dim * element  # the output has as many
    statistic_bytes = seq_query * 4  # running maxima, running sums or logsumexp

    if order == "queries":
        keys_loaded = 0
        for start in range(0, seq_query, block_m):
            visible = seq_key
            if causal:
                last_query = min(start + block_m, seq_query) - 1
                visible = max(0, last_query + 1 + seq_key - seq_query)
            # Tiles are loaded whole, so round up; but the last one ends where the keys do.
            keys_loaded += min(seq_key, -(-visible // block_n) * block_n)
        loaded = query_bytes + 2 * keys_loaded * head_dim * element
        return loaded, query_bytes + statistic_bytes

    # A causal mask changes scores here, not what is loaded.
    passes = -(-seq_key // block_n)  # over all queries, one for each tile of keys
    state_bytes = seq_query * head_dim * 4 + 2 * statistic_bytes
    loaded = 2 * seq_key * head_dim * element + passes * (query_bytes + state_bytes)
    # The last pass stores the result in place of the state.
    return loaded, (passes - 1) * state_bytes + query_bytes + statistic_bytes
    ### END SOLUTION
