"""The figure's numbers and words against the runs themselves."""

import copy
import itertools

import pytest

from figures.warp_timeline import SWITCHES, WarpTimeline, recorded_runs

DATA = recorded_runs()
RUNS = DATA["runs"]


def run_of(**setting):
    return next(run for run in RUNS if all(run[key] == value for key, value in setting.items()))


PIPELINED = run_of(head_dim=128, loader="producer", stages=2, overlap=True, pingpong=True)
ALONE = run_of(head_dim=128, loader="alone", stages=1, overlap=False)


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
    assert len(shares) == 36
    for run, found in zip(RUNS, shares, strict=True):
        assert found == expected(run)


def test_it_counts_the_steps_whose_products_stay_together(in_node):
    counts = in_node("warp_timeline", "data.map(figure.pairs)", RUNS)
    for run, found in zip(RUNS, counts, strict=True):
        issued = [row[:3] for row in sorted(run["products"], key=lambda row: row[3])]
        steps = [row for row in issued if row[1] == 0 and row[2] < DATA["tiles"] - 1]
        whole = [row for row in steps if issued[issued.index(row) + 1] == [row[0], 1, row[2] + 1]]
        assert found == {"steps": len(steps), "whole": len(whole)}
        if run["pingpong"]:
            assert steps and whole == steps


def test_every_setting_has_its_run(in_node):
    choices = itertools.product(
        ("alone", "producer"), (1, 2, 3), (False, True), (False, True), (64, 128)
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


def texts(in_node, run, cycles):
    found = in_node(
        "warp_timeline",
        "data.cycles.map((cycle) => figure.momentTexts(data.runs, data.run, cycle))",
        {"runs": DATA, "run": run, "cycles": cycles},
    )
    return [dict(each) for each in found]


@pytest.mark.parametrize("run", [PIPELINED, RUNS[17], ALONE], ids=["shipped", "three", "alone"])
def test_its_words_say_what_the_rows_say(in_node, run):
    producer = run["loader"] == "producer"
    cycles = list(range(0, run["cycles"] + 1, 97))
    for cycle, words in zip(cycles, texts(in_node, run, cycles), strict=True):
        products = [row for row in run["products"] if row[4] <= cycle < row[5]]
        assert (words["tensor cores"] == "idle") == (not products)
        for consumer, kind, tile, *_ in products:
            who = f"consumer {consumer}" if producer else "the consumer"
            assert words["tensor cores"] == f"{('QKᵀ', 'PV')[kind]} {tile} of {who}"
        exponentials = [row for row in run["exponentials"] if row[2] <= cycle < row[3]]
        assert (words["exponentials"] == "idle") == (not exponentials)
        for tensor, letter in ((1, "K"), (2, "V")):
            slots = words[f"{letter} slots"].split(" · ")
            assert len(slots) == run["stages"]
            for slot, said in enumerate(slots):
                held = [
                    row
                    for row in run["copies"]
                    if row[:2] == [tensor, slot] and row[3] <= cycle < row[7]
                ]
                if not held:
                    assert said == f"{slot}: empty"
                    continue
                assert said.startswith(f"{slot}: tile {held[0][2]}, ")
                assert said.endswith("arriving") == (cycle < held[0][6])
                reading = [row for row in products if [1 + row[1], row[2]] == [tensor, held[0][2]]]
                assert ("read for" in said) == bool(reading)
        names = ["producer"] if producer else []
        names += [f"consumer {i}" for i in range(3)] if producer else ["consumer"]
        for name, rows in zip(names, run["partitions"], strict=False):
            does = [DATA["does"][row[0]] for row in rows if row[1] <= cycle < row[2]]
            said = words[name]
            assert said.startswith("waits ") == bool(does and does[0] != "work"), (cycle, said)
            if does and ("." in does[0] or does[0] == "turn"):
                *_, slot, phase = next(row for row in rows if row[1] <= cycle < row[2])
                assert f"({does[0]}[{slot}], phase {phase})" in said


@pytest.mark.parametrize("run", [PIPELINED, ALONE], ids=["shipped", "alone"])
def test_a_wait_names_the_tile_that_ends_it(in_node, run):
    """A consumer that waits for K or V names the tile that lands as the wait ends."""
    waits = [
        (place, start, end, DATA["does"][does][0].upper())
        for place, rows in enumerate(run["partitions"])
        for does, start, end, *_ in rows
        if DATA["does"][does] in ("key.full", "value.full")
    ]
    assert waits
    said = texts(in_node, run, [start for _, start, *_ in waits])
    for (place, _, end, letter), words in zip(waits, said, strict=True):
        (landed,) = [row for row in run["copies"] if row[6] == end and "QKV"[row[0]] == letter]
        assert list(words.values())[place].startswith(f"waits for {letter} tile {landed[2]} (")


def test_events_are_all_times_in_order(in_node):
    events = in_node("warp_timeline", "figure.eventsOf(data)", PIPELINED)
    assert events == sorted(set(events))
    assert events[0] == 0 and events[-1] == PIPELINED["cycles"]
    assert {row[3] for row in PIPELINED["products"]} <= set(events)


CHANGES = [
    {},
    {"pingpong": False},
    {"stages": 1},
    {"overlap": False},
    {"loader": "alone", "pingpong": False},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_change_counts_cycles(in_node, change):
    before = run_of(**{key: PIPELINED[key] for key in SWITCHES} | change)
    said = in_node("warp_timeline", "figure.changeText(data[0], data[1])", [PIPELINED, before])
    ratio = PIPELINED["cycles"] / before["cycles"]
    if change == {}:
        assert said == "as many as before"
    else:
        word = "fewer" if ratio < 1 else "more"
        assert said == f"{100 * abs(ratio - 1):.1f}% {word} than before"


def test_the_change_counts_a_query_where_their_number_differs(in_node):
    three = run_of(head_dim=64, loader="producer", stages=2, overlap=True, pingpong=False)
    one = run_of(head_dim=64, loader="alone", stages=2, overlap=True)
    said = in_node("warp_timeline", "figure.changeText(data[0], data[1])", [three, one])
    ratio = three["cycles"] / 192 / (one["cycles"] / 128)
    assert said == f"{100 * (1 - ratio):.1f}% fewer a query than before"
    other = in_node("warp_timeline", "figure.changeText(data[0], data[1])", [three, PIPELINED])
    assert other == "other work: compare shares"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": "nobody"}, "loader.*alone.*producer.*nobody"),
        ({"stages": 4}, "stages.*1, 2.*4"),
        ({"head_dim": 256}, "head_dim.*64.*256"),
        ({"overlap": 0.5}, "overlap.*boolean.*0.5"),
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
