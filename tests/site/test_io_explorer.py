"""The IO explorer on a built page: its controls, and the numbers and words it then shows."""

import pytest

from figures._gpus import datasheet_gpus
from figures.io_explorer import IOExplorer
from tests.figures.test_io_explorer import ALGORITHMS, expected

from .test_figure import control, move_slider
from .test_pages import open_page

WIDTHS = [360, 800, 1440]
START = {name: IOExplorer.class_traits()[name].default_value for name in IOExplorer().state()}
START |= {"visible": 0.25, "gpu": "H200"}


@pytest.fixture
def figure(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/io_explorer.html")
        return tab.locator(".bf")

    return show


def set_options(figure, **options):
    """Moves the controls; how each is moved by hand is the business of other tests."""
    for key, value in options.items():
        if key == "gpu":
            control(figure, key).select_option(value)
        elif key in ("head_dim", "dtype", "tiles"):
            figure.locator(f"label:has([data-key={key}][value='{value}'])").click()
        else:
            offered = list(IOExplorer.class_traits()[key].values)
            move_slider(figure, key, offered.index(value))


def rows(figure):
    return [figure.locator(f".io-row[data-algorithm={name}]") for name in ALGORITHMS]


def shown(figure):
    """Bytes, bytes by tensor, and intensity of each algorithm, as they stand in the page."""
    found = []
    for row in rows(figure):
        parts = row.locator("[data-tensor]").evaluate_all(
            "(rects) => rects.map((rect) => [rect.dataset.tensor, Number(rect.dataset.bytes)])"
        )
        moved, intensity = (
            float(row.get_attribute(name)) for name in ("data-bytes", "data-intensity")
        )
        found.append((moved, dict(parts), intensity))
    return found


def wanted(options):
    algorithms, _ = expected(START | options)
    return [
        (sum(parts.values()), parts, flops / sum(parts.values())) for parts, flops in algorithms
    ]


def status(figure):
    return figure.get_by_role("status").inner_text()


def test_it_starts_with_pythons_numbers(figure):
    assert shown(figure()) == wanted({})


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_length": 128, "head_dim": 256, "dtype": "fp32"},
        {"sequence_length": 131072, "sram_kib": 228, "visible": 1 / 64},
        {"tiles": "chosen", "block_m": 256, "block_n": 16, "dtype": "bf16", "gpu": "MI300X"},
        {"tiles": "chosen", "block_m": 16, "block_n": 256, "head_dim": 128, "visible": 1.0},
    ],
)
def test_its_controls_change_the_numbers_to_pythons(figure, options):
    page = figure()
    set_options(page, **options)
    assert shown(page) == wanted(options)


def test_everything_is_reached_and_moved_with_the_keyboard(figure):
    page = figure()
    keyboard = page.page.keyboard
    control(page, "sequence_length").focus()
    keyboard.press("End")
    order = []
    for _ in range(8):
        focused = "() => { const at = document.activeElement;"
        ring = " const ring = at.type === 'radio' ? at.parentElement : at;"
        found = page.page.evaluate(
            focused + ring + " return [at.dataset.key, getComputedStyle(ring).outlineStyle]; }"
        )
        order.append(found)
        if found[0] == "tiles":
            keyboard.press("ArrowRight")
        keyboard.press("Tab")
    keys = ["sequence_length", "visible", "head_dim", "dtype", "tiles", "gpu"]
    assert order == [[key, "solid"] for key in [*keys, "block_m", "block_n"]]
    assert shown(page) == wanted({"sequence_length": 131072, "tiles": "chosen"})


def test_the_rule_of_algorithm_1_is_shown(figure):
    page = figure()
    sizes = page.locator(".io-sizes")
    assert sizes.inner_text().split("\n")[1::2] == ["200 keys", "64 queries"]
    set_options(page, sram_kib=16, head_dim=256, dtype="fp32")
    assert sizes.inner_text().split("\n")[1::2] == ["4 keys", "4 queries"]
    set_options(page, tiles="chosen")
    assert sizes.is_hidden() and control(page, "sram_kib").is_hidden()
    assert control(page, "block_m").is_visible()


def test_outside_the_theorem_it_says_so(figure):
    page = figure()
    notice = page.locator(".io-notice")
    assert notice.get_attribute("data-within") == "yes"
    assert "stops at d = 64" in notice.inner_text()
    set_options(page, sequence_length=512)  # Nd = 32,768 numbers; M = 51,200
    assert notice.get_attribute("data-within") == "no"
    assert "M = 51,200 numbers is more than Nd = 32,768" in notice.inner_text()
    set_options(page, sequence_length=16384, head_dim=256, dtype="fp32")
    assert "no exact algorithm does better" in notice.inner_text()
    set_options(page, gpu="T4")
    assert "T4 has 64 KiB of SRAM a multiprocessor" in notice.inner_text()


def ratio(options, algorithm):
    found = wanted(options)
    less = found[0][0] / found[ALGORITHMS.index(algorithm)][0]
    text = f"{less:.2f}" if less < 10 else f"{less:.1f}"
    return f"{text}× fewer"


def test_a_screen_reader_hears_ratios_and_limits(figure):
    page = figure()
    assert f"{ratio({}, 'printed')} bytes as printed" in status(page)
    assert f"{ratio({}, 'swapped')} with its loops swapped" in status(page)
    assert f"{ratio({}, 'sparse')} block-sparse (1/4 of the blocks)" in status(page)
    assert "On H200, if HBM answered every request, memory limits all four." in status(page)
    tall = {"tiles": "chosen", "block_m": 256, "visible": 1.0}
    set_options(page, **tall)
    assert "memory limits standard and printed; arithmetic limits swapped and sparse" in status(
        page
    )
    row = rows(page)[2]
    assert "arithmetic" in row.inner_text()
    _, parts, _ = wanted(tall)[2]
    assert f"K {parts['K'] / 1e6:.0f} MB" in row.locator(".bf-hidden").inner_text()


def test_brackets_say_from_where_arithmetic_is_the_limit(figure):
    page = figure()
    thresholds = [
        " ".join(row.locator(".io-limit small").inner_text().split()) for row in rows(page)
    ]
    assert thresholds == ["(no N)"] + ["(no N, no M)"] * 3
    set_options(page, gpu="T4", dtype="fp32", head_dim=256, sequence_length=1024, visible=0.5)
    (gpu,) = [entry for entry in datasheet_gpus() if entry["name"] == "T4"]
    ridge = gpu["tflops"]["fp32"] / gpu["bandwidth_tbs"]
    assert f"ridge at {ridge:.1f} FLOP/B" in page.locator(".io-rates").inner_text()
    options = {"dtype": "fp32", "head_dim": 256, "visible": 0.5}
    least = next(
        n
        for n in IOExplorer.class_traits()["sequence_length"].values
        if wanted(options | {"sequence_length": n})[0][2] > ridge
    )
    assert rows(page)[0].locator(".io-limit small").inner_text() == f"(N ≥ {least})"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_when_the_numbers_change(figure, width):
    page = figure(width=width)
    parts = [".bf-controls", ".io-summary", ".io-table", ".io-stage svg", ".bf-notes"]
    places = set()
    for options in [
        {},
        {"sequence_length": 128, "gpu": "T4", "dtype": "bf16"},
        {"sequence_length": 131072, "visible": 1 / 64, "gpu": "H200", "sram_kib": 16},
        {"tiles": "chosen", "block_m": 256, "block_n": 256, "head_dim": 256, "gpu": "A100 40 GB"},
        {"sequence_length": 256, "dtype": "fp32", "gpu": "MI300X"},
    ]:
        set_options(page, **options)
        boxes = [page.locator(part).first.bounding_box() for part in parts]
        top = page.bounding_box()["y"]
        places.add(tuple((box["y"] - top, box["width"], box["height"]) for box in boxes))
    assert len(places) == 1


HARD_STATES = [
    {},
    {"sequence_length": 128, "visible": 1.0},
    {"sequence_length": 131072, "visible": 1 / 64, "head_dim": 128},
    {"sequence_length": 8192, "head_dim": 256, "tiles": "chosen", "block_m": 256, "block_n": 256},
    {"sequence_length": 128, "dtype": "fp32", "sram_kib": 16, "tiles": "rule", "gpu": "L4"},
]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_words_are_cut_off_and_no_labels_overlap(figure, width):
    page = figure(width=width)
    for options in HARD_STATES:
        set_options(page, **options)
        outside = page.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              return [...root.querySelectorAll("text, span, small, p, b")]
                .filter((node) => !node.closest(".bf-hidden"))
                .filter((node) => {
                  const box = node.getBoundingClientRect();
                  return box.width && (box.left < frame.left || box.right > frame.right);
                }).map((node) => node.textContent);
            }"""
        )
        assert outside == []
        overlaps = page.evaluate(
            """(root) => {
              const texts = [...root.querySelectorAll(".io-stage text")];
              const boxes = texts.map((text) => text.getBoundingClientRect());
              // A text's box has the height of its line: letters touch within it when it overlaps
              // by more than the room between lines.
              const meet = (a, b) => a.left < b.right && b.left < a.right &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
              const found = [];
              boxes.forEach((box, one) => boxes.slice(one + 1).forEach((other, index) => {
                if (meet(box, other)) found.push(
                  [texts[one].textContent, texts[one + 1 + index].textContent]);
              }));
              return found;
            }"""
        )
        assert overlaps == [], options


def test_labels_stand_beside_their_own_points(figure):
    """No label is crossed by the line of another."""
    page = figure(width=360)
    for options in HARD_STATES:
        set_options(page, **options)
        crossed = page.evaluate(
            """(root) => {
              const labels = [...root.querySelectorAll(".io-label")];
              const lines = [...root.querySelectorAll(".io-leader")];
              return labels.filter((label) => lines.some((line) => {
                const [box, x] = [label.getBBox(), Number(line.getAttribute("x1"))];
                const ends = ["y1", "y2"].map((end) => Number(line.getAttribute(end)));
                return box.x < x && x < box.x + box.width &&
                  Math.min(...ends) < box.y + box.height - 3 && Math.max(...ends) > box.y + 3;
              })).map((label) => label.textContent);
            }"""
        )
        assert crossed == [], options
