"""The test of `attention_bytes` that a learner does not see: random sizes, new in every grading."""

import random

import pytest


def expected(order, seq_query, seq_key, head_dim, block_m, block_n, element, causal):
    """Bytes loaded and stored, one row of one tile after the other."""
    row, state = head_dim * element, head_dim * 4 + 8
    result = row + 4  # output, logsumexp
    loaded = stored = 0
    query_tiles = [range(seq_query)[s : s + block_m] for s in range(0, seq_query, block_m)]
    key_tiles = [range(seq_key)[s : s + block_n] for s in range(0, seq_key, block_n)]
    if order == "queries":
        for rows in query_tiles:
            last = rows[-1] + seq_key - seq_query if causal else seq_key
            loaded += len(rows) * row
            loaded += sum(2 * len(columns) * row for columns in key_tiles if columns[0] <= last)
            stored += len(rows) * result
    for columns in key_tiles if order == "keys" else []:
        loaded += 2 * len(columns) * row
        for rows in query_tiles:
            loaded += len(rows) * (row + state)
            stored += len(rows) * (result if columns[-1] == seq_key - 1 else state)
    return loaded, stored


@pytest.mark.points(3, visibility="hidden", title="random sizes in both orders")
def test_random_sizes(student, seed):
    whole = random.Random(seed).randint
    for number in range(60):
        order = ("keys", "queries", "queries")[number % 3]
        sizes = (whole(1, 150), whole(1, 150), whole(1, 40), whole(1, 50), whole(1, 50))
        given = (order, *sizes, whole(1, 8), bool(whole(0, 1)))
        came, right = student.attention_bytes(*given), expected(*given)
        assert came is not None and tuple(came) == right, (
            f"attention_bytes{given} returns {came}; right is {right}."
        )
