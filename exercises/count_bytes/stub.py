"""Count the bytes of two loop orders: the file to write your solution in."""


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
    # Your turn: add up what each line of the two loops loads and stores.
    raise NotImplementedError("attention_bytes is not written yet")
