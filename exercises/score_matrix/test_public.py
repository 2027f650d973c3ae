"""The public tests of `score_matrix`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room: unless a test is about them,
there is no mask, the scale is 1, and lengths and d are multiples of the tiles' sides. Unless it is about
precision, inputs are float16 numbers held in float32, so that a GPU may multiply them in TF32 and round
nothing. Behind query and key in memory lies NaN. `student` holds the learner's function; while it runs,
memory that PyTorch allocates without a value is filled with NaN. Expected values are computed in float64.
d products and sums, the scale and the product with it are rounded to float32: in whatever order the
products are added, a score is off by at most d + 2 halves of a unit in the last place, of their sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import kernels
from instruments import traffic

BLOCK = 32  # queries, keys and dims of a tile
BEHIND = 4096  # elements
EPSILON = torch.finfo(torch.float32).eps


def draw_numbers(generator: torch.Generator, rows: int, d: int) -> torch.Tensor:
    """Normally distributed numbers, and NaN behind them in memory."""
    memory = torch.full((rows * d + BEHIND,), torch.nan)
    memory[: rows * d] = torch.randn(rows * d, generator=generator)
    return memory.to(kernels.device())[: rows * d].view(rows, d)


def draw_float32(seq_query: int, seq_key: int, d: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key."""
    generator = torch.Generator().manual_seed(1000 * seq_query + seq_key)
    return draw_numbers(generator, seq_query, d), draw_numbers(generator, seq_key, d)


def draw(*lengths: int, d: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, in float32 but as coarse as float16."""
    query, key = draw_float32(*lengths, d=d)
    return query.copy_(query.half()), key.copy_(key.half())


@contextmanager
def memory_behind() -> Iterator[list[torch.Tensor]]:
    """Let what torch.empty gives lie before other memory: a list of it, all ones at first.

    A kernel that writes past the end then breaks a test, and not the process.
    """
    allocate, behind = torch.empty, []

    def empty(*size, **options):
        wanted = allocate(*size, **{**options, "device": "meta"})
        memory = allocate(wanted.numel() + BEHIND, **options)
        behind.append(memory[wanted.numel() :].fill_(1))
        return memory[: wanted.numel()].view(wanted.shape)

    with mock.patch.object(torch, "empty", empty):
        yield behind


def call(student, query, key, scale: float = 1.0, causal: bool = False) -> torch.Tensor:
    return call_and_look_behind(student, query, key, scale, causal)[0]


def call_and_look_behind(
    student, query: torch.Tensor, key: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, bool]:
    """The scores, and whether the memory behind what was allocated is as it was."""
    with memory_behind() as behind:
        result = student.score_matrix(query, key, scale, causal)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = (len(query), len(key)), tuple(result.shape)
    assert came == expected, (
        f"The scores must have a row for each query and a column for each key, {expected}, and have {came}."
    )
    assert result.dtype == torch.float32, f"The scores must be float32, and are {result.dtype}."
    assert result.device == query.device, (
        f"The scores must be on the device of query, {query.device}, and are on {result.device}."
    )
    return result, all((memory == 1).all() for memory in behind)


def visible(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Which scores a causal mask leaves."""
    row = torch.arange(len(query), device=query.device)[:, None]
    column = torch.arange(len(key), device=query.device)
    return column <= row + len(key) - len(query)


def exact_scores(
    query: torch.Tensor, key: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores in float64, and how far each may be off."""
    query, key = query.double(), key.double()
    sizes = scale * (query.abs() @ key.abs().T)
    return scale * (query @ key.T), (query.shape[1] + 2) * EPSILON / 2 * sizes


def is_right(result: torch.Tensor, query, key, scale: float = 1.0) -> bool:
    """Whether scores that no mask hides are as close to the exact ones as they should be."""
    exact, allowed = exact_scores(query, key, scale)
    return bool(((result.double() - exact).abs() <= allowed).all())


def assert_right(student, query, key, mistake: str, scale: float = 1.0) -> None:
    assert is_right(call(student, query, key, scale), query, key, scale), mistake


def assert_masked(student, query, key, mistake: str) -> None:
    """Compare causal scores with the exact ones, and tell of the first that differs."""
    result = call(student, query, key, causal=True)
    exact, allowed = exact_scores(query, key, 1.0)
    seen = visible(query, key)
    wrong = torch.where(seen, ~((result - exact).abs() <= allowed), result != -torch.inf)
    for row, column in wrong.nonzero().tolist()[:1]:
        right = f"{exact[row, column]:.3g}" if seen[row, column] else "-inf"
        raise AssertionError(
            f"{mistake} (Of {len(query)} queries and {len(key)} keys, query {row} and key {column}: "
            f"{result[row, column]:.3g} came, and it must be {right}.)"
        )


@pytest.fixture(autouse=True)
def computes(student):
    """What goes wrong whatever a test is about is told by all in the same words."""
    assert not call(student, *draw(BLOCK, BLOCK)).isnan().all(), (
        "Every score is NaN, as memory is before anything is stored there: end the kernel with tl.store."
    )


def test_one_tile(student):
    assert_right(
        student,
        *draw(BLOCK, BLOCK),
        "One tile of queries with one of keys is wrong already: score (r, c) is the product of row r of "
        "query and row c of key, so transpose the tile of keys: tl.dot(query, tl.trans(key), ...).",
    )


@pytest.mark.parametrize("lengths", [(96, 64), (64, 96)], ids=str)
def test_several_tiles(student, lengths):
    assert_right(
        student,
        *draw(*lengths),
        "{} queries with {} keys go wrong: program (i, j) owns the queries from i * BLOCK_M on and the "
        "keys from j * BLOCK_N on, and a row of scores has seq_key elements.".format(*lengths),
    )


def test_scale(student):
    query, key = draw(BLOCK, BLOCK)
    result = call(student, query, key, 0.3)
    assert not is_right(result, query, key), "The scale has no effect: multiply the scores by it."
    assert not is_right(result, query, key, 0.09), "The scale is applied twice."
    assert is_right(result, query, key, 0.3), (
        "A scale of 1 works and 0.3 does not: all scores are multiplied by it, after the loop."
    )


@pytest.mark.parametrize("d", [64, 256])
def test_head_dims(student, d):
    assert_right(
        student,
        *draw(BLOCK, BLOCK, d=d),
        f"d = {BLOCK} works and {d} does not: loop over the head dimension, BLOCK_D at a time, and add "
        "each product to those before it.",
    )


@pytest.mark.parametrize("d", [1, 40, 80])
def test_ragged_head_dims(student, d):
    query, key = draw(BLOCK, BLOCK, d=d)
    assert not call(student, query, key).isnan().any(), (
        f"With d = {d} there is NaN among the scores: load dims past the end as 0 in query and key "
        "(dims[None, :] < head_dim, other=0.0), because behind them may lie anything, and 0 * NaN is NaN."
    )
    assert_right(
        student,
        query,
        key,
        f"With d = {d} the last step is not full, and goes wrong: the loop must reach it, and dims past "
        "the end must be loaded as 0, because behind a row lies the next.",
    )


def assert_ends(student, lengths: tuple[int, int], what: str, mask: str) -> None:
    query, key = draw(*lengths)
    result, untouched = call_and_look_behind(student, query, key, 1.0, False)
    mistake = (
        f"With {what} the last tile is not full, and scores are wrong: those that there are must be "
        f"computed and stored, and nothing must be stored past the end (mask {mask})."
    )
    assert untouched, (
        f"With {what} the scores end within the last tile, and the kernel writes on behind them, over "
        f"somebody else's memory: store with a mask, {mask}."
    )
    assert is_right(result, query, key), mistake


@pytest.mark.parametrize("seq_query", [1, 31, 33, 50])
def test_last_queries(student, seq_query):
    assert_ends(
        student, (seq_query, BLOCK), f"seq_query = {seq_query}", "rows[:, None] < seq_query"
    )


@pytest.mark.parametrize("seq_key", [1, 31, 33, 50])
def test_last_keys(student, seq_key):
    assert_ends(student, (BLOCK, seq_key), f"seq_key = {seq_key}", "columns[None, :] < seq_key")


def test_causal(student):
    assert_masked(
        student,
        *draw(3 * BLOCK, 3 * BLOCK),
        "With as many keys as queries, query r must see the keys up to r, and the scores of the others "
        "must be -inf.",
    )


@pytest.mark.parametrize("lengths", [(32, 64), (64, 32), (50, 90), (90, 50)], ids=str)
def test_causal_lengths(student, lengths):
    assert_masked(
        student,
        *draw(*lengths),
        "With unequal lengths the mask is aligned at the bottom right: the last query sees the last key, "
        "so query r sees the keys up to r + seq_key - seq_query, and a tile is hidden only if its last "
        "query does not see its first key.",
    )


@pytest.mark.parametrize("layout", ["every second row", "every second column", "transposed"])
@pytest.mark.parametrize("name", ["query", "key"])
def test_strides(student, name, layout):
    inputs = dict(zip(("query", "key"), draw(BLOCK, BLOCK), strict=True))
    rows, columns = inputs[name].shape
    memory = {
        "every second row": inputs[name].new_zeros(2 * rows, columns)[::2],
        "every second column": inputs[name].new_zeros(rows, 2 * columns)[:, ::2],
        "transposed": inputs[name].new_zeros(columns, rows).T,
    }[layout]
    inputs[name] = memory.copy_(inputs[name])
    row_stride, column_stride = memory.stride()
    assert_right(
        student,
        *inputs.values(),
        f"A {name} whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: its element (row, column) is at row * {name}_strides[0] + column * "
        f"{name}_strides[1].",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    query, key = ((200 * numbers).to(dtype) for numbers in draw(BLOCK, BLOCK))
    assert_right(
        student,
        query,
        key,
        f"float32 works and {dtype} does not, with scores beyond 100 000: the query goes into tl.dot as "
        "it was loaded, and what comes out stays float32, also when it is scaled and stored.",
        scale=0.7,
    )


def test_float32_inputs(student):
    assert_right(
        student,
        *draw_float32(BLOCK, BLOCK),
        "Of float32 inputs only 11 bits or fewer counted: ask tl.dot for input_precision='ieee', because "
        "by default a GPU rounds float32 to TF32, and convert nothing to a smaller dtype.",
    )


def loaded_bytes(student, query: torch.Tensor, key: torch.Tensor, causal: bool) -> int:
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, query, key, causal=causal)
    return sum(buffer.loaded for buffer in counted.buffers.values())


def bytes_of_tiles(query: torch.Tensor, key: torch.Tensor, needed: torch.Tensor) -> int:
    """What the tiles load that have a score which is needed: their queries and their keys, once."""
    rows = 0
    for queries in needed.split(BLOCK, 0):
        for tile in queries.split(BLOCK, 1):
            rows += sum(tile.shape) if tile.any() else 0
    return rows * query.shape[1] * query.element_size()


@pytest.mark.parametrize("lengths", [(128, 128), (64, 100), (100, 64)], ids=str)
def test_hidden_tiles(student, lengths):
    query, key = draw(*lengths)
    expected = bytes_of_tiles(query, key, visible(query, key))
    loaded = loaded_bytes(student, query, key, causal=True)
    assert loaded <= expected, (
        f"With {lengths[0]} queries and {lengths[1]} keys the tiles that are not hidden need {expected} "
        f"bytes, and your kernel loads {loaded}: if a tile's last query does not see its first key, do not "
        "load anything there."
    )


def test_memory_traffic(student):
    seq_query, seq_key, d = 70, 40, 40
    both = draw(1, seq_query + seq_key, d=d)[1]
    # The two lie side by side, so that who reads past the end of one is seen reading the other.
    for query, key in (
        (both[:seq_query], both[seq_query:]),
        (both[seq_key:], both[:seq_key]),
    ):
        needed = torch.ones(seq_query, seq_key)
        expected = bytes_of_tiles(query, key, needed)
        loaded = loaded_bytes(student, query, key, causal=False)
        assert loaded >= query.numel() * query.element_size() + key.numel() * key.element_size(), (
            f"Your kernel loads {loaded} bytes, fewer than query and key have: it must read both, and "
            "multiply them itself."
        )
        assert loaded <= expected, (
            f"All tiles together need {expected} bytes of queries and keys, and your kernel loads "
            f"{loaded}: load each once, and nothing past the last query, the last key and the last dim."
        )
