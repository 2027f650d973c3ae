"""The public tests of `causal_attention`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others little room: unless a test is about other
shapes, there are as many keys as queries, tiles are square, and none reaches past an end. `student` holds
the learner's function; while it runs, memory that PyTorch allocates without a value is filled with NaN.

Which tiles are full and which visible is found by enumeration, element by element, and compared exactly,
as are bytes. Outputs are compared with a computation in float64. The error allowed is twice that of
attention in PyTorch with scores and softmax in float32 and the probabilities rounded to the dtype, as the
second product takes them, plus a few units in the last place of float32.
"""

import itertools

import pytest
import torch

import kernels
from instruments import traffic

HEAD_DIM = 16
SCALE = 0.5
FULL, VISITED = 0, 1
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(seq_query: int, seq_key: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Normally distributed query, key and value."""
    generator = torch.Generator().manual_seed(1000 * seq_query + seq_key)
    return tuple(
        torch.randn(rows, HEAD_DIM, generator=generator).to(kernels.device(), dtype)
        for rows in (seq_query, seq_key, seq_key)
    )


def visible(seq_query: int, seq_key: int) -> torch.Tensor:
    """Which query sees which key."""
    query, key = torch.arange(seq_query)[:, None], torch.arange(seq_key)
    return key <= query + seq_key - seq_query


def tiles_by_definition(seq_query: int, seq_key: int, block_m: int, block_n: int) -> torch.Tensor:
    """Full tiles and tiles to visit for each tile of queries, from the mask's elements."""
    counts = []
    for queries in visible(seq_query, seq_key).split(block_m):
        tiles = queries.split(block_n, 1)
        full = [tile.shape[1] == block_n and bool(tile.all()) for tile in tiles]
        counts.append([sum(full), sum(bool(tile.any()) for tile in tiles)])
    return torch.tensor(counts, dtype=torch.int32)


def attention(inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """What the exercise asks for, computed by PyTorch in `dtype`, probabilities rounded to the inputs'."""
    query, key, value = (tensor.to(dtype) for tensor in inputs)
    hidden = ~visible(len(query), len(key)).to(query.device)
    probabilities = (query @ key.T * SCALE).masked_fill(hidden, -torch.inf).softmax(1).nan_to_num()
    if dtype != torch.float64:
        probabilities = probabilities.to(inputs[0].dtype).to(dtype)
    return probabilities @ value


def call(student, inputs: Inputs, block_m: int, block_n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and, on the CPU, the tiles."""
    query = inputs[0]
    result = student.causal_attention(*(x.clone() for x in inputs), SCALE, block_m, block_n)
    kind = type(result).__name__
    assert isinstance(result, tuple | list) and len(result) == 2, (
        f"The function must return two tensors, the output and the tiles, and returned a {kind}."
    )
    shapes = (tuple(query.shape), (-(-len(query) // block_m), 2))
    dtypes = (query.dtype, torch.int32)
    for name, tensor, shape, dtype in zip(("output", "tiles"), result, shapes, dtypes, strict=True):
        kind = type(tensor).__name__
        assert isinstance(tensor, torch.Tensor), f"The {name} must be a tensor, and is a {kind}."
        came = tuple(tensor.shape)
        assert came == shape, f"The {name} must have the shape {shape}, and has {came}."
        assert tensor.dtype == dtype, f"The {name} must be {dtype}, and is {tensor.dtype}."
        assert tensor.device == query.device, (
            f"The {name} must be on the device of query, {query.device}, and is on {tensor.device}."
        )
    output, tiles = result
    return output, tiles.cpu()


def assert_right(student, inputs: Inputs, block_m: int, block_n: int, mistake: str) -> None:
    """Compare the output with exact attention."""
    output, _ = call(student, inputs, block_m, block_n)
    exact, careful = attention(inputs, torch.float64), attention(inputs, torch.float32)
    careful = careful.to(output.dtype)
    largest = inputs[2].abs().max()
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * largest
    error = (output - exact).abs().max()
    assert error <= allowed, f"{mistake} (Largest error {error:.1e}; allowed {allowed:.1e}.)"


def assert_tiles(student, shape: tuple[int, ...], columns: tuple[int, ...], mistake: str) -> None:
    """Compare the tiles that a program went by with the definition."""
    seq_query, seq_key, block_m, block_n = shape
    _, tiles = call(student, draw(seq_query, seq_key), block_m, block_n)
    expected = tiles_by_definition(*shape)
    for program, column in itertools.product(range(len(tiles)), columns):
        came, right = tiles[program, column].item(), expected[program, column].item()
        what = ("full", "to visit")[column]
        assert came == right, (
            f"{mistake} ({seq_query} queries, {seq_key} keys, tiles of {block_m} by {block_n}: the program "
            f"with start_m = {program * block_m} counts {came} tiles {what}; right is {right}.)"
        )


def test_square(student):
    assert_right(
        student,
        draw(128, 128),
        32,
        32,
        "As many keys as queries and square tiles: the tiles before the diagonal are visited without "
        "hiding anything, the one on it with HIDE=True, each of them once.",
    )


@pytest.mark.parametrize(("block_m", "block_n"), [(64, 16), (16, 64)])
def test_unequal_sides(student, block_m, block_n):
    assert_right(
        student,
        draw(128, 128),
        block_m,
        block_n,
        f"Tiles of {block_m} queries by {block_n} keys go wrong: the diagonal may pass through several "
        "tiles of one program or through a part of one; queries are counted in block_m and keys in "
        "block_n.",
    )


@pytest.mark.parametrize("more", [16, 32, 48])
def test_more_keys(student, more):
    assert_right(
        student,
        draw(64, 64 + more),
        32,
        32,
        f"{more} more keys than queries go wrong: the mask is aligned at the bottom right, so query r sees "
        "the keys up to r + seq_key - seq_query.",
    )


@pytest.mark.parametrize("fewer", [16, 32, 48])
def test_more_queries(student, fewer):
    inputs = draw(96, 96 - fewer)
    output, _ = call(student, inputs, 32, 32)
    assert (output[:fewer] == 0).all(), (
        f"With {fewer} more queries than keys the first {fewer} queries see no key, and their output must "
        "be zeros: they must not be in a tile that counts as full, and the last lines of the kernel do "
        "the rest."
    )
    assert_right(
        student,
        inputs,
        32,
        32,
        f"{fewer} more queries than keys go wrong: seq_key - seq_query is negative, and a kernel divides "
        "towards zero (-1 // 32 is 0 there), so clamp at 0 before you divide.",
    )


@pytest.mark.parametrize("lengths", [(1, 1), (33, 33), (31, 63), (63, 111), (100, 65)], ids=str)
def test_any_length(student, lengths):
    assert_right(
        student,
        draw(*lengths),
        32,
        32,
        "{} queries and {} keys go wrong: the last tile of either is ragged; it is visited too (round up), "
        "and never full if it holds keys past the end.".format(*lengths),
    )


def test_full_tiles(student):
    assert_tiles(
        student,
        (128, 128, 32, 32),
        (FULL,),
        "Too many or too few full tiles: a tile is full if the program's first query, which sees the "
        "fewest keys (start_m + 1 of them here), sees all of it.",
    )
    assert_tiles(
        student,
        (64, 95, 32, 32),
        (FULL,),
        "Here the program's first query sees the last key of a tile and no key more: then this tile is "
        "full, too. Query r sees the key r + seq_key - seq_query, so one key more than that number.",
    )


def test_visited_tiles(student):
    assert_tiles(
        student,
        (128, 128, 32, 32),
        (VISITED,),
        "Too many or too few tiles are visited: a tile must be visited if the program's last query, which "
        "sees the most keys, sees its first one.",
    )
    assert_tiles(
        student,
        (128, 97, 32, 32),
        (VISITED,),
        "Here some programs' last query sees only the first key of a tile, and some no key: the one "
        "counts (round up), and where no key is seen, 0 tiles are visited, not fewer.",
    )


@pytest.mark.parametrize("seq_key", [31, 32, 100])
def test_decoding(student, seq_key):
    assert_tiles(
        student,
        (1, seq_key, 32, 32),
        (FULL, VISITED),
        "A single query sees every key: no tile is hidden and the diagonal hides nothing, but a tile with "
        "keys past the end is not full, and queries past the end need no tiles.",
    )
    assert_right(
        student,
        draw(1, seq_key),
        32,
        32,
        f"A single query with {seq_key} keys goes wrong: it sees them all, and none past the end.",
    )


def test_tiles_of_every_shape(student):
    for seq_query, seq_key in itertools.product((1, 16, 31, 48), repeat=2):
        for block_m, block_n in [(32, 16), (16, 32)]:
            assert_tiles(
                student,
                (seq_query, seq_key, block_m, block_n),
                (FULL, VISITED),
                "Of all pairs of four lengths from 1 to 48, this is the first that goes wrong.",
            )


@pytest.mark.parametrize("lengths", [(128, 128), (96, 160), (100, 70), (33, 111)], ids=str)
def test_loads_what_it_needs(student, lengths):
    block_m, block_n = 32, 16
    inputs = draw(*lengths)
    call(student, inputs, block_m, block_n)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, inputs, block_m, block_n)
    tiles = tiles_by_definition(*lengths, block_m, block_n)[:, VISITED]
    # The rows past the end that a ragged tile would hold are not loaded.
    rows = (tiles * block_n).clamp(max=lengths[1]).sum().item()
    for name, tensor in zip(("key", "value"), inputs[1:], strict=True):
        loaded = sum(
            buffer.loaded for (_, pointer), buffer in counted.buffers.items() if pointer == name
        )
        needed = rows * HEAD_DIM * tensor.element_size()
        assert loaded <= needed, (
            f"With {lengths[0]} queries and {lengths[1]} keys your kernel loads {loaded} bytes through "
            f"{name}_ptr, and needs {needed}: hidden tiles must not be visited, and no tile twice."
        )
        assert loaded == needed, (
            f"With {lengths[0]} queries and {lengths[1]} keys your kernel loads only {loaded} bytes "
            f"through {name}_ptr, and needs {needed}: every tile with a visible key must be visited, by "
            "pointers of these names."
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    mistake = (
        f"float32 works and {dtype} does not: maxima, sums and accumulator stay in float32 from the first "
        "tile to the last, from one loop to the next."
    )
    query, key, value = draw(128, 128, dtype)
    assert_right(student, (query, key, value), 32, 32, mistake)
    # Equal weights; float16 has no room for the sum of 66 such values.
    assert_right(student, (query, torch.zeros_like(key), value + 1000), 32, 32, mistake)


def test_inputs_unchanged(student):
    inputs = draw(64, 64)
    before = [tensor.clone() for tensor in inputs]
    student.causal_attention(*inputs, SCALE, 32, 32)
    for name, tensor, copy in zip(("query", "key", "value"), inputs, before, strict=True):
        assert torch.equal(tensor, copy), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
