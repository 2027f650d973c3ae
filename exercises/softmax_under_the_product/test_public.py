"""The public tests of `softmax_under_the_product`. A failing one says what is probably wrong.

The kernel runs on the simulator, which needs no GPU. It lets copies, products and partitions take random
times, and watches what each may rely on: a race, or a result used before its time, shows in every run that
comes by it, a deadlock at once. `student` holds the learner's kernel. Its results are filled with NaN
before. Unless a test is about them, scores fall from tile to tile, and no tile is ragged.

Expected values and the errors allowed come from the book's oracle, `kernels.reference`, in float64.
"""

import functools
import math

import pytest
import torch

from exercises.simulation import in_plain_words, tiles_of
from instruments.gluon_simulator import HopperClock, InFlight, Run, SimulationError, simulate
from instruments.gluon_simulator.clocks import COPIES, EXPONENTIALS, FLOAT32, TENSOR_CORES
from kernels import reference

BLOCK, HEAD_DIM = 64, 64
SCALE = 1 / math.sqrt(HEAD_DIM)
# Tensor cores so slow that all else ends long before what they do: what starts under a product ends there.
SLOW_PRODUCTS = HopperClock({TENSOR_CORES: 8, EXPONENTIALS: 16, FLOAT32: 128, COPIES: 32})


@functools.cache
def draw(seq_query: int, seq_key: int, rising: bool) -> tuple[torch.Tensor, ...]:
    """Query, key and value, (1, 1, rows, HEAD_DIM), whose scores fall or rise from tile to tile."""
    generator = torch.Generator().manual_seed(seq_key)
    query, key, value = (
        torch.randn(1, 1, rows, HEAD_DIM, generator=generator)
        for rows in (seq_query, seq_key, seq_key)
    )
    # A column of ones in the queries: what the keys have there is added to their scores.
    tile = torch.arange(seq_key) // BLOCK
    query[..., 0] = 1
    key[..., 0] = (tile if rising else -tile) / SCALE
    return query.half(), key.half(), value.half()


@functools.cache
def oracle(seq_query: int, seq_key: int, rising: bool) -> tuple[torch.Tensor, reference.Errors]:
    """The output, and the error allowed."""
    given = draw(seq_query, seq_key, rising)
    return reference.attention(*given), reference.error_budget(*given)


def launch(student, inputs, **options) -> tuple[Run, torch.Tensor, torch.Tensor]:
    """Simulate the kernel; the run, the output and the logsumexp."""
    seq_query = inputs[0].shape[2]
    output = torch.full((seq_query, HEAD_DIM), torch.nan, dtype=torch.float16)
    logsumexp = torch.full((seq_query,), torch.nan)
    descriptors = [tiles_of(matrix[0, 0]) for matrix in inputs]
    done = simulate(
        student.attention_kernel,
        (-(-seq_query // BLOCK),),
        *descriptors,
        output,
        logsumexp,
        SCALE * math.log2(math.e),
        **options,
    )
    return done, output, logsumexp


def is_unwritten(student) -> bool:
    """Whether nobody waits even for the only tile of keys."""
    try:
        launch(student, draw(BLOCK, BLOCK, rising=False))
    except InFlight as error:
        return "TMA copy into keys" in str(error)
    except SimulationError:
        return False
    return False


def run(student, tiles: int, **options) -> Run:
    """Attention of a tile of queries over so many whole tiles of keys, whose scores fall."""
    return attend(student, BLOCK, tiles * BLOCK, **options)[0]


def attend(
    student, seq_query: int, seq_key: int, rising=False, **options
) -> tuple[Run, torch.Tensor]:
    """Attention, with its output checked; the run and the logsumexp."""
    tiles = -(-seq_key // BLOCK)
    case = f"With {tiles} tile{'s' if tiles > 1 else ''}"
    try:
        done, output, logsumexp = launch(student, draw(seq_query, seq_key, rising), **options)
    except SimulationError as error:
        assert not is_unwritten(student), "No tile is dealt with: write the consumer's loop."
        raise AssertionError(f"{case}: {in_plain_words(error)}") from None
    expected, allowed = oracle(seq_query, seq_key, rising)
    assert reference.errors(output[None, None], expected).within(allowed), (
        f"{case}, the output is wrong, though nothing raced: does each softmax get the number of its tile, "
        "and each product the weights and the values of one tile; is the output so far rescaled once a "
        "tile, and is the product of the last tile added?"
    )
    return done, logsumexp


def test_one_tile(student):
    run(student, 1)


def test_two_tiles(student):
    run(student, 2)


@pytest.mark.parametrize("tiles", [3, 5])
def test_many_tiles(student, tiles):
    run(student, tiles)


def test_rising_scores(student):
    attend(student, BLOCK, 3 * BLOCK, rising=True)


def test_ragged_end(student):
    attend(student, 100, 2 * BLOCK + 24)


def test_logsumexp(student):
    _, logsumexp = attend(student, BLOCK, 3 * BLOCK)
    given = draw(BLOCK, 3 * BLOCK, rising=False)
    _, expected = reference.attention(*given, return_logsumexp=True)
    errors = reference.errors(logsumexp[None, None], expected)
    assert errors.within(reference.logsumexp_budget(*given)), (
        "The logsumexp is wrong: take every tile's scores into the running maxima and sums once."
    )


@pytest.mark.parametrize("seed", range(1, 5))
def test_any_timing(student, seed):
    run(student, 4, seed=seed)


@pytest.mark.parametrize("tiles", [1, 3])
def test_releases_every_slot(student, tiles):
    done = run(student, tiles)
    for ring in ("keys", "values"):
        released = sum(
            span.name == "phase" and span.lane.startswith(f"{ring}.empty") for span in done.trace
        )
        assert released == tiles, (
            f"Of {tiles} tiles of {ring} {released} were released: release each, the last one too, or "
            "whoever uses the ring next waits for ever."
        )


def test_softmax_under_the_product(student):
    tiles = 5
    done = run(student, tiles, clock=SLOW_PRODUCTS)
    products = [
        span for span in done.trace if span.name == "wgmma" and span.buffer.startswith("values")
    ]
    softmaxes = [span for span in done.trace if span.name == "exp2"]
    under = sum(
        any(product.start <= softmax.start and softmax.end <= product.end for product in products)
        for softmax in softmaxes
    )
    assert under >= tiles - 1, (
        f"Of {tiles} softmaxes {under} run while a product with values is in flight, and {tiles - 1} can: "
        "start the product of the tile before, wait for the scores alone, compute their softmax, and only "
        "then wait for the product."
    )
