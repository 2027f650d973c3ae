"""The public tests of `ring_of_tiles`. A failing one says in a sentence what is probably wrong.

The kernel runs on the simulator, which needs no GPU. It lets copies, products and partitions take random
times, and watches what each may rely on: a race or a misused barrier shows in every run that comes by it,
a deadlock at once. `student` holds the learner's kernel. Its result is filled with NaN before.

Products of float16 numbers are exact in float32, so a result is off by the rounding of its sums alone: at
most one unit in the last place an addition, of the sum of magnitudes.
"""

from collections import Counter

import pytest
import torch

from exercises.simulation import in_plain_words, tiles_of
from instruments.gluon_simulator import HopperClock, Run, SimulationError, simulate

SIDE = 64  # of the tiles


def run(student, tiles: int, stages: int, **options) -> Run:
    """Multiply matrices of so many tiles through so many slots, and check the product."""
    return check(student, (SIDE, SIDE, tiles * SIDE), stages, **options)


def check(student, sides: tuple[int, int, int], stages: int, **options) -> Run:
    rows, columns, depth = sides
    generator = torch.Generator().manual_seed(depth)
    left = torch.randn(rows, depth, generator=generator).half()
    right = torch.randn(columns, depth, generator=generator).half()
    product = torch.full((rows, columns), torch.nan)
    given = tiles_of(left), tiles_of(right), product
    programs = -(-rows // SIDE)
    case = f"With {count(-(-depth // SIDE), 'tile')} and {count(stages, 'slot')}"
    try:
        done = simulate(student.product_kernel, (programs,), *given, STAGES=stages, **options)
    except SimulationError as error:
        raise AssertionError(f"{case}: {in_plain_words(error)}") from None
    assert any(span.name == "wgmma" for span in done.trace), (
        "No tile is multiplied: write the loops of producer and consumer."
    )
    assert not product.isnan().any(), (
        f"{case}, the product has NaN: a product was started on a slot to which nothing was copied."
    )
    left, right = left.double(), right.double()
    allowed = depth * torch.finfo(torch.float32).eps * (left.abs() @ right.abs().T)
    assert ((product - left @ right.T).abs() <= allowed).all(), (
        f"{case}, the product is wrong, though nothing raced: are all tiles of left and right copied, from "
        "the right rows and columns, and multiplied once each?"
    )
    return done


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_one_tile(student, stages):
    run(student, 1, stages)


@pytest.mark.parametrize("stages", [2, 3])
def test_every_slot_once(student, stages):
    run(student, stages, stages)


@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_one_slot(student, tiles):
    run(student, tiles, 1)


@pytest.mark.parametrize("tiles", [3, 5, 9])
def test_two_slots(student, tiles):
    run(student, tiles, 2)


@pytest.mark.parametrize("tiles", [4, 8])
def test_three_slots(student, tiles):
    run(student, tiles, 3)


@pytest.mark.parametrize("seed", range(1, 7))
def test_any_timing(student, seed):
    run(student, 5, 2, seed=seed)


def test_ragged_sides(student):
    check(student, (100, 40, 200), 2)


@pytest.mark.parametrize("stages", [1, 3])
def test_releases_every_slot(student, stages):
    tiles = 4
    done = run(student, tiles, stages)
    released = sum(span.name == "phase" and span.lane[:5] == "empty" for span in done.trace)
    assert released == tiles, (
        f"Of {tiles} tiles {released} were released: arrive at empty after each, the last ones too, or "
        "whoever uses the ring next waits for ever."
    )


@pytest.mark.parametrize("stages", [2, 3])
def test_runs_ahead(student, stages):
    tiles = 6
    done = run(student, tiles, stages, clock=HopperClock())
    copied, multiplied = (
        Counter(),
        Counter(),
    )  # per tile: when its copies start, when its product ends
    for span in done.trace:
        if span.name == "fill":
            copied[span.tile[1] // SIDE] = max(copied[span.tile[1] // SIDE], span.start)
        if span.name == "wgmma":
            multiplied[span.tile[1] // SIDE] = span.end
    for tile in range(tiles - stages + 1):
        ahead = tile + stages - 1
        assert copied[ahead] < multiplied[tile], (
            f"With {stages} slots, the copies of tile {ahead} start only after the product of tile {tile}, "
            "though their slot is free: use all slots, and let the producer wait for no other than its own."
        )
