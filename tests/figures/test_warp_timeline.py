"""The figure's numbers and words against the runs themselves."""

import copy
import itertools

import pytest

from figures.warp_timeline import SWITCHES, WarpTimeline, recorded_runs

DATA = recorded_runs()
RUNS = DATA["runs"]


def run_of(**setting):
    return next(run for run in RUNS if all(run[key] == value for key, value in setting.items()))


SHIPPED = run_of(head_dim=128, loader="producer", stages=2, overlap="maximum", pingpong=False)
THREE = run_of(head_dim=64, loader="producer", stages=3, overlap="softmax", pingpong=True)
ALONE = run_of(head_dim=128, loader="alone", stages=1, overlap="none")
KINDS = {"K": 1, "V": 2}  # a letter's place in DATA["tensors"]


def cycles_under(exponentials, products):
    """Cycles of exponentials during which one of the products runs, counted one by one."""
    running = set()
    for product in products:
        running.update(range(product[4], product[5]))
    return sum(cycle in running for row in exponentials for cycle in range(row[2], row[3]))


def expected(run):
    exponentials, products = run["exponentials"], run["products"]
    consumers = {row[0] for row in products}
    in_all = sum(row[3] - row[2] for row in exponentials)
    copying = sum(row[5] - row[4] for row in run["copies"])
    copying += sum(row[3] - row[2] for row in run["stores"])
    under = {True: 0, False: 0}
    for same, consumer in itertools.product(under, consumers):
        own = [row for row in exponentials if row[0] == consumer]
        others = [row for row in products if (row[0] == consumer) == same]
        under[same] += cycles_under(own, others)
    return {
        "cycles": run["cycles"],
        "tensorCores": sum(row[5] - row[4] for row in products) / run["cycles"],
        "exponentials": in_all / run["cycles"],
        "copies": copying / run["cycles"],
        "underOwn": under[True] / in_all,
        "underOther": under[False] / in_all,
    }


def test_every_share_is_the_runs(in_node):
    shares = in_node("warp_timeline", "data.map(figure.shares)", RUNS)
    for run, found in zip(RUNS, shares, strict=True):
        assert found == expected(run)


def steps_of(run):
    """Steps with two products, and in how many a consumer issues both in one piece."""
    issued = [row[:3] for row in sorted(run["products"], key=lambda row: row[3])]
    steps = [row for row in issued if row[1] == 0 and row[2] < DATA["tiles"] - 1]
    whole = [row for row in steps if issued[issued.index(row) + 1] == [row[0], 1, row[2] + 1]]
    return {"steps": len(steps), "whole": len(whole)}


def test_it_counts_the_steps_whose_products_stay_together(in_node):
    counts = in_node("warp_timeline", "data.map(figure.stepsInOnePiece)", RUNS)
    for run, found in zip(RUNS, counts, strict=True):
        assert found == steps_of(run)
        if run["pingpong"]:
            assert 0 < found["steps"] == found["whole"]


def test_every_setting_has_its_run(in_node):
    choices = itertools.product(
        ("alone", "producer"),
        (1, 2, 3),
        ("none", "maximum", "softmax"),
        (False, True),
        (64, 128),
    )
    settings = [dict(zip(SWITCHES, choice, strict=True)) for choice in choices]
    found = in_node(
        "warp_timeline", "data.settings.map((each) => figure.runOf(data.runs, each))",
        {"settings": settings, "runs": DATA},
    )  # fmt: skip
    for setting, run in zip(settings, found, strict=True):
        if setting["loader"] == "alone":
            setting = setting | {"pingpong": False}
        assert {key: run[key] for key in SWITCHES} == setting


def texts(in_node, asked):
    """The words of runs, each at its cycles."""
    found = in_node(
        "warp_timeline",
        "data.asked.map(([run, cycles]) =>"
        " cycles.map((cycle) => figure.momentTexts(data.runs, run, cycle)))",
        {"runs": DATA, "asked": asked},
    )
    return [[dict(words) for words in of_a_run] for of_a_run in found]


def held_in(run, slot, cycle):
    """What of K and V is in a slot or on its way there."""
    return [
        row
        for row in run["copies"]
        if row[0] in KINDS.values() and row[1] == slot and row[3] <= cycle < row[7]
    ]


def test_its_words_say_what_the_rows_say(in_node):
    asked = [[run, list(range(0, run["cycles"] + 1, 97))] for run in (SHIPPED, THREE, ALONE)]
    for (run, cycles), said in zip(asked, texts(in_node, asked), strict=True):
        for cycle, words in zip(cycles, said, strict=True):
            check_units(run, cycle, words)
            check_slots(run, cycle, words)
            check_partitions(run, cycle, words)


def check_units(run, cycle, words):
    producer = run["loader"] == "producer"
    products = [row for row in run["products"] if row[4] <= cycle < row[5]]
    assert (words["tensor cores"] == "idle") == (not products)
    for consumer, kind, tile, *_ in products:
        who = f"consumer {consumer}" if producer else "the consumer"
        assert words["tensor cores"] == f"{('QKᵀ', 'PV')[kind]} {tile} of {who}"
    exponentials = [row for row in run["exponentials"] if row[2] <= cycle < row[3]]
    assert (words["exponentials"] == "idle") == (not exponentials)


def check_slots(run, cycle, words):
    assert [lane for lane in words if lane.startswith("slot")] == [
        f"slot {slot}" for slot in range(run["stages"])
    ]
    for slot in range(run["stages"]):
        held = held_in(run, slot, cycle)
        said = words[f"slot {slot}"]
        if not held:
            assert said == "empty"
            continue
        for part, (kind, _, tile, *_, landed, _) in zip(said.split("; "), held, strict=True):
            assert part.startswith(f"{' KV'[kind]} tile {tile}, ")
            assert part.endswith("arriving") == (cycle < landed)
            reading = any(
                row[1:3] == [kind - 1, tile] and row[4] <= cycle < row[5] for row in run["products"]
            )
            assert ("read for" in part) == reading


def check_partitions(run, cycle, words):
    names = ["consumer"]
    if run["loader"] == "producer":
        names = ["producer", *(f"consumer {i}" for i in range(len(run["partitions"]) - 1))]
    for name, rows in zip(names, run["partitions"], strict=True):
        (row,) = [row for row in rows if row[1] <= cycle < row[2]] or [None]
        does = row and DATA["does"][row[0]]
        assert words[name].startswith("waits ") == (does not in (None, "work")), (cycle, words)
        if does and ("." in does or does == "turn"):
            *_, slot, phase = row
            assert f"({does}[{slot}], phase {phase})" in words[name]


def test_a_wait_names_the_tiles_that_it_is_for(in_node):
    """A consumer that waits names what is on its way to the slot; the last of it ends the wait."""
    asked, ends = [], []
    for run in RUNS:
        waits = [
            (place, start, end, slot)
            for place, rows in enumerate(run["partitions"])
            for does, start, end, *rest in rows
            if DATA["does"][does] == "pairs.full"
            for slot, _ in [rest]
        ]
        if run["stages"] == 1:
            assert waits  # nothing can arrive ahead
        asked.append([run, [end - 1 for _, _, end, _ in waits]])
        ends.append(waits)
    for (run, _), waits, said in zip(asked, ends, texts(in_node, asked), strict=True):
        for (place, _, end, slot), words in zip(waits, said, strict=True):
            held = held_in(run, slot, end - 1)
            assert max(row[6] for row in held) == end
            names = " and ".join(f"{' KV'[kind]} tile {tile}" for kind, _, tile, *_ in held)
            assert list(words.values())[place].startswith(f"waits for {names} (pairs.full[{slot}]")


def test_events_are_all_times_in_order(in_node):
    events = in_node("warp_timeline", "figure.eventsOf(data)", SHIPPED)
    assert events == sorted(set(events))
    assert events[0] == 0 and events[-1] == SHIPPED["cycles"]
    assert {row[3] for row in SHIPPED["products"]} <= set(events)


def test_the_change_counts_cycles_of_the_same_work(in_node):
    changes = [
        {},
        {"pingpong": True},
        {"stages": 1},
        {"overlap": "none"},
        {"loader": "alone", "pingpong": False},
    ]
    shipped = {key: SHIPPED[key] for key in SWITCHES}
    settings = [[SHIPPED, run_of(**shipped | change)] for change in changes]
    # Three consumers of 64 queries against one of 128; and another head dimension.
    one = run_of(head_dim=64, loader="alone", stages=3, overlap="softmax")
    settings += [[THREE, one], [THREE, SHIPPED]]
    said = in_node("warp_timeline", "data.map((two) => figure.changeText(...two))", settings)
    words = ["as many as before"]
    for _, before in settings[1:-2]:
        ratio = SHIPPED["cycles"] / before["cycles"]
        words.append(f"{100 * abs(ratio - 1):.1f}% {'fewer' if ratio < 1 else 'more'} than before")
    ratio = THREE["cycles"] / 192 / (one["cycles"] / 128)
    words.append(f"{100 * (1 - ratio):.1f}% fewer a query than before")
    assert said == [*words, "other work: compare shares"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": "nobody"}, "loader.*alone.*producer.*nobody"),
        ({"stages": 4}, "stages.*1, 2.*4"),
        ({"head_dim": 256}, "head_dim.*64.*256"),
        ({"overlap": True}, "overlap.*none.*maximum.*softmax.*True"),
        ({"cycle": -1}, "cycle.*-1"),
        ({"runs": {}}, "runs must hold a run for every setting.*none for"),
        ({"window": 4}, "no option 'window'.*stages"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        WarpTimeline(**options)
    assert "\n" not in str(caught.value)


def test_it_shows_the_runs_it_is_given():
    runs = copy.deepcopy(DATA)
    runs["runs"][0]["cycles"] += 1
    assert WarpTimeline(runs=runs).state()["runs"] == runs
    assert WarpTimeline().state()["runs"] == DATA
