"""Programs on multiprocessors, on a built page: the controls, and the numbers it then shows."""

import pytest

from figures.program_scheduler import SPLITS, ProgramScheduler
from instruments.schedule import greedy_schedule
from tests.figures.test_program_scheduler import SMS, expected, launched

from .test_figure import control, move_slider
from .test_pages import open_page

WIDTHS = [360, 800, 1440]
START = ProgramScheduler(heads=12, causal=True).state()
SLIDERS = ("batch", "heads", "seq_key", "splits", "moment")


@pytest.fixture
def figure(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/program_scheduler.html")
        return tab.locator(".bf")

    return show


def set_options(figure, **options):
    """Moves the controls; how each is moved by hand is the business of other tests."""
    for key, value in options.items():
        if key == "gpu":
            control(figure, key).select_option(value)
        elif key == "moment":
            move_slider(figure, key, value)
        elif key in SLIDERS:
            offered = list(ProgramScheduler.class_traits()[key].values)
            move_slider(figure, key, offered.index(value))
        else:
            text = str(value).lower()
            figure.locator(f"label:has([data-key={key}][value='{text}'])").click()


def state(**options):
    """Python's options for what the controls were set to."""
    queries = options.pop("queries", "all")
    found = START | options
    return found | {"seq_query": 1 if queries == "one" else found["seq_key"]}


def shown(figure):
    values = [
        figure.locator(f"[data-name={name}]").get_attribute("data-number")
        for name in ("programs", "waves", "utilisation", "makespan")
    ]
    others = [
        figure.locator(f"[data-launch={name}]").get_attribute("data-makespan")
        for name in ("chosen", "perHead", "oneSplit")
    ]
    return [float(value) for value in values + others]


def wanted(options):
    found = expected(options)
    values = [found[name] for name in ("programs", "waves", "utilisation", "makespan")]
    return values + [found["makespan"], found["perHead"][0], found["oneSplit"][0]]


def status(figure):
    return figure.get_by_role("status").inner_text()


OPTIONS = [
    {},
    {"causal": False, "order": "first", "seq_key": 1024, "block_m": 64, "gpu": "T4"},
    {"queries": "one", "seq_key": 131072, "splits": 12, "gpu": "B200", "slots": 2},
    {"parallel": "heads", "batch": 4, "heads": 40, "gpu": "A100 80 GB"},
    {"batch": 64, "heads": 64, "seq_key": 65536},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_its_controls_change_the_numbers_to_pythons(figure, options):
    page = figure()
    set_options(page, **options)
    assert shown(page) == wanted(state(**options))
    unused = page.locator("[inert] [data-key]").evaluate_all(
        "(all) => all.map((e) => e.dataset.key)"
    )
    assert set(unused) == ({"order", "splits"} if options.get("parallel") == "heads" else set())


def test_everything_is_reached_and_moved_with_the_keyboard(figure):
    page = figure()
    keyboard = page.page.keyboard
    control(page, "batch").focus()
    keyboard.press("ArrowRight")
    order = []
    for _ in range(13):
        found = page.page.evaluate(
            "() => { const at = document.activeElement;"
            " const ring = at.type === 'radio' ? at.parentElement : at;"
            " return [at.dataset.key ?? at.dataset.go, getComputedStyle(ring).outlineStyle]; }"
        )
        order.append(found)
        if found[0] == "queries":
            keyboard.press("ArrowRight")
        if found[0] == "splits":
            keyboard.press("End")
        keyboard.press("Tab")
    keys = "batch heads seq_key queries causal block_m parallel order splits gpu slots moment"
    assert order == [[key, "solid"] for key in [*keys.split(), "first"]]
    assert shown(page) == wanted(state(batch=2, queries="one", splits=SPLITS[-1]))


def test_the_cursor_says_how_many_are_busy(figure):
    page = figure()
    _, schedule = launched(START, 12)
    slider = control(page, "moment")
    assert slider.get_attribute("aria-valuetext") == f"step {schedule.makespan}: 768 programs done"
    moments = [0, 30, 57, 59]
    for moment in moments:
        set_options(page, moment=moment)
        time = int(schedule.makespan * moment / 60 + 0.5)
        text = f"step {time:,}: {schedule.busy_at(time)} of 132 SMs busy"
        assert slider.get_attribute("aria-valuetext") == text
    page.locator("[data-go=first]").click()
    assert slider.get_attribute("aria-valuetext") == "step 0: 132 of 132 SMs busy"
    page.locator("[data-go=play]").click()
    page.page.wait_for_function(
        "() => Number(document.querySelector('[data-key=moment]').value) >= 3"
    )
    assert page.locator("[data-go=play]").inner_text() == "Pause"


def test_it_plays_slowly_for_those_who_asked_for_little_motion(figure):
    page = figure(reduced_motion="reduce")
    page.page.evaluate(
        "() => { const real = setInterval; window.intervals = [];"
        " window.setInterval = (...all) => { intervals.push(all[1]); return real(...all); }; }"
    )
    page.locator("[data-go=play]").click()
    assert page.page.evaluate("intervals") == [800]
    durations = page.evaluate(
        "(root) => [...root.querySelectorAll('rect')]"
        ".map((rect) => getComputedStyle(rect).transitionDuration)"
    )
    assert set(durations) == {"0s"}


def test_the_chart_greys_what_is_idle(figure):
    """The area of the bars over that of the chart is the share of busy time."""
    page = figure()
    set_options(page, gpu="T4", seq_key=1024)
    covered, width, count = page.evaluate(
        """(root) => {
          const chart = root.querySelector(".ps-stage .ps-idle");
          const paths = [...root.querySelectorAll("[class^=ps-tone]")];
          const bars = paths.flatMap((path) =>
            [...path.getAttribute("d").matchAll(/h([\\d.]+)v([\\d.]+)/g)]);
          const area = bars.reduce((total, [, width, height]) => total + width * height, 0);
          return [area, chart.width.baseVal.value, bars.length];
        }"""
    )
    found = expected(state(gpu="T4", seq_key=1024))
    # A bar is up to a pixel shorter than its program, so that neighbours can be told apart.
    height = 400 / SMS["T4"]
    gaps = found["programs"] * height
    busy = found["utilisation"] * width * 400
    rounding = count * 0.005 * (width + height)  # of lengths with two decimals
    assert busy - gaps - rounding <= covered <= busy + rounding


def test_the_verdict_says_what_would_help(figure):
    page = figure()
    set_options(page, parallel="heads")
    found, better = expected(state(parallel="heads")), expected(state())
    gain = found["makespan"] / better["makespan"]
    assert status(page) == (
        f"12 programs on 132 SMs: {100 * found['utilisation']:.1f}% busy. 120 SMs get none. "
        f"A program a tile of queries would make that 768, {gain:.1f}× as fast."
    )
    set_options(page, parallel="tiles", order="first")
    assert "Starting with the longest would be" in status(page)
    set_options(page, queries="one")
    assert "Cutting the keys into" in status(page)
    set_options(page, queries="all", order="longest", seq_key=65536)
    assert "Neither another order nor another number of splits would gain 5%." in status(page)


def test_it_says_when_heads_are_left_out(figure):
    page = figure()
    note = page.locator(".ps-left-out")
    assert "All heads" in note.inner_text()
    set_options(page, batch=64, heads=64, seq_key=65536)
    heads = expected(state(batch=64, heads=64, seq_key=65536))["heads"]
    assert f"Of 4,096 heads the first {heads} are scheduled" in note.inner_text()


HARD = [
    {},
    {"queries": "one", "seq_key": 131072, "gpu": "B200", "slots": 2, "heads": 1},
    {"batch": 64, "heads": 64, "queries": "all", "splits": 1, "moment": 20},
    {"parallel": "heads", "gpu": "T4", "seq_key": 256, "causal": False, "batch": 1, "moment": 60},
]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_is_cut_off_or_overlaps(figure, width):
    page = figure(width=width)
    parts = [
        ".ps-controls",
        ".ps-verdict",
        ".ps-stage svg",
        ".ps-numbers",
        ".ps-table",
        ".bf-notes",
    ]
    places = set()
    for options in HARD:
        set_options(page, **options)
        boxes = [page.locator(part).first.bounding_box() for part in parts]
        top = page.bounding_box()["y"]
        places.add(tuple((box["y"] - top, box["width"], box["height"]) for box in boxes))
        outside, overlaps = page.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              const seen = [...root.querySelectorAll("text, span, p, b, label")]
                .filter((node) => !node.closest(".bf-hidden"));
              const outside = seen.filter((node) => {
                const box = node.getBoundingClientRect();
                return box.width && (box.left < frame.left || box.right > frame.right);
              }).map((node) => node.textContent);
              const texts = [...root.querySelectorAll(".ps-stage text")];
              const meet = (a, b) => a.left < b.right && b.left < a.right &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
              const overlaps = texts.flatMap((one, index) => texts.slice(index + 1)
                .filter((other) => meet(one.getBoundingClientRect(), other.getBoundingClientRect()))
                .map((other) => [one.textContent, other.textContent]));
              return [outside, overlaps];
            }"""
        )
        assert (outside, overlaps) == ([], []), options
    assert len(places) == 1


def test_the_slider_stands_under_the_cursor(figure):
    page = figure()
    set_options(page, moment=0)
    line, slider = page.locator(".ps-cursor"), control(page, "moment")
    thumb = 8  # half of its width
    left = slider.bounding_box()["x"] + thumb
    assert line.evaluate("(node) => node.getBoundingClientRect().x") == pytest.approx(left, abs=1)
    set_options(page, moment=60)
    box = slider.bounding_box()
    page.page.wait_for_timeout(300)  # the cursor glides
    right = line.evaluate("(node) => node.getBoundingClientRect().right")
    assert right == pytest.approx(box["x"] + box["width"] - thumb, abs=1)


def test_a_bar_is_a_program(figure):
    """Four programs on the page: as many bars, of their lengths."""
    page = figure()
    set_options(page, heads=4, seq_key=256, causal=False, queries="one", gpu="T4")
    bars = page.evaluate(
        """(root) => [...root.querySelectorAll("[class^=ps-tone]")]
          .filter((path) => path.getAttribute("d")).map((path) => path.getBBox().width)"""
    )
    schedule = greedy_schedule([5] * 4, SMS["T4"])  # four tiles and the overhead
    assert shown(page)[3] == schedule.makespan == 5
    width = page.locator(".ps-stage .ps-idle").evaluate("(node) => node.width.baseVal.value")
    assert bars == pytest.approx([width - 1] * 4, abs=0.01)
