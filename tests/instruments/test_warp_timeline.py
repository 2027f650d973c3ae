"""The runs of the figure WarpTimeline: what the simulator gives, and what must hold in each."""

import json
from collections import Counter

import pytest

from instruments.warp_timeline import (
    DOES,
    RECORDED,
    TILES,
    as_json,
    design_of,
    simulated,
    timelines,
)

# The first test holds that this is what the simulator gives.
RUNS = json.loads(RECORDED.read_text("utf-8"))["runs"]
WORK, PRODUCTS = DOES.index("work"), DOES.index("products")
QUERY, KEY, VALUE = range(3)
# Of what an SM's 227 KiB hold, the barriers included.
LARGEST_SHARED = 227 * 1024
SWITCHES = ("head_dim", "loader", "stages", "overlap", "pingpong")


def name(run):
    return ", ".join(f"{key} {run[key]}" for key in SWITCHES)


def test_the_figures_own_file_is_what_the_simulator_gives():
    """Else: ``python -m instruments.warp_timeline``."""
    runs = timelines()
    recorded = RECORDED.read_text("utf-8")
    assert recorded == as_json(runs)
    assert json.loads(recorded) == runs
    assert len(recorded) < 150_000  # small enough for a page


def test_there_is_a_run_for_every_setting():
    found = {tuple(run[key] for key in SWITCHES) for run in RUNS}
    assert len(found) == len(RUNS) == 2 * 3 * 3 * 3  # alone has no pingpong: 3 of 4
    assert not any(run["pingpong"] for run in RUNS if run["loader"] == "alone")


def test_its_times_are_the_traces_of_a_design_that_fits():
    for run in RUNS:
        if run["overlap"] != "maximum" or run["pingpong"]:
            continue  # they differ in order, not in what is recorded or in memory
        trace = simulated(run)
        assert trace.shared_bytes <= LARGEST_SHARED, name(run)
        assert run["cycles"] == round(trace.cycles), name(run)
        busy, spans = Counter(), Counter()
        for span in trace.trace:
            busy[span.lane] += span.end - span.start
            spans[span.lane] += 1
        lengths = {
            "tensor cores": sum(row[5] - row[4] for row in run["products"]),
            "exponential unit": sum(row[3] - row[2] for row in run["exponentials"]),
            "copy engine": sum(row[5] - row[4] for row in run["copies"])
            + sum(row[3] - row[2] for row in run["stores"]),
        }
        for unit, length in lengths.items():
            # Both ends of each span are rounded to whole cycles.
            assert length == pytest.approx(busy[unit], abs=spans[unit]), name(run)


def test_each_product_reads_a_tile_that_is_there():
    for run in RUNS:
        for consumer, of_values, tile, issued, start, end in run["products"]:
            pair = [row for row in run["copies"] if row[0] == KEY + of_values and row[2] == tile]
            assert len(pair) == 1, name(run)
            *_, landed, released = pair[0]
            assert landed <= issued <= start < end <= released, name(run)
            own = [row for row in run["copies"] if row[:2] == [QUERY, consumer]]
            assert own[0][6] <= issued and end <= own[0][7], name(run)


def uses_of(run, slot):
    """What a slot holds, use by use: its rows of K and V by tensor."""
    uses = []
    for row in run["copies"]:
        if row[0] == QUERY or row[1] != slot:
            continue
        if not uses or row[0] in uses[-1] or row[3] >= uses[-1][max(uses[-1])][7]:
            uses.append({})
        uses[-1][row[0]] = row
    return uses


def test_a_slot_holds_the_pair_of_one_step_at_a_time():
    for run in RUNS:
        steps = {}
        for slot in range(run["stages"]):
            uses = uses_of(run, slot)
            for place, use in enumerate(uses):
                steps[slot + place * run["stages"]] = {
                    tensor: row[2] for tensor, row in use.items()
                }
                assert len({row[7] for row in use.values()}) == 1, name(run)
            for one, following in zip(uses, uses[1:], strict=False):
                released = max(row[7] for row in one.values())
                assert released <= min(row[3] for row in following.values()), name(run)
        first, last = {KEY: TILES - 1}, {VALUE: 0}
        between = [{KEY: tile, VALUE: tile + 1} for tile in range(TILES - 2, -1, -1)]
        assert [steps[step] for step in sorted(steps)] == [first, *between, last], name(run)


def test_a_partition_does_one_thing_at_a_time():
    for run in RUNS:
        design = design_of(run)
        assert len(run["partitions"]) == design.consumers + design.specialized, name(run)
        for rows in run["partitions"]:
            assert all(start < end for _, start, end, *_ in rows), name(run)
            ends, starts = [row[2] for row in rows], [row[1] for row in rows]
            pairs = zip(ends, starts[1:], strict=False)
            assert all(end <= start for end, start in pairs), name(run)
            assert ends[-1] <= run["cycles"], name(run)


def test_a_wait_at_a_ring_ends_when_all_of_it_has_landed_or_is_released():
    for run in RUNS:
        found = Counter()
        for rows in run["partitions"]:
            for does, _, end, *rest in rows:
                ring, _, side = DOES[does].partition(".")
                if not side:
                    continue
                slot, phase = rest
                if ring == "pairs":
                    copies = [*uses_of(run, slot)[phase].values()]
                else:
                    copies = [row for row in run["copies"] if row[:2] == [QUERY, slot]]
                assert max(row[6 if side == "full" else 7] for row in copies) == end, name(run)
                found[ring, side] += 1
        assert found["queries", "full"], name(run)
        # Who loads alone asks for the first keys after the queries; one slot lets nothing arrive ahead.
        if run["loader"] == "alone" or run["stages"] == 1:
            assert found["pairs", "full"], name(run)
        if run["loader"] == "producer":
            assert found["pairs", "empty"], name(run)


def in_flight_with_own_output(run, consumer, spans):
    """Cycles of spans, [start, end] each, in which the consumer's product with V is in flight."""
    return sum(
        max(0, min(end, done) - max(start, issued))
        for start, end in spans
        for *of, _, issued, _, done in run["products"]
        if of == [consumer, 1]
    )


def test_overlap_is_what_puts_the_softmax_or_its_maximum_under_the_product_with_v():
    for run in RUNS:
        working = exponentials = 0
        for consumer, rows in enumerate(run["partitions"][run["loader"] == "producer" :]):
            work = [row[1:3] for row in rows if row[0] == WORK]
            working += in_flight_with_own_output(run, consumer, work)
            own = [row[2:] for row in run["exponentials"] if row[0] == consumer]
            exponentials += in_flight_with_own_output(run, consumer, own)
        assert (working > 0) == (run["overlap"] != "none"), name(run)
        if run["overlap"] != "softmax":
            assert exponentials == 0, name(run)
        elif (
            run["head_dim"] == 128
        ):  # three consumers may find the exponential unit busy until then
            assert exponentials > 0, name(run)


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
        assert len(together) == (TILES - 1) * design_of(run).consumers, name(run)
        if run["pingpong"]:
            assert all(together), name(run)
        elif run["stages"] == 1:  # all wait for the same pair, and go on at once
            assert not all(together), name(run)


def test_exponentials_are_of_scores_that_are_there():
    for run in RUNS:
        for consumer in range(design_of(run).consumers):
            scores = [row for row in run["products"] if row[:2] == [consumer, 0]]
            own = [row for row in run["exponentials"] if row[0] == consumer]
            assert [row[1] for row in own] == [row[2] for row in scores], name(run)
            assert [*range(TILES - 1, -1, -1)] == [row[1] for row in own], name(run)
            for product, exponentials in zip(scores, own, strict=True):
                assert product[5] <= exponentials[2], name(run)


def test_work_says_whose_softmax_it_is():
    """Every softmax comes after the wait for its scores, and holds its exponentials.

    So the rescaling, which runs while the scores of the next tile are in flight, is not that tile's.
    """
    for run in RUNS:
        for consumer, rows in enumerate(run["partitions"][run["loader"] == "producer" :]):
            work = [row[1:] for row in rows if row[0] == WORK]
            tiles = [tile for *_, tile in work]
            assert sorted(set(tiles)) == list(range(-1, TILES)), name(run)
            assert tiles == sorted(tiles, reverse=True), name(run)
            assert sum(row[0] == PRODUCTS for row in rows) >= TILES, name(run)
            ready = {row[2]: row[5] for row in run["products"] if row[:2] == [consumer, 0]}
            assert all(tile < 0 or ready[tile] <= start for start, _, tile in work), name(run)
            for _, tile, *times in [row for row in run["exponentials"] if row[0] == consumer]:
                own = [[start, end] for start, end, of in work if of == tile]
                assert any(start <= times[0] and times[1] <= end for start, end in own), name(run)
