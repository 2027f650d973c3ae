"""The second figure on a built page: its bars, buttons and steps, and the numbers it then shows."""

import re

import pytest

from figures.online_softmax import DEFAULT_SCORES
from tests.figures.test_online_softmax import online_trace, softmax, statistics

from .test_pages import open_page

WIDTHS = [360, 800, 1440]
HIDDEN = float("-inf")


@pytest.fixture
def figure(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/two_figures.html")
        return tab.locator("[data-figure=online_softmax] .bf")

    return show


def go(figure, name):
    figure.locator(f"[data-go={name}]").click()


def choose(figure, text):
    figure.locator(".bf-choices").get_by_text(text, exact=True).click()


def slider(figure, index):
    return figure.locator(f"[data-score='{index}']")


def knob(figure, index):
    """Where the end of a score's bar is on the screen."""
    box = figure.locator(".os-knob").nth(index).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def shown_number(number):
    return str(int(number)) if number in (0, 1) else f"{number:.3f}"


def shown_score(score):
    return "−∞" if score == HIDDEN else f"{score:.1f}".replace("-", "−")


def table(figure):
    """The cells of the table, a list for each block."""
    rows = [row.locator("[role=cell]").all_inner_texts() for row in figure.locator(".os-row").all()]
    return [list(column) for column in zip(*rows, strict=True)]


def expected_table(scores, block):
    starts = range(0, len(scores), block)
    return [
        [
            shown_score(max(scores[start : start + block])),
            shown_score(running_max),
            shown_number(rescale),
            shown_number(running_sum),
        ]
        for start, (running_max, rescale, running_sum) in zip(
            starts, online_trace(scores, block), strict=True
        )
    ]


def shown_terms(figure):
    texts = figure.locator(".os-term").evaluate_all("(bars) => bars.map((b) => b.dataset.number)")
    return [float(text) if text else None for text in texts]


def status(figure):
    return figure.get_by_role("status").inner_text().replace("\u00a0", " ")


def test_stepping_through_shows_pythons_numbers(figure):
    shown = figure()
    expected = expected_table(DEFAULT_SCORES, 2)
    go(shown, "first")
    for step in range(5):
        unread = [["·"] * 4] * (4 - step)
        assert table(shown) == expected[:step] + unread
        largest, total = statistics(DEFAULT_SCORES[: 2 * step] or [HIDDEN])
        assert f"ℓ = {shown_number(total)}" in status(shown)
        assert f"m = {shown_score(largest)}" in status(shown)
        go(shown, "forward")
    assert shown_terms(shown) == pytest.approx(softmax(DEFAULT_SCORES), rel=1e-12)
    go(shown, "back")
    largest = max(DEFAULT_SCORES)
    terms = [pytest.approx(2.718281828459045 ** (x - largest), rel=1e-9) for x in DEFAULT_SCORES]
    assert shown_terms(shown) == terms


@pytest.mark.parametrize("block", [1, 4, 8])
def test_every_block_size_ends_alike(figure, block):
    shown = figure()
    go(shown, "first")
    choose(shown, str(block))
    go(shown, "last")
    assert table(shown) == expected_table(DEFAULT_SCORES, block)
    assert "ℓ = 1.676" in status(shown)


def test_when_the_maximum_rises_the_old_terms_shrink(figure):
    shown = figure()  # at step 2
    go(shown, "forward")
    before = shown_terms(shown)[:6]
    go(shown, "forward")
    after = shown_terms(shown)[:6]
    rescale = online_trace(DEFAULT_SCORES, 2)[3][1]
    assert after == pytest.approx([rescale * term for term in before], rel=1e-12)
    assert f"α = {rescale:.3f}" in status(shown)
    assert shown.locator(".os-bracket").count() == 1
    assert shown.locator("svg text", has_text=f"× {rescale:.3f}").count() == 1


def test_a_bar_follows_the_mouse(figure):
    shown = figure()
    slider(shown, 3).scroll_into_view_if_needed()
    mouse = shown.page.mouse
    x, y = knob(shown, 3)
    unit = slider(shown, 3).bounding_box()["height"] / 16
    mouse.move(x + 3, y + 3)
    mouse.down()
    mouse.move(x + 3, y + 3 - 4 * unit, steps=5)
    mouse.up()
    assert slider(shown, 3).get_attribute("aria-valuetext") == "4.9"  # from 0.9
    mouse.move(x, y)
    assert slider(shown, 3).get_attribute("aria-valuetext") == "4.9"
    changed = DEFAULT_SCORES[:3] + [4.9] + DEFAULT_SCORES[4:]
    go(shown, "last")
    assert table(shown) == expected_table(changed, 2)
    assert shown_terms(shown) == pytest.approx(softmax(changed), rel=1e-12)


def test_a_finger_moves_a_bar_by_its_end_and_scrolls_elsewhere(figure):
    shown = figure(has_touch=True, width=360)
    slider(shown, 7).scroll_into_view_if_needed()
    devtools = shown.page.context.new_cdp_session(shown.page)

    def swipe(x, y, change):
        for kind, at in [
            ("touchStart", y),
            ("touchMove", y + change / 2),
            ("touchMove", y + change),
        ]:
            points = [{"x": x, "y": at}]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    x, y = knob(shown, 7)
    swipe(x, y, slider(shown, 7).bounding_box()["height"] / 4)
    assert slider(shown, 7).get_attribute("aria-valuetext") == "0.6"
    scrolled = shown.page.evaluate("scrollY")
    x, y = knob(shown, 7)
    swipe(x, y - 40, -100)
    shown.page.wait_for_function("(before) => scrollY > before", arg=scrolled)
    assert slider(shown, 7).get_attribute("aria-valuetext") == "0.6"


def test_a_bar_follows_the_keys(figure):
    shown = figure()
    slider(shown, 0).focus()
    for key, text in [
        ("ArrowUp", "1.3"),
        ("ArrowRight", "1.4"),
        ("PageDown", "0.4"),
        ("ArrowDown", "0.3"),
        ("ArrowLeft", "0.2"),
        ("Home", "−4.0"),
        ("ArrowDown", "−4.0"),
        ("End", "12.0"),
    ]:
        shown.page.keyboard.press(key)
        assert slider(shown, 0).get_attribute("aria-valuetext") == text
    assert slider(shown, 0).get_attribute("aria-valuenow") == "12"
    assert "m = 12.0" in status(shown)


def test_a_hidden_score_counts_for_nothing_and_comes_back(figure):
    shown = figure()
    button = shown.locator("[data-hide='7']")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert slider(shown, 7).get_attribute("aria-valuetext") == "minus infinity, hidden"
    masked = DEFAULT_SCORES[:7] + [HIDDEN]
    go(shown, "last")
    assert table(shown) == expected_table(masked, 2)
    assert shown_terms(shown) == pytest.approx(softmax(masked), rel=1e-12)
    button.click()
    assert slider(shown, 7).get_attribute("aria-valuetext") == "4.6"
    assert shown_terms(shown) == pytest.approx(softmax(DEFAULT_SCORES), rel=1e-12)


def test_a_row_with_everything_hidden_is_guarded(figure):
    shown = figure()
    everything = shown.get_by_role("button", name="hide all scores")
    everything.click()
    assert table(shown) == [["−∞", "−∞", "0", "0"]] * 2 + [["·"] * 4] * 2
    assert "0 is subtracted in its place" in status(shown)
    assert shown.locator("[data-name=alpha]").inner_text() == "exp(−∞ − 0) = 0"
    assert shown.locator(".bf-pill").inner_text() == "0 / 0"
    go(shown, "last")
    assert "every p is 0" in status(shown)
    assert shown_terms(shown) == [0] * 8
    everything.click()
    assert shown_terms(shown) == pytest.approx(softmax(DEFAULT_SCORES), rel=1e-12)


def test_two_halves_merge_into_the_same(figure):
    shown = figure()
    choose(shown, "in two halves")
    halves = DEFAULT_SCORES[:4], DEFAULT_SCORES[4:]
    assert table(shown) == expected_table(halves[0], 2) + expected_table(halves[1], 2)
    sums = [statistics(half)[1] for half in halves]
    assert all(
        f"ℓ{name} = {total:.3f}" in status(shown) for name, total in zip("₁₂", sums, strict=True)
    )
    go(shown, "forward")
    assert "m = 4.6 and ℓ = 1.676: equal." in status(shown)
    words = shown.locator("[data-name=sum]").inner_text()
    assert words == f"0.223 · {sums[0]:.3f} + 1 · {sums[1]:.3f} = 1.676"
    largest = max(DEFAULT_SCORES)
    assert sum(shown_terms(shown)) == pytest.approx(statistics(DEFAULT_SCORES)[1], rel=1e-12)
    assert shown_terms(shown)[DEFAULT_SCORES.index(largest)] == 1
    go(shown, "forward")
    assert shown_terms(shown) == pytest.approx(softmax(DEFAULT_SCORES), rel=1e-12)


def test_a_sum_without_a_maximum_overflows_in_fp16(figure):
    shown = figure()
    pill = shown.locator(".bf-pill")
    choose(shown, "fp16")
    assert pill.inner_text() == "fits in fp16"
    slider(shown, 0).focus()
    shown.page.keyboard.press("End")
    assert pill.inner_text() == "overflows fp16"
    assert shown.locator("[data-name=naive]").inner_text().startswith("exp(max) = 162,755;")
    assert "overflows fp16" in status(shown)
    choose(shown, "fp32")
    assert pill.inner_text() == "fits in fp32"


def test_it_plays_to_the_end_and_can_be_paused(new_page, address):
    page = new_page()
    page.clock.install()
    open_page(page, f"{address('specimen')}/two_figures.html")
    shown = page.locator("[data-figure=online_softmax] .bf")
    play, position = shown.locator("[data-go=play]"), shown.locator(".os-position .os-long")
    go(shown, "first")
    play.click()
    assert (play.inner_text(), position.inner_text()) == ("Pause", "step 1 of 5")
    page.clock.run_for(1600)
    play.click()
    page.clock.run_for(5000)
    assert (play.inner_text(), position.inner_text()) == ("Play", "step 2 of 5")
    play.click()
    page.clock.run_for(10000)
    assert (play.inner_text(), position.inner_text()) == ("Play", "step 5 of 5")
    play.click()
    assert position.inner_text() == "step 0 of 5"


def test_a_button_at_the_end_keeps_the_focus(figure):
    shown = figure()
    forward = shown.locator("[data-go=forward]")
    forward.focus()
    for _ in range(4):
        shown.page.keyboard.press("Enter")
    assert shown.locator(".os-position .os-long").inner_text() == "step 5 of 5"
    assert forward.get_attribute("aria-disabled") == "true"
    assert forward.evaluate("(button) => button === document.activeElement")


def test_every_control_is_reached_by_tab_and_shows_it(figure):
    shown = figure()
    controls = (
        shown.locator("button:not(.bf-tool), [role=slider]").count() + 3
    )  # and three groups of choices
    assert controls == 5 + 8 + 9 + 3
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
    assert rings == ["solid"] * controls


EVERY_STATE = [
    (block, reading, hidden)
    for block in ("1", "2", "8")
    for reading in ("in one go", "in two halves")
    for hidden in (False, True)
]


def walk(figure):
    """Shows every step of several states, one after the other."""
    for block, reading, hidden in EVERY_STATE:
        choose(figure, block)
        choose(figure, reading)
        choose(figure, "fp16" if hidden else "fp32")
        everything = figure.get_by_role("button", name="hide all scores")
        if (everything.get_attribute("aria-pressed") == "true") != hidden:
            everything.click()
        go(figure, "first")
        while True:
            yield
            forward = figure.locator("[data-go=forward]")
            if forward.get_attribute("aria-disabled") == "true":
                break
            forward.click()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_no_word_is_cut_off_and_nothing_is_nan(figure, width):
    shown = figure(width=width, reduced_motion="reduce")
    slider(shown, 0).focus()
    shown.page.keyboard.press("End")  # the longest words: an overflow
    heights, seen = set(), 0
    for _ in walk(shown):
        state = shown.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              const parts = [...root.querySelectorAll(
                ".bf-controls, .os-caption, .os-formula, .os-stage, .os-table, .os-passes, .bf-notes")];
              const cut = [...root.querySelectorAll("text, span, p, b, button, [data-group]")]
                .filter((node) => !node.closest(".bf-hidden"))
                .filter((node) => {
                  const box = node.getBoundingClientRect();
                  return box.width && (box.left < frame.left || box.right > frame.right);
                });
              return {
                places: parts.map((part) => part.getBoundingClientRect())
                  .map((box) => [box.top - frame.top, box.width, box.height].join()).join(";"),
                cut: cut.map((node) => node.textContent),
                text: root.textContent + root.outerHTML,
              };
            }"""
        )
        assert state["cut"] == []
        assert not re.search(r"NaN|undefined|null", state["text"])
        heights.add(state["places"])
        seen += 1
    assert len(heights) == 1 and seen == 2 * (10 + 7 + 6 + 5 + 3 + 4)


def test_it_keeps_still_for_who_asks_for_it(figure):
    moving = "(bar) => getComputedStyle(bar).transitionDuration"
    assert figure().locator(".os-term").first.evaluate(moving).startswith("0.5s")
    still = figure(reduced_motion="reduce")
    assert still.locator(".os-term").first.evaluate(moving) == "0s"


def test_two_figures_share_a_page(figure):
    page = figure().page
    assert page.locator(".bf").count() == 2
    assert page.locator("script[src$='/figures/_shared.js']").count() == 1
    identifiers = page.eval_on_selector_all("[id]", "(nodes) => nodes.map((node) => node.id)")
    assert len(identifiers) == len(set(identifiers))
