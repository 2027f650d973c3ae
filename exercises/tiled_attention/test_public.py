"""The public tests of `tiled_attention`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room. The first element of every
query is 1, so the first element of a key is added to its scores, and a test sets these levels: unless it
is about a maximum that rises, the first key has the largest score. Unless it is about them, the scale is
1, and lengths are multiples of the tiles' sides. Unless it is about precision, inputs are float16 numbers
held in float32, so that a GPU may multiply them in TF32 and have no more error than is allowed.

`student` holds the learner's function; while it runs, memory that PyTorch allocates without a value is
filled with NaN. Expected values are computed in float64. The error allowed is twice that of PyTorch with
float32 scores, weights rounded to bfloat16, which is coarser than TF32 (where a test is about precision,
to the inputs' dtype), and the output rounded to its own; and a few units in the last place of float32: of
the output, and of the scores, because a score that is off by x moves a weight by as much relatively.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import kernels
from instruments import traffic

BLOCK_M, BLOCK_N = 64, 32
EPSILON = torch.finfo(torch.float32).eps
PEAK = 6.0  # where the other scores are normally distributed, none reaches it
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
each_16_bit_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def draw_numbers(generator: torch.Generator, rows: int, d: int, behind: float) -> torch.Tensor:
    """Normally distributed numbers, and a tile more, of the number `behind`, after the last row."""
    numbers = torch.full((rows + BLOCK_M, d), behind)
    numbers[:rows] = torch.randn(rows, d, generator=generator)
    return numbers.to(kernels.device())[:rows]


def draw_float32(seq_query: int, seq_key: int, d: int = 64, levels=None) -> Inputs:
    """Query, key and value, in which key j has `levels[j]` as its first element."""
    generator = torch.Generator().manual_seed(1000 * seq_query + seq_key)
    query = draw_numbers(generator, seq_query, d, behind=1.0)
    # Behind the last key lie ones, and so large scores. The weight 0 of a hidden key times NaN is NaN.
    key = draw_numbers(generator, seq_key, d, behind=1.0)
    value = draw_numbers(generator, seq_key, d, behind=torch.nan)
    query /= d**0.5
    query[:, 0] = 1.0
    if levels is None:
        key[:, 0] = 0.0
        key[:1] = 0.0
        key[:1, 0] = PEAK
    else:
        key[:, 0] = levels
    return query, key, value


def draw(*lengths: int, d: int = 64, levels=None) -> Inputs:
    """The same, in float32 but as coarse as float16."""
    inputs = draw_float32(*lengths, d=d, levels=levels)
    for tensor in inputs:
        tensor.copy_(tensor.half())
    return inputs


def levels_of_tiles(*levels: float) -> torch.Tensor:
    """One level for all keys of a tile."""
    one_each = torch.tensor(levels, dtype=torch.float32, device=kernels.device())
    return one_each.repeat_interleave(BLOCK_N)


def attention(inputs: Inputs, scale: float, dtype: torch.dtype, weights: torch.dtype):
    """What the exercise asks for, by PyTorch in `dtype`, with weights rounded to another dtype."""
    query, key, value = (tensor.to(dtype) for tensor in inputs)
    probabilities = (scale * (query @ key.T)).softmax(1).nan_to_num()  # NaN where all is hidden
    return probabilities.to(weights).to(dtype) @ value


@contextmanager
def memory_behind() -> Iterator[list[torch.Tensor]]:
    """Let what torch.empty gives lie before other memory: a list of it, all ones at first.

    A kernel that writes past the end then breaks a test, and not the process.
    """
    allocate, behind = torch.empty, []

    def empty(*size, **options):
        wanted = allocate(*size, **{**options, "device": "meta"})
        memory = allocate(wanted.numel() + 4 * BLOCK_M * 128, **options)
        behind.append(memory[wanted.numel() :].fill_(1))
        return memory[: wanted.numel()].view(wanted.shape)

    with mock.patch.object(torch, "empty", empty):
        yield behind


def call(student, inputs: Inputs, scale: float = 1.0) -> torch.Tensor:
    return call_and_look_behind(student, inputs, scale)[0]


def call_and_look_behind(student, inputs: Inputs, scale: float) -> tuple[torch.Tensor, bool]:
    """The output, and whether the memory behind what was allocated is as it was."""
    with memory_behind() as behind:
        result = student.tiled_attention(*inputs, scale)
    query = inputs[0]
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = tuple(query.shape), tuple(result.shape)
    assert came == expected, f"The output must have the shape of query, {expected}, and has {came}."
    assert result.device == query.device, (
        f"The output must be on the device of query, {query.device}, and is on {result.device}."
    )
    return result, all((memory == 1).all() for memory in behind)


def is_right(result, inputs: Inputs, scale: float = 1.0, weights=torch.bfloat16) -> bool:
    """Whether a result is as close to the exact one as it should be."""
    query, key, value = inputs
    exact = attention(inputs, scale, torch.float64, torch.float64)
    careful = attention(inputs, scale, torch.float32, weights).to(query.dtype)
    scores = scale * (query.double() @ key.double().T)
    largest_score = scores[scores.isfinite()].abs().max()
    rounding = 4 * EPSILON * (1 + largest_score) * value.abs().max()
    return bool((result - exact).abs().max() <= 2 * (careful - exact).abs().max() + rounding)


def assert_right(student, inputs: Inputs, mistake: str, **options) -> None:
    """Compare with exact attention."""
    result = call(student, inputs, options.get("scale", 1.0))
    assert is_right(result, inputs, **options), mistake


@pytest.fixture(autouse=True)
def computes(student):
    """What goes wrong whatever a test is about is told by all in the same words."""
    assert not call(student, draw(BLOCK_M, BLOCK_N)).isnan().all(), (
        "Every element of the output is NaN: either the kernel stores none, or each row meets 0 / 0, "
        "inf - inf or 0 * inf (the first tile finds the running maximum at -inf, so exp(old_max - new_max) "
        "is 0 there, and its inverse infinite)."
    )


def test_one_tile(student):
    query, key, value = inputs = draw(BLOCK_M, BLOCK_N)
    ones = torch.ones_like(value)
    assert_right(
        student,
        (query, key, ones),
        "The weights of a query do not sum to 1: divide the accumulator by the running sum after the loop.",
    )
    assert_right(
        student,
        inputs,
        "One tile of queries with one of keys is wrong already: the scores are tl.dot(query, "
        "tl.trans(key)) times scale, and the accumulator adds tl.dot(exp(scores - maximum), value).",
    )


def test_several_tiles_of_keys(student):
    assert_right(
        student,
        draw(BLOCK_M, 2 * BLOCK_N),
        f"{BLOCK_N} keys work and {2 * BLOCK_N} do not: loop over all tiles of keys, add the sum and "
        "the product of each to those before it, and divide once only, after the loop.",
    )


def test_several_tiles_of_queries(student):
    assert_right(
        student,
        draw(5 * BLOCK_M, BLOCK_N),
        f"{BLOCK_M} queries work and {5 * BLOCK_M} do not: a program loads and stores the rows "
        "tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), and the grid has one for every tile.",
    )


@pytest.mark.parametrize("lengths", [(64, 320), (320, 64)], ids=str)
def test_unequal_lengths(student, lengths):
    assert_right(
        student,
        draw(*lengths),
        "{} queries with {} keys go wrong: the loop and the mask of keys end at seq_key, the mask of "
        "queries at seq_query.".format(*lengths),
    )


@pytest.mark.parametrize("d", [16, 32, 128])
def test_head_dims(student, d):
    assert_right(
        student,
        draw(BLOCK_M, 3 * BLOCK_N, d=d),
        f"Head dimension 64 works and {d} does not: a row has HEAD_DIM elements, in loads, accumulator "
        "and store.",
    )


def test_scale(student):
    inputs = draw(BLOCK_M, 3 * BLOCK_N)
    scale = 0.3
    result = call(student, inputs, scale)
    assert not is_right(result, inputs, 1.0), "The scale has no effect: multiply the scores by it."
    assert not is_right(result, inputs, scale**2), "The scale is applied twice."
    assert is_right(result, inputs, scale), (
        "A scale of 1 works and 0.3 does not: all scores are multiplied by it, before the maximum is taken."
    )


def test_rising_maximum(student):
    query, key, value = inputs = draw(BLOCK_M, 4 * BLOCK_N, levels=levels_of_tiles(0, 3, 6, 9))
    constant = (query, key, torch.ones_like(value))
    sums = call(student, constant)
    if not is_right(sums, constant):
        # Values of 1 give the accumulator over the sum of the very weights it holds.
        what = "accumulator" if sums.mean() > 1 else "running sum"
        raise AssertionError(
            f"When a later tile raises the maximum, the {what} goes wrong: what it holds is relative to "
            "the old maximum, so multiply it by exp(old_max - new_max) before adding more."
        )
    assert_right(
        student,
        inputs,
        "When a later tile raises the maximum, accumulator and running sum go wrong: both are relative to "
        "the old maximum, so multiply both by exp(old_max - new_max) before adding more.",
    )


@pytest.mark.parametrize("order", ["rise", "fall"])
def test_extreme_scores(student, order):
    steps = levels_of_tiles(-12000, -9000, -6000, -3000)
    inputs = draw(BLOCK_M, 4 * BLOCK_N, levels=steps if order == "rise" else -steps)
    inputs[1][:, 1:] = 0.0  # within a tile all scores are the same, whatever the scale
    assert_right(
        student,
        inputs,
        f"Scores in the thousands, which {order} from tile to tile, go wrong: subtract the largest score "
        "so far (starting at -inf, and scaled as the scores are) before the exponential.",
        scale=0.5,
    )


@pytest.mark.parametrize("seq_key", [1, 31, 33, 100])
def test_last_keys(student, seq_key):
    inputs = draw(BLOCK_M, seq_key)
    assert not call(student, inputs).isnan().any(), (
        f"With seq_key = {seq_key} the last tile is not full, and the output is NaN: load keys and values "
        "with a mask and other=0.0, because behind them may lie anything, and 0 * NaN is NaN."
    )
    assert_right(
        student,
        inputs,
        f"With seq_key = {seq_key} the last tile is not full, and goes wrong: the loop must reach it, and "
        "as a key loaded as zeros has score 0, whose exponential is not 0, tl.where must put -inf in place "
        "of the scores past the end.",
    )


@pytest.mark.parametrize("seq_query", [1, 63, 65, 100])
def test_last_queries(student, seq_query):
    inputs = draw(seq_query, 2 * BLOCK_N)
    result, untouched = call_and_look_behind(student, inputs, scale=1.0)
    assert untouched, (
        f"With seq_query = {seq_query} the output ends within the last tile, and the kernel writes on "
        "behind it: store with mask=rows[:, None] < seq_query."
    )
    assert is_right(result, inputs), (
        f"With seq_query = {seq_query} the last tile is not full, and the output is wrong: rows that there "
        "are must be loaded and stored, and the grid has triton.cdiv(seq_query, BLOCK_M) programs."
    )


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, elsewhere in memory."""
    rows, columns = tensor.shape
    memory = {
        "every second row": tensor.new_zeros(2 * rows, columns)[::2],
        "every second column": tensor.new_zeros(rows, 2 * columns)[:, ::2],
        "transposed": tensor.new_zeros(columns, rows).T,
    }[layout]
    return memory.copy_(tensor)


@pytest.mark.parametrize("layout", ["every second row", "every second column", "transposed"])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_strides(student, name, layout):
    inputs = dict(zip(("query", "key", "value"), draw(BLOCK_M, 3 * BLOCK_N), strict=True))
    inputs[name] = lay_out(inputs[name], layout)
    row_stride, column_stride = inputs[name].stride()
    assert_right(
        student,
        tuple(inputs.values()),
        f"A {name} whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: its element (row, column) is at row * {name}_strides[0] + column * "
        f"{name}_strides[1].",
    )


@each_16_bit_dtype
def test_16_bit_inputs(student, dtype):
    query, key, value = (tensor.to(dtype) for tensor in draw(BLOCK_M, 3 * BLOCK_N))
    try:
        call(student, (query, key, value))
    except Exception as error:
        raise AssertionError(
            f"float32 works and {dtype} does not: tl.dot multiplies two tiles of one dtype, so convert the "
            "exponentials, which are float32, with .to(value.dtype) just for the product."
        ) from error
    assert_right(
        student,
        (query, key, value),
        f"float32 works and {dtype} does not: only what goes into tl.dot and into the output may be 16 "
        "bits wide; scores, maxima, sums and accumulator are float32.",
        weights=dtype,
    )


@each_16_bit_dtype
def test_scores_in_float32(student, dtype):
    inputs = draw(BLOCK_M, BLOCK_N, levels=levels_of_tiles(150))
    query, key, value = (tensor.to(dtype) for tensor in inputs)
    # Scores around 45, and large products of which each nearly undoes the next.
    query[:, 1] = 1.5 + query[:, 1]
    query[:, 2] = -query[:, 1] + query[:, 2]
    key[:, 1] *= 50
    key[:, 2] = key[:, 1]
    assert_right(
        student,
        (query, key, value),
        f"{dtype} lost more than rounding weights and output costs: the scores must be float32 when they "
        "come from tl.dot, are scaled and go into the exponential, and the query must go into "
        "tl.dot as it was loaded, because query * scale would be rounded.",
        scale=0.3,
        weights=dtype,
    )


def test_accumulates_in_float32(student):
    seq_key = 64 * BLOCK_N
    query, key, value = (tensor.half() for tensor in draw(BLOCK_M, seq_key, d=16))
    key.zero_()
    value += 100.0
    assert_right(
        student,
        (query, key, value),
        f"{seq_key} keys of equal weight, with values around 100 in float16, go wrong: their sum is beyond "
        "what float16 can hold, so accumulate in float32 and convert when storing.",
        weights=torch.float16,
    )


def test_float32_inputs(student):
    assert_right(
        student,
        draw_float32(BLOCK_M, 3 * BLOCK_N),
        "Of float32 inputs only 11 bits or fewer counted: ask tl.dot for input_precision='ieee', because "
        "by default a GPU rounds float32 to TF32, and convert nothing to a smaller dtype.",
        weights=torch.float32,
    )


HIDDEN = -torch.inf


@pytest.mark.parametrize("where", ["the first tile", "the second tile", "every second key"])
def test_hidden_keys(student, where):
    levels = {
        "the first tile": levels_of_tiles(HIDDEN, 9, 0),
        "the second tile": levels_of_tiles(9, HIDDEN, 0),
        "every second key": levels_of_tiles(9, 0, 0),
    }[where]
    if where == "every second key":
        levels[1::2] = HIDDEN
    inputs = draw(BLOCK_M, 3 * BLOCK_N, levels=levels)
    assert not call(student, inputs).isnan().any(), (
        f"If the scores of {where} are -inf, the output is NaN: while all scores so far are -inf, so is "
        "the maximum, and -inf - -inf is NaN, so subtract tl.where(new_max == float('-inf'), 0.0, new_max)."
    )
    assert_right(
        student,
        inputs,
        f"If the scores of {where} are -inf, the output is wrong: their weights must be 0, as the "
        "exponential of -inf is.",
    )


@pytest.mark.parametrize("case", ["all scores are -inf", "there are no keys"])
def test_no_visible_key(student, case):
    levels = levels_of_tiles(HIDDEN, HIDDEN) if "-inf" in case else levels_of_tiles()
    result = call(student, draw(BLOCK_M, len(levels), levels=levels))
    assert (result == 0).all(), (
        f"Where {case}, the output must be 0: the running sum is 0 after the loop, so divide by 1 in its "
        "place, and mind that -inf - -inf and 0 / 0 are NaN."
    )


def test_memory_traffic(student):
    seq_query, seq_key = 3 * BLOCK_M, 10 * BLOCK_N
    inputs = draw(seq_query, seq_key, d=16)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, inputs)
    for name, tensor in zip(("key", "value"), inputs[1:], strict=True):
        loaded = sum(
            buffer.loaded for (_, pointer), buffer in counted.buffers.items() if pointer == name
        )
        times = loaded / (tensor.numel() * tensor.element_size())
        assert times >= 0.99, (
            f"Your kernel reads {name} {times:.1f} times through {name}_ptr: it must read all of it, and "
            "compute the output itself, instead of getting what PyTorch has computed."
        )
        assert times <= 3, (
            f"{name} is loaded {times:.1f} times for {seq_query} queries and may be loaded 3 times, once "
            f"for each tile of {BLOCK_M}: go over the keys in one loop only."
        )
    for (_, pointer), buffer in counted.buffers.items():
        assert buffer.stored < 2 * seq_query * seq_key, (
            f"Your kernel writes {buffer.stored} bytes to {pointer}, room for all {seq_query} x {seq_key} "
            "scores: they must never be in memory, only one tile at a time in the program."
        )


@each_16_bit_dtype
def test_output_dtype(student, dtype):
    result = call(student, tuple(tensor.to(dtype) for tensor in draw(BLOCK_M, BLOCK_N)))
    assert result.dtype == dtype, (
        f"Inputs in {dtype} gave an output in {result.dtype}: allocate it with dtype=query.dtype."
    )


def test_inputs_unchanged(student):
    inputs = draw(BLOCK_M, BLOCK_N)
    before = [tensor.clone() for tensor in inputs]
    call(student, inputs, 0.5)
    for name, tensor, copy in zip(("query", "key", "value"), inputs, before, strict=True):
        assert torch.equal(tensor, copy), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
