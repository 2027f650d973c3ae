"""The ring's events against the rules of its barriers, and the figure's state and words against both."""

import copy
import itertools
import json

import pytest

from figures.ring_of_slots import RingOfSlots, recorded_runs
from instruments import ring_of_slots

DATA = recorded_runs()
RUNS = DATA["runs"]
TILES, CONSUMERS = DATA["tiles"], DATA["consumers"]
LAST = {"none": "releases", "parity": "deadlock", "early": "race", "never": "deadlock"}
READERS = DATA["partitions"][1:]


def run_of(stages, mistake="none"):
    return next(run for run in RUNS if (run["stages"], run["mistake"]) == (stages, mistake))


def events_of(run):
    """Events with names, and with what a barrier's phase misses after them, if one changed."""
    for cycle, does, who, what, slot, number, *after in run["events"]:
        names = DATA["does"][does], DATA["partitions"][who], DATA["what"][what]
        yield cycle, *names, slot, number, after


def name(run):
    return f"{run['stages']} slots, {run['mistake']}"


def replay(run):
    """After each event the barriers, (arrivals, bytes, phase) by name, and the tiles, by this module's
    own count of arrivals and bytes."""
    slots = range(run["stages"])
    counts = {"full": 1, "empty": CONSUMERS}
    barriers = {(kind, slot): (counts[kind], 0, 0) for kind in counts for slot in slots}
    held, reads = {}, []
    for _, does, who, what, slot, number, _ in events_of(run):
        arrivals, bytes_ = {"expects": (1, number), "releases": (1, 0)}.get(does, (0, 0))
        kind = "empty" if does == "releases" else "full"
        if does in ("expects", "releases", "lands"):
            missing, left, phase = barriers[kind, slot]
            missing, left = missing - arrivals, left + bytes_
            if does == "lands":
                left -= DATA["tile_bytes"]
                held[what, slot][1] = True
            if missing == left == 0:
                missing, phase = counts[kind], phase + 1
                if kind == "empty":
                    read = {(tensor, place) for _, tensor, place in reads}
                    held = {key: v for key, v in held.items() if key[1] != slot or key in read}
            barriers[kind, slot] = (missing, left, phase)
        elif does == "copies":
            held[what, slot] = [number, False]
        elif does == "multiplies":
            reads.append((who, what, slot))
        elif does == "has multiplied":
            reads.remove((who, what, slot))
        tiles = {key: tuple(value) for key, value in held.items()}
        yield dict(barriers), tiles, list(reads)


def test_the_figures_own_file_is_what_the_simulator_gives():
    """Else: ``python -m instruments.ring_of_slots``."""
    runs = ring_of_slots.runs()
    recorded = ring_of_slots.RECORDED.read_text("utf-8")
    assert recorded == ring_of_slots.as_json(runs)
    assert json.loads(recorded) == runs


def test_every_run_ends_as_its_mistake_does():
    found = {(run["stages"], run["mistake"]) for run in RUNS}
    assert found == set(itertools.product((1, 2, 3), LAST))
    for run in RUNS:
        names = [does for _, does, *_ in events_of(run)]
        assert names[-1] == LAST[run["mistake"]], name(run)
        assert not {"race", "deadlock"} & set(names[:-1]), name(run)
        assert run["events"] == sorted(run["events"], key=lambda event: event[0]), name(run)


def test_the_simulators_barriers_count_as_the_rules_say():
    for run in RUNS:
        for event, (barriers, *_) in zip(events_of(run), replay(run), strict=True):
            _, does, _, _, slot, _, after = event
            if after:
                assert tuple(after) == barriers["empty" if does == "releases" else "full", slot]


def test_a_whole_run_reads_every_tile_once_a_consumer_and_only_when_it_is_there():
    for stages in (1, 2, 3):
        run = run_of(stages)
        multiplied = []
        for event, (_, tiles, _) in zip(events_of(run), replay(run), strict=True):
            _, does, who, what, slot, number, _ = event
            if does == "multiplies":
                assert tiles[what, slot] == (number, True), name(run)
                multiplied.append((who, what, number))
        wanted = itertools.product(READERS, ("key", "value"), range(TILES))
        assert sorted(multiplied) == sorted(wanted), name(run)


def test_a_race_overwrites_a_tile_that_is_being_read():
    for stages in (1, 2, 3):
        run = run_of(stages, "early")
        *_, (_, _, reads) = replay(run)
        *_, (_, _, who, what, slot, *_) = events_of(run)
        assert who == "producer"
        assert (what, slot) in {read[1:] for read in reads}, name(run)


def test_in_a_deadlock_everybody_waits_for_a_phase_that_is_not_over():
    for stages, mistake in itertools.product((1, 2, 3), ("parity", "never")):
        run = run_of(stages, mistake)
        waits = {}
        for _, does, who, what, slot, number, _ in events_of(run):
            if does in ("waits", "goes on"):
                waits[who] = (what, slot, number) if does == "waits" else None
        *_, (barriers, *_) = replay(run)
        for partition in DATA["partitions"]:
            what, slot, parity = waits[partition]
            assert what == "queries" or barriers[what, slot][2] & 1 == parity, (
                name(run),
                partition,
            )


def states(in_node, run):
    return in_node(
        "ring_of_slots",
        "data.run.events.map((_, at) => { const state = figure.stateAt(data.runs, data.run, at);"
        " return { ...state, event: figure.eventText(data.runs, data.run, at),"
        " held: state.slots.map(figure.heldText),"
        " words: data.runs.partitions.map((one) => figure.partitionText(data.runs, state, one)) };"
        " })",
        {"runs": DATA, "run": run},
    )


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_its_slots_and_words_are_the_events(in_node, run):
    shown = states(in_node, run)
    for state, event, (barriers, tiles, reads) in zip(
        shown, events_of(run), replay(run), strict=True
    ):
        cycle, does, who, what, slot, number, _ = event
        assert state["cycle"] == cycle
        for place, one in enumerate(state["slots"]):
            for kind in ("full", "empty"):
                found = tuple(one[kind][key] for key in ("pending", "bytes", "phase"))
                assert found == barriers[kind, place]
            parts = [
                f"{letter} tile {tiles[tensor, place][0]}, "
                f"{'there' if tiles[tensor, place][1] else 'on its way'}"
                for tensor, letter in (("key", "K"), ("value", "V"))
                if (tensor, place) in tiles
            ]
            assert state["held"][place] == ("; ".join(parts) or "nothing")
            readers = sorted({reader for reader, _, at in reads if at == place})
            assert one["readers"] == readers
            arriving = barriers["full", place][1] > 0
            expected = "full" if parts else "empty"
            expected = "in use" if readers else "being filled" if arriving else expected
            if does == "race" and place == slot:
                expected = "overwritten"
            assert one["state"] == expected
        if does == "waits":
            barrier = "queries.full" if what == "queries" else what
            words = dict(zip(DATA["partitions"], state["words"], strict=True))
            assert f"{barrier}[{slot}], parity {number}" in state["event"]
            assert words[who].startswith("waits for ")
            assert words[who].endswith(f"{barrier}[{slot}], parity {number}")
        if does == "expects":
            assert f"expects {number:,} bytes" in state["event"]


def test_a_wait_for_an_empty_slot_names_who_has_not_released_it(in_node):
    run = run_of(2)
    for state in states(in_node, run):
        for place, slot in enumerate(state["slots"]):
            missing = [one for one in READERS if one not in slot["released"]]
            assert len(missing) == slot["empty"]["pending"]
            if state["words"][0].startswith(f"waits for slot {place} "):
                has = "has" if len(missing) == 1 else "have"
                assert f"empty; {' and '.join(missing)} {has} to release it" in state["words"][0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 4}, "stages.*1, 2.*4"),
        ({"mistake": "late"}, "mistake.*parity.*early.*late"),
        ({"step": -1}, "step.*-1"),
        ({"runs": {}}, "runs must hold a run for every setting.*none for"),
        ({"slots": 2}, "no option 'slots'.*stages"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        RingOfSlots(**options)
    assert "\n" not in str(caught.value)


def test_it_shows_the_runs_it_is_given():
    runs = copy.deepcopy(DATA)
    runs["runs"][0]["events"][0][0] += 1
    assert RingOfSlots(runs=runs).state()["runs"] == runs
    assert RingOfSlots().state()["runs"] == DATA


def test_it_shows_what_the_chapter_says_of_two_slots():
    """The producer stands still before any tile has landed; each wait of it ends with a last release."""
    events = list(events_of(run_of(2)))
    does = [event[1] for event in events]
    first = next(at for at, event in enumerate(events) if event[1:4:2] == ("waits", "empty"))
    assert does[:first].count("expects") == 2 and "lands" not in does[:first]
    ends = [at for at, event in enumerate(events) if event[1:4] == ("goes on", "producer", "empty")]
    assert len(ends) == TILES + 1 - 2
    for at in ends:
        assert events[at - 1][1:3] == ("releases", READERS[-1])
