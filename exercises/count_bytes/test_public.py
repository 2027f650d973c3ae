"""The public tests of `attention_bytes`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its sizes leave the others little room: an element has 4 bytes, as a
float32 number has, except where its size is the question; tiles are ragged and lengths differ only where a
test is about that. What a causal mask or smaller elements change is compared with what they change in the
learner's own count, so that a mistake in the rest does not show there again. `student` holds the learner's
function. What is expected is added up by walking along the tiles, and must be met to the byte.
"""

from typing import NamedTuple

import pytest
import torch

import kernels
from instruments import traffic
from kernels import flash1

FLOAT32 = 4  # bytes a number


class Case(NamedTuple):
    """The arguments, in their order."""

    order: str
    seq_query: int
    seq_key: int
    head_dim: int
    block_m: int
    block_n: int
    element: int = FLOAT32
    causal: bool = False


def tiles(length: int, block: int) -> list[range]:
    """The rows of each tile; the last tile has those that are left."""
    return [range(length)[start : start + block] for start in range(0, length, block)]


def walk(case: Case) -> tuple[int, int]:
    """Bytes loaded and stored, one tile after the other."""
    query_tiles = tiles(case.seq_query, case.block_m)
    key_tiles = tiles(case.seq_key, case.block_n)
    row = case.head_dim * case.element  # of Q, K, V or the output
    state = case.head_dim * FLOAT32 + FLOAT32 + FLOAT32  # accumulator, running_max, running_sum
    result = row + FLOAT32  # output, logsumexp
    loaded = stored = 0
    if case.order == "queries":
        for rows in query_tiles:
            loaded += len(rows) * row
            for columns in key_tiles:
                if case.causal and columns[0] > rows[-1] + case.seq_key - case.seq_query:
                    break
                loaded += 2 * len(columns) * row
            stored += len(rows) * result
    else:
        for columns in key_tiles:
            loaded += 2 * len(columns) * row
            for rows in query_tiles:
                loaded += len(rows) * (row + state)
                stored += len(rows) * (result if columns == key_tiles[-1] else state)
    return loaded, stored


def call(student, case: Case) -> tuple[int, int]:
    result = student.attention_bytes(*case)
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two integers, bytes loaded and bytes stored, and returned {result!r}."
    )
    for name, number in zip(("loaded", "stored"), result, strict=True):
        kind = type(number).__name__
        assert isinstance(number, int) and not isinstance(number, bool), (
            f"The bytes {name} must be an int, and are a {kind}: use // or math.ceil, not / alone."
        )
    return tuple(result)


def assert_right(student, case: Case, mistake: str) -> None:
    """Compare both numbers with those of a walk along the tiles."""
    both = zip(("loaded", "stored"), call(student, case), walk(case), strict=True)
    for name, came, expected in both:
        assert came == expected, (
            f"{mistake} (attention_bytes{tuple(case)} counts {came} bytes {name}; there are {expected}.)"
        )


def assert_right_change(student, before: Case, after: Case, mistake: str) -> None:
    """Compare what changes from one case to another with what changes in a walk along the tiles."""
    both = zip(
        ("loaded", "stored"),
        *(call(student, before), call(student, after)),
        *(walk(before), walk(after)),
        strict=True,
    )
    for name, came_before, came_after, expected_before, expected_after in both:
        came, expected = came_after - came_before, expected_after - expected_before
        assert came == expected, (
            f"{mistake} (From attention_bytes{tuple(before)} to {tuple(after)}, the bytes {name} change by "
            f"{came} and should by {expected}.)"
        )


def test_one_tile(student):
    assert_right(
        student,
        Case("queries", 32, 64, 16, 32, 64),
        "With one tile of queries and one of keys, order queries loads Q, K and V once each and stores "
        "the output and the logsumexp, which is one float32 number a query.",
    )


@pytest.mark.parametrize("blocks", [(16, 32), (32, 16)], ids=str)
def test_queries(student, blocks):
    assert_right(
        student,
        Case("queries", 96, 128, 16, *blocks),
        "In order queries each tile of queries (there are seq_query / block_m) loads all of K and V "
        "again, but its own rows of Q only once.",
    )


@pytest.mark.parametrize("blocks", [(16, 16), (16, 32), (32, 16)], ids=str)
def test_causal(student, blocks):
    full = Case("queries", 128, 128, 16, *blocks)
    assert_right_change(
        student,
        full,
        full._replace(causal=True),
        "With a causal mask, order queries loads for each tile of queries the tiles of keys from the first "
        "to the last one of which its last query sees a key; each of them whole.",
    )


@pytest.mark.parametrize("lengths", [(64, 160), (160, 64), (16, 176), (80, 112)], ids=str)
def test_causal_lengths(student, lengths):
    full = Case("queries", *lengths, 16, 16, 16)
    assert_right_change(
        student,
        full,
        full._replace(causal=True),
        f"With {lengths[0]} queries and {lengths[1]} keys the causal mask goes wrong: the last query sees "
        "the last key, so query r sees keys up to r + seq_key - seq_query; no key at all if that is "
        "negative.",
    )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("length", [100, 75, 5])
def test_queries_ragged(student, length, causal):
    assert_right(
        student,
        Case("queries", length, length, 16, 32, 16, causal=causal),
        "Lengths that are no multiple of their block go wrong in order queries: the last tile of queries "
        "loads K and V as the others do, but it ends at seq_query, and the last tile of keys at seq_key.",
    )


def test_one_pass(student):
    assert_right(
        student,
        Case("keys", 96, 64, 16, 32, 64),
        "With one tile of keys, order keys loads the accumulator, running_max and running_sum of every "
        "query, zero or not, and stores none of them: the last tile of keys stores output and logsumexp.",
    )


@pytest.mark.parametrize("blocks", [(16, 32), (32, 16)], ids=str)
def test_keys(student, blocks):
    assert_right(
        student,
        Case("keys", 96, 128, 16, *blocks),
        "In order keys each tile of keys (there are seq_key / block_n) loads Q, the accumulator, "
        "running_max and running_sum of all queries and, unless it is the last, stores the latter three; "
        "K and V are loaded once in all.",
    )


@pytest.mark.parametrize("lengths", [(100, 64), (96, 50), (5, 7)], ids=str)
def test_keys_ragged(student, lengths):
    assert_right(
        student,
        Case("keys", *lengths, 16, 32, 16),
        "Lengths that are no multiple of their block go wrong in order keys: the last tile of keys makes "
        "one more pass over the queries (round up), but no tile holds rows that are not there.",
    )


def test_keys_causal(student):
    full = Case("keys", 128, 128, 16, 32, 16)
    assert_right_change(
        student,
        full,
        full._replace(causal=True),
        "In order keys a causal mask changes no byte: it hides scores, and skips no tile.",
    )


@pytest.mark.parametrize("order", ["queries", "keys"])
def test_element(student, order):
    single = Case(order, 96, 128, 16, 32, 16)
    assert_right_change(
        student,
        single,
        single._replace(element=2),
        f"With 2 bytes an element, order {order} goes wrong: Q, K, V and the output have elements of that "
        "size; accumulator, running_max, running_sum and logsumexp stay float32, 4 bytes a number.",
    )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("order", ["queries", "keys"])
def test_kernels(student, order, causal):
    case = Case(order, 40, 70, 16, 16, 32, 2, causal)
    came = call(student, case)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's bytes can be counted only where it is interpreted, without a GPU")
    attention = {"queries": flash1.attention, "keys": flash1.printed_attention}[order]
    query = torch.zeros(1, 1, case.seq_query, case.head_dim, dtype=torch.float16)
    key, value = (torch.zeros(1, 1, case.seq_key, case.head_dim).half() for _ in range(2))
    blocks = {"block_m": case.block_m, "block_n": case.block_n}
    with traffic.counting() as counted:
        attention(query, key, value, causal=causal, **blocks)
    buffers = counted.buffers.values()
    expected = sum(b.loaded for b in buffers), sum(b.stored for b in buffers)
    assert came == expected, (
        f"Chapter 3's {attention.__name__} loads and stores {expected} bytes, and "
        f"attention_bytes{tuple(case)} says {came}: it is ragged{' and causal' * causal}, in float16."
    )
