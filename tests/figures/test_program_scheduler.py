"""The figure's schedules against instruments/schedule.py; exactly."""

import itertools
import random

import pytest

from figures._gpus import datasheet_gpus
from figures.program_scheduler import (
    BATCHES,
    HEADS,
    LENGTHS,
    SPLITS,
    ProgramScheduler,
    multiprocessors,
)
from instruments.schedule import greedy_schedule, programs

LARGEST_LAUNCH = 2**18
MOST_TRIED = 2**16
SMS = {gpu["name"]: gpu["sms"] for gpu in datasheet_gpus()}


def tile_programs(options):
    """Programs of one head if each takes a tile of queries and a split."""
    return -(-options["seq_query"] // options["block_m"]) * options["splits"]


def scheduled_heads(options):
    everything = options["batch"] * options["heads"]
    return min(everything, LARGEST_LAUNCH // tile_programs(options))


def launched(options, heads):
    launch = programs(
        1,
        heads,
        options["seq_query"],
        options["seq_key"],
        block_m=options["block_m"],
        block_n=options["block_n"],
        causal=options["causal"],
        order=options["order"],
        splits=1 if options["parallel"] == "heads" else options["splits"],
        parallel=options["parallel"],
    )
    costs = [program.steps for program in launch]
    return launch, greedy_schedule(costs, SMS[options["gpu"]], options["slots"])


def expected(options):
    """The numbers on the page, in Python."""
    heads = scheduled_heads(options)
    launch, schedule = launched(options, heads)
    _, per_head = launched(options | {"parallel": "heads"}, heads)
    _, one_split = launched(options | {"splits": 1}, heads)
    return {
        "heads": heads,
        "programs": len(launch),
        "waves": schedule.waves,
        "utilisation": schedule.utilisation,
        "makespan": schedule.makespan,
        "tailStart": schedule.tail_start,
        "unused": schedule.slot_ends.count(0),
        "perHead": [per_head.makespan, per_head.makespan / schedule.makespan],
        "oneSplit": [one_split.makespan, one_split.makespan / schedule.makespan],
    }


ANSWER = """((options) => {
  const model = figure.scheduleModel(options);
  const { heads, programs, waves, utilisation, makespan, tailStart, unused } = model;
  const [perHead, oneSplit] = [model.perHead, model.oneSplit]
    .map((other) => [other.makespan, other.speedup]);
  return { heads, programs, waves, utilisation, makespan, tailStart, unused, perHead, oneSplit };
})"""


def small_cases():
    """Every choice beside every other, at small and at ragged lengths; the rest takes turns."""
    shapes = [(2048, 2048), (1, 4096), (1, 300), (777, 1111), (1111, 777), (130, 130)]
    gpus, batches = itertools.cycle(SMS), itertools.cycle([1, 2, 5])
    heads = itertools.cycle([1, 3, 16, 40])
    choices = itertools.product(
        shapes, (64, 128), (32, 128), (False, True), ("first", "longest"), (1, 3, 16),
        ("tiles", "heads"), (1, 2),
    )  # fmt: skip
    names = "block_m block_n causal order splits parallel slots".split()
    return [
        dict(zip(names, rest, strict=True), seq_query=lengths[0], seq_key=lengths[1])
        | {"gpu": next(gpus), "batch": next(batches), "heads": next(heads)}
        for lengths, *rest in choices
    ]


def with_sms(options):
    return options | {"sms": SMS[options["gpu"]]}


def test_every_number_is_the_instruments(in_node):
    cases = small_cases()
    assert len(cases) == 6 * 2**6 * 3
    answers = in_node("program_scheduler", f"data.map({ANSWER})", list(map(with_sms, cases)))
    for options, answer in zip(cases, answers, strict=True):
        assert answer == expected(options), options


LARGE = {
    "batch": 64,
    "heads": 64,
    "seq_query": 131072,
    "seq_key": 131072,
    "block_m": 128,
    "block_n": 64,
    "causal": True,
    "order": "first",
    "splits": 1,
    "parallel": "tiles",
    "gpu": "H200",
    "slots": 1,
}


@pytest.mark.parametrize("change", [{}, {"splits": 96}, {"parallel": "heads"}], ids=str)
def test_of_a_launch_too_large_only_some_heads_are_scheduled(in_node, change):
    options = LARGE | change
    answer = in_node("program_scheduler", f"{ANSWER}(data)", with_sms(options))
    assert answer == expected(options)
    assert answer["heads"] < 64 * 64
    assert (answer["heads"] + 1) * tile_programs(options) > LARGEST_LAUNCH


def test_at_its_largest_one_head_is_left():
    largest = {"seq_query": max(LENGTHS), "block_m": 64, "splits": max(SPLITS)}
    assert tile_programs(largest) <= LARGEST_LAUNCH


@pytest.mark.parametrize("slots", [1, 2])
def test_each_program_starts_where_and_when_pythons_does(in_node, slots):
    costs = random.Random(7).choices(range(1, 40), k=2000)
    found = in_node(
        "program_scheduler",
        """((schedule) => [schedule.starts, schedule.slotOf, schedule.slotEnds]
          .map((numbers) => [...numbers]))(figure.greedySchedule(data[0], 40, data[1]))""",
        [costs, slots],
    )
    wanted = greedy_schedule(costs, 40, slots)
    assert found[0] == wanted.starts
    assert [slot % 40 for slot in found[1]] == wanted.sms
    assert found[2] == wanted.slot_ends


def python_advice(options):
    """The best of all single changes, tried one by one."""
    heads = scheduled_heads(options)
    makespan = launched(options, heads)[1].makespan
    if options["parallel"] == "heads":
        changes = [{"parallel": "tiles"}]
    else:
        changes = [{"order": "longest"}] + [
            {"splits": splits}
            for splits in SPLITS
            if splits == 1 or heads * tile_programs(options | {"splits": splits}) <= MOST_TRIED
        ]
    best = None
    for change in changes:
        launch, schedule = launched(options | change, heads)
        speedup = makespan / schedule.makespan
        if speedup >= 1.05 and (best is None or speedup > best["speedup"]):
            best = {"change": change, "programs": len(launch), "speedup": speedup}
    return best


def test_its_advice_is_the_best_change_there_is(in_node):
    cases = small_cases()[::23]
    cases += [LARGE | {"batch": 1, "heads": 12, "seq_query": 8192, "seq_key": 8192}]
    answers = in_node(
        "program_scheduler",
        "data.map((options) => figure.advice(options, figure.scheduleModel(options)))",
        list(map(with_sms, cases)),
    )
    for options, answer in zip(cases, answers, strict=True):
        assert answer == python_advice(options), options
    kinds = {None if answer is None else next(iter(answer["change"])) for answer in answers}
    assert kinds == {None, "parallel", "order", "splits"}


def test_how_many_are_busy_at_a_time(in_node):
    options = LARGE | {"batch": 1, "heads": 3, "seq_query": 4096, "seq_key": 4096}
    _, schedule = launched(options, 3)
    moments = range(schedule.makespan + 1)
    found = in_node(
        "program_scheduler",
        """((model) => data[1].map((time) => figure.busyAt(model, time)))(
          figure.scheduleModel(data[0]))""",
        [with_sms(options), list(moments)],
    )
    assert found == [schedule.busy_at(time) for time in moments]
    assert len(set(found)) > 10


@pytest.mark.parametrize("narrowest", [0, 5, 1000])
@pytest.mark.parametrize("slots", [1, 2])
def test_its_bars_cover_the_busy_time_once(in_node, slots, narrowest):
    costs = random.Random(3).choices([2, 2, 2, 7, 30], k=400)
    heads = [program // 5 % 11 for program in range(400)]
    bars = in_node(
        "program_scheduler",
        """figure.chartBars({ ...figure.greedySchedule(data.costs, 13, data.slots),
          costs: data.costs, headOf: data.heads },
          { sms: 13, slots: data.slots, tones: 4, narrowest: data.narrowest })""",
        {"costs": costs, "heads": heads, "slots": slots, "narrowest": narrowest},
    )
    schedule = greedy_schedule(costs, 13, slots)
    covered = {}
    for tone, each in enumerate(bars):
        for bar in each:
            for lane in range(bar["lane"], bar["lane"] + bar["lanes"]):
                covered.setdefault(lane, []).append((bar["start"], bar["end"], tone))
    for lane in range(13 * slots):
        slot = lane // slots + 13 * (lane % slots)
        own = sorted(covered[lane])
        starts, ends = [bar[0] for bar in own], [bar[1] for bar in own]
        assert starts == [0, *ends[:-1]] and ends[-1] == schedule.slot_ends[slot]
    if narrowest == 0:
        drawn = {(start, end, tone) for own in covered.values() for start, end, tone in own}
        tones = [head % 4 for head in heads]
        assert drawn == set(zip(schedule.starts, schedule.ends, tones, strict=True))
    else:
        assert sum(map(len, covered.values())) < 400


def test_the_values_it_offers_are_the_ones_it_takes(in_node):
    offered = in_node(
        "program_scheduler",
        "[figure.BATCHES, figure.HEADS, figure.LENGTHS, figure.SPLITS, figure.MOMENTS,"
        " figure.LARGEST_LAUNCH, figure.MOST_TRIED]",
    )
    last = ProgramScheduler.class_traits()["moment"].max
    assert offered == [BATCHES, HEADS, LENGTHS, SPLITS, last, LARGEST_LAUNCH, MOST_TRIED]


def test_its_gpus_are_the_lists():
    names = ["T4", "A100 80 GB", "H100 SXM", "H200", "B200"]
    assert multiprocessors() == [{"name": name, "sms": SMS[name]} for name in names]
    assert ProgramScheduler().state()["gpus"] == multiprocessors()


def test_queries_follow_the_keys_unless_there_is_one():
    assert ProgramScheduler(seq_key=4096).seq_query == 4096
    decoding = ProgramScheduler(seq_query=1, seq_key=512)
    decoding.seq_key = 1024
    assert decoding.seq_query == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seq_key": 1000}, "seq_key.*256.*1000"),
        ({"seq_query": 4096}, "seq_query is 1 or seq_key, which is 8192; got 4096"),
        ({"heads": 7}, "heads.*16.*7"),
        ({"block_m": 16}, "block_m.*64.*16"),
        ({"order": "random"}, "order.*first.*longest.*random"),
        ({"parallel": "keys"}, "parallel.*heads.*tiles.*keys"),
        ({"splits": 0}, "splits.*1, 2.*0"),
        ({"gpu": "Abacus"}, "gpu.*T4.*Abacus"),
        ({"slots": 3}, "slots.*1, 2.*3"),
        ({"moment": 61}, "moment.*60.*61"),
        ({"causal": 1.5}, "causal.*boolean.*1.5"),
        ({"gpus": []}, "gpus.*read-only"),
        ({"window": 4}, "no option 'window'.*block_m"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        ProgramScheduler(**options)
    assert "\n" not in str(caught.value)
