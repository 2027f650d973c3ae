"""Warps over time, on a built page: the switches, and what the figure then says."""

import pytest

from figures.warp_timeline import SWITCHES, WarpTimeline
from tests.figures.test_warp_timeline import expected, run_of, steps_of

from .test_figure import control, move_slider
from .test_pages import open_page

WIDTHS = [360, 800, 1440]
STATE = WarpTimeline().state()
START = {key: STATE[key] for key in SWITCHES}
POSITIONS = 400


@pytest.fixture
def figure(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/warp_timeline.html")
        return tab.locator(".bf")

    return show


def switch(figure, **options):
    for key, value in options.items():
        text = str(value).lower()
        figure.locator(f"label:has([data-key={key}][value='{text}'])").click()


def shown(figure):
    numbers = figure.locator("[data-name]").evaluate_all(
        "(all) => all.map((one) => [one.dataset.name, Number(one.dataset.number)])"
    )
    return dict(numbers)


def words(figure, lane):
    return figure.locator(f"[data-lane='{lane}'] [role=cell]").inner_text()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loader": "alone"},
        {"stages": 3, "overlap": "softmax", "head_dim": 64, "pingpong": True},
    ],
    ids=str,
)
def test_its_switches_change_the_numbers_to_the_runs(figure, options):
    page = figure()
    switch(page, **options)
    setting = START | options
    alone = setting["loader"] == "alone"
    if alone:
        setting["pingpong"] = False
    assert shown(page) == expected(run_of(**setting))
    assert page.locator("[inert] [data-key=pingpong]").count() == (2 if alone else 0)


def test_it_tells_what_a_switch_changed(figure):
    page = figure()
    status = page.get_by_role("status")
    assert "Change a switch" in status.inner_text()
    switch(page, stages=1)
    before, now = run_of(**START), run_of(**START | {"stages": 1})
    more = f"{100 * (now['cycles'] / before['cycles'] - 1):.1f}% more than before"
    assert f"{now['cycles']:,} cycles" in status.inner_text()
    assert f"{more}. A pair of tiles is asked for only when the one before it is used up." in (
        status.inner_text()
    )
    shares = page.locator(".wt-change").all_inner_texts()
    assert shares[0] == more
    assert shares[1] == f"before: {100 * expected(before)['tensorCores']:.1f}%"
    (title,) = page.locator("svg text", has_text="Before").all_text_contents()
    assert f"{before['cycles']:,} cycles" in title


def test_of_pingpong_it_tells_the_order(figure):
    page = figure()
    status = page.get_by_role("status")
    whole = steps_of(run_of(**START))["whole"]
    switch(page, pingpong=True)
    assert f"in one piece: in 10 of 10 steps, before in {whole}. That is" in status.inner_text()
    switch(page, pingpong=False)
    assert f"may mix: those of a step come in one piece in {whole} of 10 steps, before in 10" in (
        status.inner_text()
    )


def test_the_slider_moves_the_cursor_and_the_words(figure):
    page = figure()
    run = run_of(**START)
    slider = control(page, "position")
    for position in (0, 100, 222, POSITIONS):
        move_slider(page, "position", position)
        cycle = int(run["cycles"] * position / POSITIONS + 0.5)
        running = [row for row in run["products"] if row[4] <= cycle < row[5]]
        said = words(page, "tensor cores")
        assert said == (
            f"{('QKᵀ', 'PV')[running[0][1]]} {running[0][2]} of consumer {running[0][0]}"
            if running
            else "idle"
        )
        heard = slider.get_attribute("aria-valuetext")
        assert heard.startswith(f"cycle {cycle:,}: producer ")
        assert f"consumer 1 {words(page, 'consumer 1')}" in heard
    assert words(page, "consumer 0") == "done"


def test_the_cursor_stands_over_the_slider(figure):
    page = figure()
    thumb = 8  # half of its width
    for position, side in ((0, 1), (POSITIONS, -1)):
        move_slider(page, "position", position)
        box = control(page, "position").bounding_box()
        middle = box["x"] + (thumb if side > 0 else box["width"] - thumb)
        line = page.locator(".wt-cursor").evaluate("(one) => one.getBoundingClientRect().x")
        assert line == pytest.approx(middle, abs=1)


def test_steps_go_from_event_to_event(figure):
    page = figure()
    page.locator("[data-go=first]").click()
    slider = control(page, "position")
    seen = []
    for _ in range(4):
        page.locator("[data-go=forward]").click()
        seen.append(slider.get_attribute("aria-valuetext").partition(":")[0])
    run = run_of(**START)
    times = {row[1] for rows in run["partitions"] for row in rows}
    times |= {time for row in run["copies"] for time in row[3:]}
    assert seen == [f"cycle {time:,}" for time in sorted(times)[:4]]
    page.locator("[data-go=last]").click()
    assert slider.get_attribute("aria-valuetext").startswith(f"cycle {run['cycles']:,}:")


def test_everything_is_reached_and_moved_with_the_keyboard(figure):
    page = figure()
    keyboard = page.page.keyboard
    control(page, "loader").last.focus()
    order = []
    for _ in range(6):
        found = page.page.evaluate(
            "() => { const at = document.activeElement;"
            " const ring = at.type === 'radio' ? at.parentElement : at;"
            " return [at.dataset.key ?? at.dataset.go, getComputedStyle(ring).outlineStyle]; }"
        )
        order.append(found)
        if found[0] == "stages":
            keyboard.press("ArrowRight")
        keyboard.press("Tab")
    keys = ["loader", "stages", "head_dim", "overlap", "pingpong", "position"]
    assert order == [[key, "solid"] for key in keys]
    assert shown(page) == expected(run_of(**START | {"stages": 3}))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_with_the_cursor_or_is_cut_off(figure, width):
    page = figure(width=width)
    for setting in ({}, {"head_dim": 64, "stages": 3}, {"loader": "alone", "stages": 1}):
        switch(page, **setting)
        parts = [".wt-verdict", ".wt-stage svg", ".wt-words", ".wt-numbers", ".bf-notes"]
        places = set()
        for position in range(0, POSITIONS + 1, 25):
            move_slider(page, "position", position)
            places.add(
                page.evaluate(
                    """(root, parts) => JSON.stringify(parts.map((part) => {
                      const box = root.querySelector(part).getBoundingClientRect();
                      return [box.y - root.getBoundingClientRect().y, box.height];
                    }))""",
                    parts,
                )
            )
        assert len(places) == 1, setting
        outside, overlaps = page.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              const seen = [...root.querySelectorAll("text, span, p, b, label")]
                .filter((node) => !node.closest(".bf-hidden"));
              const outside = seen.filter((node) => {
                const box = node.getBoundingClientRect();
                return box.width && (box.left < frame.left || box.right > frame.right);
              }).map((node) => node.textContent);
              const texts = [...root.querySelectorAll(".wt-stage text")];
              const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
              const overlaps = texts.flatMap((one, index) => texts.slice(index + 1)
                .filter((other) => meet(one.getBoundingClientRect(), other.getBoundingClientRect()))
                .map((other) => [one.textContent, other.textContent]));
              return [outside, overlaps];
            }"""
        )
        assert (outside, overlaps) == ([], []), setting


def test_the_bars_of_the_tensor_cores_are_their_busy_time(figure):
    """The lengths of the lane's bars over its own are the share the figure prints."""
    page = figure()
    lane, lengths = page.evaluate(
        """(root) => {
          const track = [...root.querySelectorAll(".wt-track")]
            .find((rect) => rect.height.baseVal.value === 20);
          const y = track.y.baseVal.value;
          const bars = [...root.querySelectorAll("path.wt-scores, path.wt-output")]
            .flatMap((path) => [...path.getAttribute("d")
              .matchAll(/M[\\d.]+ ([\\d.]+)h([\\d.]+)v([\\d.]+)/g)])
            .filter((bar) => Number(bar[1]) >= y && Number(bar[1]) + Number(bar[3]) === y + 20)
            .map((bar) => Number(bar[2]));
          return [track.width.baseVal.value, bars];
        }"""
    )
    run = run_of(**START)
    assert len(lengths) == len(run["products"])
    gap = 0.6  # between neighbours
    busy = (sum(lengths) + gap * len(lengths)) / lane
    assert busy == pytest.approx(expected(run)["tensorCores"], abs=0.005 * len(lengths) / lane)
