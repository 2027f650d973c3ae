"""The public tests of `classify_tiles`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its shapes leave the others no room: unless a test is about other
shapes, there are as many keys as queries, tiles are square, and none reaches past an end. `student` holds
the learner's function. Expected values come from the definition, element by element, and are compared
exactly.
"""

import itertools

import pytest
import torch

KINDS = ("hidden", "partly visible", "full")


def tiles_by_definition(seq_query: int, seq_key: int, block_m: int, block_n: int) -> torch.Tensor:
    """Count the visible elements of every tile; keys past the end are hidden elements."""
    rows, columns = -(-seq_query // block_m), -(-seq_key // block_n)
    query, key = torch.arange(seq_query)[:, None], torch.arange(seq_key)
    visible = torch.zeros(rows * block_m, columns * block_n, dtype=torch.int64)
    visible[:seq_query, :seq_key] = key <= query + seq_key - seq_query
    counts = visible.view(rows, block_m, columns, block_n).sum((1, 3))
    queries = (seq_query - block_m * torch.arange(rows)).clamp(max=block_m)  # of each row of tiles
    return (counts > 0).to(torch.int8) + (counts == queries[:, None] * block_n).to(torch.int8)


def call(student, *arguments: int) -> torch.Tensor:
    result = student.classify_tiles(*arguments)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    return result


def assert_equal(student, arguments: tuple[int, ...], expected, mistake: str) -> None:
    """Compare with the expected tiles, and tell of the first that differs."""
    seq_query, seq_key, block_m, block_n = arguments
    result = call(student, *arguments)
    given = f"classify_tiles{arguments}"
    shape, came = tuple(expected.shape), tuple(result.shape)
    assert came == shape, f"{mistake} ({given} must have the shape {shape}, and has {came}.)"
    for i, j in (result != expected).nonzero().tolist()[:1]:
        queries = f"queries {i * block_m} to {min((i + 1) * block_m, seq_query) - 1}"
        keys = f"keys {j * block_n} to {min((j + 1) * block_n, seq_key) - 1}"
        right = expected[i, j].item()
        raise AssertionError(
            f"{mistake} ({given}[{i}, {j}], {queries} and {keys}, is {result[i, j].item()} and must be "
            f"{right}, {KINDS[right]}.)"
        )


def assert_right(student, arguments: tuple[int, ...], mistake: str) -> None:
    """Compare with the definition."""
    assert_equal(student, arguments, tiles_by_definition(*arguments), mistake)


def test_result(student):
    result = call(student, 128, 128, 32, 32)
    came = tuple(result.shape)
    assert came == (4, 4), (
        f"128 queries and 128 keys have (4, 4) tiles of 32 by 32, and the result has the shape {came}."
    )
    assert result.dtype == torch.int8, f"The result must be torch.int8, and is {result.dtype}."


def test_square(student):
    assert_right(
        student,
        (128, 128, 32, 32),
        "As many keys as queries and square tiles: 2 below the diagonal, 1 on it, 0 above it.",
    )


@pytest.mark.parametrize(("block_m", "block_n"), [(1, 32), (32, 1), (1, 1)])
def test_single_scores(student, block_m, block_n):
    assert_right(
        student,
        (128, 128, block_m, block_n),
        "One score makes the difference here: query r sees key r and not key r + 1, so a tile is visible "
        "if its first key is at most what its last query sees, and full if its last key is at most what "
        "its first query sees.",
    )


@pytest.mark.parametrize(("block_m", "block_n"), [(64, 32), (32, 64)])
def test_unequal_sides(student, block_m, block_n):
    assert_right(
        student,
        (128, 128, block_m, block_n),
        "Tiles need not be square: block_m counts queries, the rows, and block_n keys, the columns; and "
        "the diagonal passes through more than one tile of a row or of a column.",
    )


@pytest.mark.parametrize("more", [32, 64, 96])
def test_more_keys(student, more):
    assert_right(
        student,
        (128, 128 + more, 32, 32),
        "With more keys than queries the mask is aligned at the bottom right: the last query sees the last "
        "key, so query r sees the keys up to r + seq_key - seq_query.",
    )


@pytest.mark.parametrize("fewer", [32, 64, 96])
def test_more_queries(student, fewer):
    assert_right(
        student,
        (128, 128 - fewer, 32, 32),
        "With more queries than keys the first seq_query - seq_key queries see nothing, so their tiles are "
        "hidden; where you divide, mind that -1 // 32 is -1 and int(-1 / 32) is 0.",
    )


@pytest.mark.parametrize("seq_query", [1, 33, 96])
def test_last_keys(student, seq_query):
    assert_right(
        student,
        (seq_query, 100, 32, 32),
        "The last tiles of 100 keys hold 4 and reach 28 past the end: they must be there, and they need a "
        "mask, so they are partly visible at most, even for a query that sees every key.",
    )


@pytest.mark.parametrize("seq_query", [40, 80, 100])
def test_last_queries(student, seq_query):
    assert_right(
        student,
        (seq_query, 128, 32, 32),
        f"The last tiles of {seq_query} queries hold fewer than 32: they must be there, and of their rows "
        "only those that there are count.",
    )


@pytest.mark.parametrize(("seq_query", "seq_key"), [(0, 64), (64, 0), (0, 0)])
def test_no_tiles(student, seq_query, seq_key):
    assert_right(
        student,
        (seq_query, seq_key, 32, 32),
        "No queries give no rows of tiles, and no keys no columns, in a tensor of two dimensions still.",
    )


def test_every_shape(student):
    for seq_query, seq_key in itertools.product((1, 2, 31, 64, 100, 129), repeat=2):
        for block_m, block_n in itertools.product((1, 3, 16, 32, 48, 128), repeat=2):
            assert_right(
                student,
                (seq_query, seq_key, block_m, block_n),
                "Of all pairs of lengths from 1 to 129 and of sides from 1 to 128, powers of two or not, "
                "this is the first that goes wrong.",
            )


def test_long_sequences(student):
    # The whole mask would take 2**50 bytes, and a tile 2**48, which no address space has.
    call(student, 128, 128, 32, 32)  # an error here has nothing to do with the lengths
    mistake = (
        "Sequences of 2**25 in tiles of 2**24 do not work, though they have only four tiles: decide from a "
        "tile's corners, without looking at its elements."
    )
    try:
        expected = torch.tensor([[1, 0], [2, 1]])
        assert_equal(student, (2**25, 2**25, 2**24, 2**24), expected, mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error
