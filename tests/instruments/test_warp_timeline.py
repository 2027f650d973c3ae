"""The runs of the figure WarpTimeline: what the simulator gives, and what must hold in each."""

import json
from collections import Counter

import pytest

from instruments.warp_timeline import (
    DOES,
    RECORDED,
    TENSORS,
    TILES,
    as_json,
    design_of,
    settings,
    simulated,
    timeline,
    timelines,
)

RUNS = timelines()["runs"]
WORK, PRODUCTS = DOES.index("work"), DOES.index("products")
# Of what an SM's 227 KiB hold, the barriers included.
LARGEST_SHARED = 227 * 1024


def name(run):
    switches = [key for key in ("overlap", "pingpong") if run[key]]
    return f"{run['head_dim']} {run['loader']} {run['stages']} {' '.join(switches)}"


every_run = pytest.mark.parametrize("run", RUNS, ids=name)


def test_the_figures_own_file_is_what_the_simulator_gives():
    """Else: ``python -m instruments.warp_timeline``."""
    assert RECORDED.read_text("utf-8") == as_json()
    assert json.loads(as_json()) == json.loads(json.dumps(timelines()))


def test_it_stays_small_enough_for_a_page():
    assert len(json.dumps(timelines())) < 150_000


def test_there_is_a_run_for_every_setting():
    keys = ("head_dim", "loader", "stages", "overlap", "pingpong")
    found = {tuple(run[key] for key in keys) for run in RUNS}
    assert len(found) == len(RUNS) == 2 * 3 * 2 * 3  # alone has no pingpong: 3 of 4
    assert not any(run["pingpong"] for run in RUNS if run["loader"] == "alone")


@every_run
def test_its_times_are_the_traces(run):
    trace = simulated(run)
    busy = Counter()
    for span in trace.trace:
        busy[span.lane] += span.end - span.start
    assert run["cycles"] == round(trace.cycles)
    lengths = {
        "tensor cores": sum(row[5] - row[4] for row in run["products"]),
        "exponential unit": sum(row[3] - row[2] for row in run["exponentials"]),
        "copy engine": sum(row[5] - row[4] for row in run["copies"])
        + sum(row[3] - row[2] for row in run["stores"]),
    }
    for unit, length in lengths.items():
        # Both ends of each span are rounded to whole cycles.
        spans = sum(span.lane == unit for span in trace.trace)
        assert length == pytest.approx(busy[unit], abs=spans)


@every_run
def test_each_product_reads_a_tile_that_is_there(run):
    for consumer, of_values, tile, issued, start, end in run["products"]:
        copies = [row for row in run["copies"] if row[0] == 1 + of_values and row[2] == tile]
        assert len(copies) == 1
        *_, landed, released = copies[0]
        assert landed <= issued <= start < end <= released
        own = [row for row in run["copies"] if row[0] == 0 and row[1] == consumer]
        assert own[0][6] <= issued


@every_run
def test_a_slot_holds_one_tile_at_a_time(run):
    for tensor in (1, 2):
        for slot in range(run["stages"]):
            held = [row for row in run["copies"] if row[:2] == [tensor, slot]]
            assert [row[2] for row in held] == list(range(TILES - 1 - slot, -1, -run["stages"]))
            for one, following in zip(held, held[1:], strict=False):
                assert one[7] <= following[3]


@every_run
def test_a_partition_does_one_thing_at_a_time(run):
    design = design_of(run)
    assert len(run["partitions"]) == design.consumers + design.specialized
    for rows in run["partitions"]:
        assert all(start < end for _, start, end, *_ in rows)
        ends, starts = [row[2] for row in rows], [row[1] for row in rows]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        assert ends[-1] <= run["cycles"]


@every_run
def test_a_wait_at_a_ring_ends_when_its_tile_has_landed_or_is_released(run):
    found = 0
    for rows in run["partitions"]:
        for does, _, end, *rest in rows:
            tensor, _, side = DOES[does].partition(".")
            if side:
                slot, phase = rest
                uses = [row for row in run["copies"] if row[:2] == [TENSORS.index(tensor), slot]]
                assert uses[phase][6 if side == "full" else 7] == end
                found += 1
    assert found


@every_run
def test_overlap_is_what_puts_the_softmax_under_its_own_products(run):
    under = 0
    for consumer, rows in enumerate(run["partitions"][run["loader"] == "producer" :]):
        for does, start, end, *_ in rows:
            for product in run["products"]:
                if does == WORK and product[0] == consumer:
                    under += max(0, min(end, product[5]) - max(start, product[4]))
    assert (under > 0) == run["overlap"]


def steps_in_one_piece(run):
    """Of each step with two products: whether a consumer issues both with no other's between."""
    issued = sorted(run["products"], key=lambda row: row[3])
    return [
        following[:2] == [row[0], 1]
        for row, following in zip(issued, issued[1:], strict=False)
        if row[1] == 0 and row[2] < TILES - 1
    ]


def test_pingpong_is_what_keeps_a_consumers_products_together():
    for run in RUNS:
        if run["loader"] == "alone":
            continue
        together = steps_in_one_piece(run)
        assert len(together) == (TILES - 1) * design_of(run).consumers
        if run["pingpong"]:
            assert all(together)
        elif run["head_dim"] == 128:
            assert not all(together)


@every_run
def test_exponentials_are_of_scores_that_are_there(run):
    for consumer in range(design_of(run).consumers):
        scores = [row for row in run["products"] if row[:2] == [consumer, 0]]
        own = [row for row in run["exponentials"] if row[0] == consumer]
        assert [row[1] for row in own] == [row[2] for row in scores]
        assert [*range(TILES - 1, -1, -1)] == [row[1] for row in own]
        for product, exponentials in zip(scores, own, strict=True):
            assert product[5] <= exponentials[2]


@every_run
def test_the_design_fits_into_shared_memory(run):
    assert simulated(run).shared_bytes <= LARGEST_SHARED


def test_work_says_whose_softmax_it_is():
    run = timeline(next(settings()))
    tiles = [row[3] for row in run["partitions"][0] if row[0] == WORK]
    assert sorted(set(tiles)) == list(range(-1, TILES))
    assert tiles == sorted(tiles, reverse=True)
    # Without overlap every softmax comes after a wait for the products.
    assert sum(row[0] == PRODUCTS for row in run["partitions"][0]) >= TILES
