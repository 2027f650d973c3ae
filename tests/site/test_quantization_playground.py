"""Rounding to FP8, on a built page: the controls, the numbers it shows, and its pictures."""

import re

import pytest

from figures.quantization_playground import CHANNELS, OUTLIERS, ROWS, QuantizationPlayground
from tests.figures.test_quantization_playground import SHARINGS, START, expected, finite_numbers

from .test_figure import control, move_slider
from .test_pages import AXE, AXE_RULES, THEME_PARTS, open_page

WIDTHS = [360, 800, 1440]
NAMES = ("dataError", "ordinaryError", "scoresError", "zeros", "saturated")


@pytest.fixture(scope="module")
def page_name(specimen_site):
    """A page of the specimen with this figure in the place of its own."""
    source = (specimen_site / "tile_stepper.html").read_text("utf-8")
    place = re.compile(r'<div class="book-figure".*?</p></div>', re.S)
    assert len(place.findall(source)) == 1
    ours = QuantizationPlayground().static_html()
    name = "quantization_playground.html"
    (specimen_site / name).write_text(place.sub(lambda _: ours, source), "utf-8")
    return name


@pytest.fixture
def figure(new_page, address, page_name):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/{page_name}")
        return tab.locator(".bf")

    return show


def set_options(figure, **options):
    for key, value in options.items():
        if key == "outlier":
            move_slider(figure, key, OUTLIERS.index(value))
        elif key == "distribution":
            control(figure, key).select_option(value)
        else:
            text = str(value).lower()
            figure.locator(f"label:has([data-key={key}][value='{text}'])").click()


def shown(figure):
    values = figure.locator("[data-name]").evaluate_all(
        "(all) => all.map((one) => [one.dataset.name, Number(one.dataset.number)])"
    )
    return dict(values)


def wanted(options):
    found = expected(options)
    close = {name: pytest.approx(found[name], rel=1e-9) for name in NAMES[:3]}
    return close | {name: found[name] for name in NAMES[3:]}


def status(figure):
    return figure.get_by_role("status").inner_text()


SETTINGS = [
    {},
    {"outlier": 1000, "sharing": "none"},
    {"distribution": "heavy tail", "outlier": 10**5, "rotated": True},
    {"distribution": "outlier element", "outlier": 10**6, "sharing": "block"},
    {"distribution": "gaussian", "format": "e5m2", "sharing": "row"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_its_controls_change_the_numbers_to_numpys(figure, options):
    page = figure()
    set_options(page, **options)
    chosen = START | options
    assert shown(page) == wanted(chosen)
    unused = page.locator("[inert] [data-key]").evaluate_all(
        "(all) => all.map((e) => e.dataset.key)"
    )
    assert unused == (["outlier"] if chosen["distribution"] == "gaussian" else [])
    current = page.locator("[aria-current=true]")
    rotated = str(chosen["rotated"]).lower()
    assert current.get_attribute("data-cell") == f"{chosen['sharing']} {rotated}"
    errors = [float(error) for error in current.get_attribute("data-errors").split()]
    assert errors == [shown(page)["dataError"], shown(page)["scoresError"]]


def test_it_tells_what_changed_and_why(figure):
    page = figure()
    assert "one of size 1 lands at" in status(page)
    before, now = expected(START), expected(START | {"rotated": True})
    set_options(page, rotated=True)
    change = f"of QKᵀ {100 * before['scoresError']:.2f}% → {100 * now['scoresError']:.2f}%"
    assert change in status(page)
    assert "each outlier is spread over its row" in status(page)
    was = page.locator(".qp-before").all_inner_texts()
    assert was[0] == f"before: {100 * before['dataError']:.2f}%"


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_map_shows_who_shares_a_scale_and_who_sets_it(figure, sharing):
    page = figure()
    set_options(page, sharing=sharing)
    rows = SHARINGS[sharing]
    groups = range(0, ROWS, rows) if rows else []
    outlines = page.locator(".qp-bound").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.group))"
    )
    assert outlines == list(groups)
    sizes = abs(expected(START)["data"])
    largest = [first * CHANNELS + sizes[first : first + rows].argmax() for first in groups]
    rings = page.locator(".qp-sets").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.sets))"
    )
    assert rings == largest


def test_the_map_marks_what_is_lost(figure):
    page = figure()
    options = {"distribution": "outlier element", "outlier": 10**6}
    marks = page.locator(".qp-lost")

    def marked():
        return [(path.get_attribute("d") or "").count("M") for path in marks.all()]

    set_options(page, **options)
    assert marked() == [expected(START | options)["zeros"], 0]
    set_options(page, sharing="none")
    found = expected(START | options | {"sharing": "none"})
    assert marked() == [found["zeros"], 1] and found["saturated"] == 1


@pytest.mark.parametrize("line", ["evenly", "powers"])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_the_line_has_every_number_and_every_element(figure, line, name):
    page = figure()
    set_options(page, line=line, format=name)
    counts = page.locator(".qp-bar").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.count))"
    )
    assert sum(counts) == ROWS * CHANNELS
    teeth = page.locator(".qp-numbers-of").get_attribute("d").count("M")
    grid = finite_numbers(name)
    # Evenly: on both sides of zero, which is drawn from either; by powers: those above zero.
    assert teeth == (len(grid) + 1 if line == "evenly" else (grid > 0).sum())


def test_numbers_lie_densest_near_zero(figure):
    teeth = figure().locator(".qp-numbers-of").get_attribute("d")
    places = sorted(float(x) for x in re.findall(r"M([\d.]+) ", teeth))
    middle = (places[0] + places[-1]) / 2
    gaps = [right - left for left, right in zip(places, places[1:], strict=False)]
    outer = [gap for gap, at in zip(gaps, places, strict=False) if at > middle]
    # Each is as wide as the one before, or wider, but for the two decimals of the path.
    assert all(one <= other + 0.011 * 2 for one, other in zip(outer, outer[1:], strict=False))
    assert outer[-1] > 15 * sum(outer[:10])


def test_an_element_is_followed_with_keys_and_mouse(figure):
    page = figure()
    picker, keyboard = control(page, "element"), page.page.keyboard
    picker.focus()
    assert picker.get_attribute("aria-valuetext").startswith("Row 7, channel 22: ")
    for key, place in [
        ("ArrowRight", "Row 7, channel 23"),
        ("ArrowDown", "Row 8, channel 23"),
        ("ArrowLeft", "Row 8, channel 22"),
        ("ArrowUp", "Row 7, channel 22"),
    ]:
        keyboard.press(key)
        assert picker.get_attribute("aria-valuetext").startswith(f"{place}: ")
    box = picker.bounding_box()
    cell = box["width"] / CHANNELS, box["height"] / ROWS
    picker.click(position={"x": 40.5 * cell[0], "y": 2.5 * cell[1]})
    text = picker.get_attribute("aria-valuetext")
    code = expected(START)["codes"][2, 40]
    assert text.startswith("Row 3, channel 41: ")
    assert f"in e4m3 {code:.3g}.".replace("-", "−") in text
    assert page.locator(".qp-element").inner_text() == text
    picker.press("Home")  # no key of this slider's
    assert picker.get_attribute("aria-valuetext") == text


def test_everything_is_reached_and_moved_with_the_keyboard(figure):
    page = figure()
    keyboard = page.page.keyboard
    control(page, "distribution").focus()
    keyboard.press("Shift")
    order = []
    for _ in range(7):
        found = page.page.evaluate(
            "() => { const at = document.activeElement;"
            " const ring = at.type === 'radio' ? at.parentElement : at;"
            " return [at.dataset.key, getComputedStyle(ring).outlineStyle]; }"
        )
        order.append(found)
        if found[0] in ("outlier", "format", "rotated"):
            keyboard.press("ArrowRight")
        keyboard.press("Tab")
    keys = "distribution outlier format sharing rotated element line"
    assert order == [[key, "solid"] for key in keys.split()]
    changed = {"outlier": 20, "format": "e5m2", "rotated": True}
    assert shown(page) == wanted(START | changed)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(figure, theme):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: it comes with npm")
    page = figure(color_scheme=theme).page
    page.add_script_tag(path=str(AXE))
    options = {"runOnly": AXE_RULES, "preload": False}
    found = page.evaluate(
        "([parts, options]) => axe.run(parts, options)", [{"exclude": THEME_PARTS}, options]
    )
    ours = [
        (violation["id"], node["html"][:160], node.get("failureSummary"))
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
    assert ours == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_no_word_is_cut_off_and_nothing_is_nan(figure, width):
    page = figure(width=width)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    places = set()
    for options in [
        {},
        {"rotated": True},
        {"outlier": 1000},
        {"sharing": "none"},
        {"line": "powers"},
        {"distribution": "outlier element", "outlier": 500_000},
        {"sharing": "block", "format": "e5m2"},
        {"rotated": False},
        {"distribution": "heavy tail", "format": "e4m3"},
        {"outlier": 1},
        {"distribution": "gaussian", "sharing": "row"},
    ]:
        set_options(page, **options)
        seen = page.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              const parts = [...root.querySelectorAll(
                ".bf-controls, .qp-verdict, .qp-figures, .qp-map, .qp-element, .qp-part, .bf-notes")];
              const cut = [...root.querySelectorAll("text, span, p, b, label, strong")]
                .filter((node) => !node.closest(".bf-hidden"))
                .filter((node) => {
                  const box = node.getBoundingClientRect();
                  return box.width && (box.left < frame.left || box.right > frame.right);
                }).map((node) => node.textContent);
              const texts = [...root.querySelectorAll("svg text")];
              const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
              const overlaps = texts.flatMap((one, index) => texts.slice(index + 1)
                .filter((other) => meet(one.getBoundingClientRect(), other.getBoundingClientRect()))
                .map((other) => [one.textContent, other.textContent]));
              return {
                places: parts.map((part) => part.getBoundingClientRect())
                  .map((box) => [box.top - frame.top, box.width, box.height].join()).join(";"),
                cut, overlaps, text: root.textContent + root.outerHTML,
              };
            }"""
        )
        assert (seen["cut"], seen["overlaps"]) == ([], []), options
        assert not re.search(r"NaN|undefined|null", seen["text"]), options
        places.add(seen["places"])
    assert len(places) == 1


def test_a_rotation_keeps_the_tones_of_the_map(figure):
    """The outlier's strongest tone leaves the map with it: what is spread is paler."""
    page = figure()
    set_options(page, outlier=100)

    def strongest():
        drawn = page.locator("[data-map=value] path[class^=qp-value]").evaluate_all(
            "(all) => all.map((path) => path.getAttribute('d') !== '')"
        )
        return max(tone for tone, used in enumerate(drawn) if used)

    before = strongest()
    set_options(page, rotated=True)
    assert before == 13 and strongest() < before
