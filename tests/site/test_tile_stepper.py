"""The tile stepper on a built page: its controls, its steps, and the numbers it then shows."""

import re

import pytest

from instruments.tile_trace import trace
from tests.figures.test_tile_stepper import example

from .test_pages import open_page

WIDTHS = [360, 800, 1440]
FIRST = {
    "seq_query": 8,
    "seq_key": 8,
    "block_m": 2,
    "block_n": 2,
    "order": "keys",
    "causal": False,
}
LETTERS = {
    "query": "Q",
    "key": "K",
    "value": "V",
    "accumulator": "O",
    "output": "O",
    "running_max": "m",
    "running_sum": "ℓ",
    "logsumexp": "L",
}
TOKENS, HEAD_DIM = 64, 64  # what a row stands for, on this page


@pytest.fixture
def figure(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/tile_stepper.html")
        return tab.locator("[data-figure=tile_stepper] .bf")

    return show


def go(figure, name):
    button = figure.locator(f"[data-go={name}]")
    if button.get_attribute("aria-disabled") != "true":
        button.click()


def choose(figure, **controls):
    """Sets controls as a reader's hand does: choices by a click, sliders by their keys."""
    for key, value in controls.items():
        inputs = figure.locator(f"[data-key={key}]")
        if inputs.first.get_attribute("type") == "range":
            inputs.focus()
            figure.page.keyboard.press("Home")
            for _ in range(value - 4):
                figure.page.keyboard.press("ArrowRight")
        else:
            text = str(value).lower()
            figure.locator(f"label:has([data-key={key}][value='{text}'])").click()


def run_of(shape, element=2):
    """The same run in Python; its statistics are the example's."""
    example_tensors = example(shape["seq_query"], shape["seq_key"])
    options = {name: shape[name] for name in ("block_m", "block_n", "order", "causal")}
    return trace(*example_tensors, scale=1.0, element=element, **options)


def bytes_of(transfer):
    """The trace moves a row of two float16; the figure 64 rows of 64 numbers in their place."""
    numbers = transfer.bytes * TOKENS
    statistic = transfer.buffer in ("running_max", "running_sum", "logsumexp")
    return numbers if statistic else numbers * HEAD_DIM // 2


def bytes_by_letter(steps):
    total = {}
    for step in steps:
        for transfer in step.loads + step.stores:
            letter = LETTERS[transfer.buffer]
            total[letter] = total.get(letter, 0) + bytes_of(transfer)
    return total


def si_bytes(number):
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            digits = 2 if number < 10 * scale else 1 if number < 100 * scale else 0
            return f"{number / scale:.{digits}f} {unit}"
    return f"{number} B"


def shown_lane(figure, name):
    spans = figure.locator(f"[data-lane={name}] .ts-detail span")
    pairs = spans.evaluate_all("(all) => all.map((s) => [s.dataset.tensor, s.dataset.number])")
    return {tensor: int(number) for tensor, number in pairs}


def shown_total(figure, name):
    return figure.locator(f"[data-name=total-{name}]").inner_text()


def shown_crossings(figure):
    tiles = figure.locator(".ts-tile").evaluate_all(
        "(all) => all.map(({dataset: d}) => [d.tensor, d.tile, d.count, d.here])"
    )
    counts = {(tensor, int(tile)): int(count) for tensor, tile, count, _ in tiles}
    here = {(tensor, int(tile)) for tensor, tile, _, mark in tiles if mark is not None}
    return counts, here


def shown_statistic(number):
    if number == float("-inf"):
        return "−∞"
    text = f"{number:.0f}" if number == int(number) else f"{number:.2f}"
    return text.replace("-", "−")


def shown_rows(figure):
    rows = figure.locator(".ts-row[data-row]").all()
    return [row.locator("[role=cell]").all_inner_texts() for row in rows]


def status(figure):
    return figure.get_by_role("status").inner_text().replace("\u00a0", " ")


def position(figure):
    return figure.locator(".ts-position .ts-long").inner_text()


@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"order": "queries"},
        {"order": "queries", "causal": True, "seq_key": 7, "block_n": 4},
        {"causal": True, "seq_query": 9, "block_m": 4},
        {"order": "queries", "causal": True, "seq_query": 11, "seq_key": 5},
    ],
    ids=str,
)
def test_every_step_shows_pythons_numbers(figure, controls):
    shown = figure()
    choose(shown, **controls)
    shape = FIRST | controls
    run = run_of(shape)
    go(shown, "first")
    assert position(shown) == f"step 0 of {len(run.steps) + 1}"
    kept = {}
    for index, step in enumerate(run.steps):
        go(shown, "forward")
        so_far = run.steps[: index + 1]
        assert shown_lane(shown, shape["order"]) == bytes_by_letter(so_far)
        total = sum(bytes_by_letter(so_far).values())
        assert shown_total(shown, shape["order"]) == si_bytes(total)
        assert f"So far {si_bytes(total)}:" in status(shown)
        moved = [bytes_of(transfer) for transfer in step.loads + step.stores]
        crossing = f"{si_bytes(sum(moved))} cross." if moved else "Nothing crosses."
        assert crossing in status(shown)

        counts, here = shown_crossings(shown)
        expected = {}
        for past in so_far:
            for transfer in past.loads + past.stores:
                tile = LETTERS[transfer.buffer], transfer.tile
                expected[tile] = expected.get(tile, 0) + 1
        assert {tile: count for tile, count in counts.items() if count} == expected
        letters = {(LETTERS[buffer], tile) for buffer, tile in step.on_chip}
        assert here == {tile for tile in letters if tile in counts}

        rows = []
        for at, row in enumerate(step.rows):
            before = kept.get(row, (float("-inf"), 0, 0))
            after = (step.running_max[at], step.running_sum[at], step.accumulator[at][0])
            changes = [
                shown_statistic(new)
                if old == new
                else f"{shown_statistic(old)} → {shown_statistic(new)}"
                for old, new in zip(before, after, strict=True)
            ]
            rescale = shown_statistic(step.rescale[at])
            rows.append([str(row + 1), changes[0], rescale, changes[1], changes[2]])
            kept[row] = after
        assert shown_rows(shown) == rows
    go(shown, "forward")
    assert position(shown) == f"step {len(run.steps) + 1} of {len(run.steps) + 1}"
    assert shown_rows(shown) == [] and "nothing" in shown.locator(".ts-held").get_attribute(
        "data-empty"
    )


def test_the_other_order_is_a_question_until_a_run_has_ended(figure):
    shown = figure()
    assert "Guess" in status(shown)
    assert shown_total(shown, "queries") == "?" and shown_lane(shown, "queries") == {}
    go(shown, "last")
    totals = {
        order: sum(bytes_by_letter(run_of(FIRST | {"order": order}).steps).values())
        for order in ("keys", "queries")
    }
    standard = 4 * 512 * 512 * 2 + 4 * 512 * 64 * 2 + 512 * 4
    assert shown_total(shown, "keys") == si_bytes(totals["keys"]) == "1.41 MB"
    assert shown_total(shown, "queries") == si_bytes(totals["queries"]) == "657 kB"
    assert shown_total(shown, "standard") == si_bytes(standard)
    words = status(shown)
    assert all(si_bytes(total) in words for total in [*totals.values(), standard])
    choose(shown, order="queries")
    go(shown, "first")
    assert shown_total(shown, "keys") == "1.41 MB"
    ghost = float(shown.locator("[data-lane=queries] .ts-ghost").get_attribute("width"))
    whole = shown.locator("[data-lane=standard] svg").first.bounding_box()["width"]
    assert ghost / whole == pytest.approx(totals["queries"] / standard, abs=2 / whole)


def test_a_causal_mask_skips_tiles_in_one_order_only(figure):
    shown = figure()
    skipped = shown.locator("[data-name=skipped]")
    choose(shown, causal=True)
    assert skipped.get_attribute("d") == "" and position(shown) == "step 0 of 17"
    for _ in range(5):
        go(shown, "forward")
    assert "hides this whole tile" in status(shown)
    choose(shown, order="queries")
    assert position(shown) == "step 5 of 11"
    assert skipped.get_attribute("d").count("M") == 2 * 6


def test_the_bar_is_as_long_as_its_bytes(figure):
    shown = figure()
    choose(shown, block_m=4)
    go(shown, "last")
    for lane in ("keys", "queries"):
        spans = shown_lane(shown, lane)
        rects = shown.locator(f"[data-lane={lane}] svg .ts-first, [data-lane={lane}] .ts-again")
        widths = rects.evaluate_all(
            "(all) => all.map((rect) => Number(rect.getAttribute('width')))"
        )
        full = shown.locator("[data-lane=standard] svg").first.bounding_box()["width"]
        standard = sum(shown_lane(shown, "standard").values())
        assert sum(widths) / full == pytest.approx(sum(spans.values()) / standard, abs=2 / full)


def test_large_tiles_do_not_fit(figure):
    shown = figure()
    pill = shown.locator(".bf-pill")
    assert pill.inner_text() == "fits one SM"
    choose(shown, block_m=4, block_n=4)
    assert pill.inner_text() == "too large for one SM"
    # Q, K and V of 256 rows each; O, m, ℓ and S.
    shared, registers = 3 * 256 * 64 * 2, 256 * 64 * 4 + 2 * 256 * 4 + 256 * 256 * 4
    words = f"{si_bytes(shared)} of shared memory, {si_bytes(registers)} of registers"
    assert shown.locator("[data-name=chip-use]").inner_text() == words


def test_it_plays_to_the_end(new_page, address):
    page = new_page()
    page.clock.install()
    open_page(page, f"{address('specimen')}/tile_stepper.html")
    shown = page.locator("[data-figure=tile_stepper] .bf")
    play = shown.locator("[data-go=play]")
    choose(shown, block_m=1, block_n=1)
    play.click()
    assert (play.inner_text(), position(shown)) == ("Pause", "step 1 of 65")
    page.clock.run_for(31_000)  # half a minute, whatever the number of steps
    assert (play.inner_text(), position(shown)) == ("Play", "step 65 of 65")


def test_every_control_is_reached_by_tab_and_shows_it(figure):
    shown = figure()
    shown.locator("input").first.focus()
    shown.page.keyboard.press("ArrowRight")
    rings = []
    while shown.evaluate("(root) => root.contains(document.activeElement)"):
        rings.append(
            shown.page.evaluate(
                "() => { const focused = document.activeElement;"
                " const ring = focused.type === 'radio' ? focused.parentElement : focused;"
                " return getComputedStyle(ring).outlineStyle; }"
            )
        )
        shown.page.keyboard.press("Tab")
    assert rings == ["solid"] * (6 + 5)


SHAPES = [
    {"seq_query": 8, "seq_key": 8, "block_m": 2, "block_n": 2},
    {"seq_query": 16, "seq_key": 16, "block_m": 8, "block_n": 4},
    {"seq_query": 16, "seq_key": 5, "block_m": 4, "block_n": 2},
    {"seq_query": 4, "seq_key": 16, "block_m": 1, "block_n": 4},
]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_no_words_collide_and_nothing_is_nan(figure, width):
    shown = figure(width=width, reduced_motion="reduce")
    everywhere = set()
    for shape in SHAPES:
        choose(shown, **shape)
        for order, causal in [("keys", False), ("queries", True)]:
            choose(shown, order=order, causal=causal)
            go(shown, "first")
            places = set()
            for _ in range(len(run_of(shape | {"order": order, "causal": causal}).steps) + 1):
                go(shown, "forward")
                state = shown.evaluate(
                    """(root) => {
                      const frame = root.getBoundingClientRect();
                      const boxOf = (node) => node.getBoundingClientRect();
                      const parts = [...root.querySelectorAll(".bf-controls, .ts-caption, .ts-hbm,"
                        + ".ts-chip, .ts-held, .ts-rule, .ts-lane, .bf-notes")];
                      const seen = [...root.querySelectorAll("text, span, p, b")]
                        .filter((node) => !node.closest(".bf-hidden") && boxOf(node).width);
                      const cut = seen.filter((node) =>
                        boxOf(node).left < frame.left || boxOf(node).right > frame.right);
                      const words = [...root.querySelectorAll(".ts-hbm text, .ts-held > div > :not(i),"
                        + ".ts-row > *")].map((node) => [node.textContent, textBox(node)]);
                      function textBox(node) {
                        const range = document.createRange();
                        range.selectNodeContents(node);
                        return range.getBoundingClientRect();
                      }
                      // A line box is a little higher than the letters in it.
                      const meet = (a, b) => a.left < b.right - .5 && b.left < a.right - .5 &&
                        a.top < b.bottom - 5 && b.top < a.bottom - 5;
                      const collisions = [];
                      words.forEach(([text, box], index) => words.slice(index + 1)
                        .forEach(([other, place]) => {
                          if (meet(box, place)) collisions.push([text, other]);
                        }));
                      return {
                        places: parts.map((part) => boxOf(part))
                          .map((box) => [box.top - frame.top, box.width, box.height].join()).join(";"),
                        cut: cut.map((node) => node.textContent), collisions,
                        text: root.textContent + root.outerHTML,
                      };
                    }"""
                )
                assert state["cut"] == [] and state["collisions"] == []
                assert not re.search(r"NaN|undefined|null", state["text"])
                places.add(state["places"])
            assert len(places) == 1, shape
            everywhere |= places
    if width == 1440:
        heights = {place.rpartition(";")[2].partition(",")[0] for place in everywhere}
        assert len(heights) == 1


def test_it_keeps_still_for_who_asks_for_it(figure):
    moving = "(bar) => getComputedStyle(bar).transitionDuration"
    assert figure().locator(".ts-lane rect").first.evaluate(moving).startswith("0.18s")
    still = figure(reduced_motion="reduce")
    assert still.locator(".ts-lane rect").first.evaluate(moving) == "0s"
