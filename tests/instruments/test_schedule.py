"""The model of programs on multiprocessors against counting by hand, score by score."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.schedule import MERGE, OVERHEAD, greedy_schedule, programs, split_range

SIZES = {"block_m": 16, "block_n": 8}


def visible(row, column, seq_query, seq_key, causal):
    return not causal or column <= row + seq_key - seq_query


def tiles_with_a_visible_score(tile, columns, seq_query, seq_key, block_m, block_n, causal):
    """Tiles of keys among `columns` (tiles) in which this tile of queries sees anything."""
    rows = range(tile * block_m, min((tile + 1) * block_m, seq_query))
    return sum(
        any(
            visible(row, column, seq_query, seq_key, causal)
            for row in rows
            for column in range(key_tile * block_n, min((key_tile + 1) * block_n, seq_key))
        )
        for key_tile in columns
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "lengths", [(64, 64), (61, 47), (1, 50), (50, 1), (20, 70), (70, 20)], ids=str
)
@pytest.mark.parametrize("splits", [1, 3, 16])
def test_a_program_visits_the_tiles_with_something_to_see(lengths, splits, causal):
    seq_query, seq_key = lengths
    key_tiles = -(-seq_key // SIZES["block_n"])
    launch = programs(1, 2, *lengths, causal=causal, splits=splits, **SIZES)
    for program in launch:
        columns = range(*split_range(key_tiles, splits, program.split))
        wanted = tiles_with_a_visible_score(
            program.query_tile, columns, *lengths, SIZES["block_m"], SIZES["block_n"], causal
        )
        assert program.tiles == wanted
        assert program.steps == wanted + OVERHEAD + (MERGE if splits > 1 else 0)


@given(key_tiles=st.integers(1, 300), splits=st.integers(1, 130))
def test_splits_share_the_tiles_in_equal_runs(key_tiles, splits):
    ranges = [split_range(key_tiles, splits, split) for split in range(splits)]
    assert [tile for run in ranges for tile in range(*run)] == list(range(key_tiles))
    lengths = [end - start for start, end in ranges]
    assert max(lengths) == -(-key_tiles // splits)
    full = [length for length in lengths if length == lengths[0]]
    assert lengths[: len(full)] == full and sum(length > 0 for length in lengths[len(full) :]) <= 1


def places(launch):
    return [(program.batch_head, program.query_tile, program.split) for program in launch]


def test_the_two_orders():
    options = {"splits": 2, "causal": True, **SIZES}
    first = programs(1, 2, 40, 40, order="first", **options)
    longest = programs(1, 2, 40, 40, order="longest", **options)
    ranges = range(2), range(2), range(3)
    assert places(first) == [(h, tile, split) for split, h, tile in itertools.product(*ranges)]
    assert places(longest) == [
        (head, tile, split) for split in (0, 1) for tile in (2, 1, 0) for head in (0, 1)
    ]
    one_split = programs(2, 2, 1000, 1300, causal=True, order="longest", **SIZES)
    steps = [program.steps for program in one_split]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("causal", [False, True])
def test_a_program_a_head_does_the_work_of_all_its_tiles(causal):
    by_tile = programs(2, 3, 61, 47, causal=causal, **SIZES)
    by_head = programs(2, 3, 61, 47, causal=causal, parallel="heads", **SIZES)
    assert len(by_head) == 6 and {program.query_tile for program in by_head} == {None}
    for program in by_head:
        own = [each.tiles for each in by_tile if each.batch_head == program.batch_head]
        assert program.tiles == sum(own) and program.steps == sum(own) + OVERHEAD


def test_a_schedule_worked_out_by_hand():
    """Two SMs; 3 and 1 start at once, 4 follows the 1, 1 follows the 3, 2 follows that."""
    schedule = greedy_schedule([3, 1, 4, 1, 2], 2)
    assert schedule.starts == [0, 0, 1, 3, 4]
    assert schedule.ends == [3, 1, 5, 4, 6]
    assert schedule.sms == [0, 1, 1, 0, 0]
    assert (schedule.makespan, schedule.tail_start, schedule.waves) == (6, 5, 2.5)
    assert schedule.utilisation == 11 / 12
    assert [schedule.busy_at(time) for time in (0, 4, 5, 6)] == [2, 2, 1, 0]


def test_programs_spread_over_the_sms_before_they_share_one():
    schedule = greedy_schedule([5] * 5, 3, slots=2)
    assert schedule.sms == [0, 1, 2, 0, 1]
    assert schedule.makespan == 5 and schedule.utilisation == 5 / 6


costs_strategy = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(costs=costs_strategy, sm_count=st.integers(1, 9), slots=st.integers(1, 2))
def test_what_every_greedy_schedule_keeps(costs, sm_count, slots):
    schedule = greedy_schedule(costs, sm_count, slots)
    lanes = sm_count * slots
    assert [end - start for start, end in zip(schedule.starts, schedule.ends, strict=True)] == costs
    assert schedule.starts == sorted(schedule.starts)
    assert sum(schedule.slot_ends) == sum(costs)
    for time in range(schedule.makespan):
        running = [
            sm
            for start, end, sm in zip(schedule.starts, schedule.ends, schedule.sms, strict=True)
            if start <= time < end
        ]
        assert all(running.count(sm) <= slots for sm in running)
        assert len(running) == schedule.busy_at(time)
        if time < schedule.tail_start:
            assert len(running) == lanes
    # Graham's bound for greedy schedules.
    assert schedule.makespan * lanes <= sum(costs) + (lanes - 1) * max(costs)
    assert schedule.makespan >= max(max(costs), sum(costs) / lanes)


def test_longest_first_shortens_a_causal_tail():
    def makespan(order):
        launch = programs(
            1, 4, 8192, 8192, block_m=128, block_n=64, causal=True, order=order, splits=1
        )
        return greedy_schedule([program.steps for program in launch], 132).makespan

    assert makespan("longest") < makespan("first")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch must be a whole number above 0, got 0"),
        ({"block_m": 1.5}, "block_m must be a whole number above 0, got 1.5"),
        ({"splits": True}, "splits must be a whole number above 0, got True"),
        ({"order": "random"}, "order must be one of first, longest, got 'random'"),
        ({"parallel": "keys"}, "parallel must be one of heads, tiles, got 'keys'"),
        ({"parallel": "heads", "splits": 2}, "splits must be 1, got 2"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_sentence(options, words):
    right = {"batch": 1, "heads": 1, "seq_query": 64, "seq_key": 64, **SIZES}
    with pytest.raises(ValueError, match=words) as caught:
        programs(**right | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 4), "at least one program to schedule, got none"),
        (([3, 0], 4), "at least 1 step, got 0"),
        (([3], 0), "sm_count must be a whole number above 0, got 0"),
        (([3], 4, 0), "slots must be a whole number above 0, got 0"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_in_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        greedy_schedule(*arguments)
