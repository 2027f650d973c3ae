"""The first figure on a built page: mouse, keyboard, numbers, colours, and room."""

import io
import statistics

import pytest
from PIL import Image

from figures._gpus import datasheet_gpus
from tests.figures.test_life_of_scores import attention_cost

from .test_pages import open_page

WIDTHS = [360, 800, 1440]


@pytest.fixture
def figure(new_page, address):
    """figure(page="index", ...): the figure of that page of the specimen."""

    def show(page="index", **options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/{page}.html")
        return tab.locator(".bf")

    return show


def control(figure, key):
    return figure.locator(f"[data-key={key}]")


def move_slider(figure, key, index):
    control(figure, key).evaluate(
        "(input, index) => { input.value = index; input.dispatchEvent(new Event('input')); }", index
    )


def shown_kernels(figure):
    """Bytes, FLOPs and seconds of the table's rows: three kernels, their sum, the one kernel."""
    rows = figure.locator(".los-row[data-kind]").all()
    cells = [
        [cell.get_attribute("data-number") for cell in row.locator("[data-number]").all()]
        for row in rows
    ]
    return [(float(moved), float(flops), float(seconds)) for moved, flops, _, seconds in cells]


def expected_kernels(n, d, dtype, heads, gpu):
    (gpu,) = [entry for entry in datasheet_gpus() if entry["name"] == gpu]
    rows = [(k["bytes"], k["flops"], k["seconds"]) for k in attention_cost(n, d, dtype, heads, gpu)]
    return rows[:3] + [tuple(map(sum, zip(*rows[:3], strict=True)))] + rows[3:]


@pytest.mark.parametrize("page", ["index", "notebook"])
def test_mouse_and_keyboard_move_it_and_its_numbers_are_pythons(figure, page):
    shown = figure(page)
    slider = control(shown, "sequence_length")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    mouse, keyboard = shown.page.mouse, shown.page.keyboard
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 2, box["y"] + box["height"] / 2, steps=8)
    mouse.up()
    assert slider.get_attribute("aria-valuetext") == "128"
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "512"
    keyboard.press("Tab")
    keyboard.press("End")
    assert control(shown, "batch_heads").get_attribute("aria-valuetext") == "512"
    keyboard.press("Tab")
    keyboard.press("ArrowRight")  # from d = 64
    shown.locator("label:has-text('fp32')").click()
    control(shown, "gpu").select_option("T4")
    assert shown_kernels(shown) == expected_kernels(512, 128, "fp32", 512, "T4")


def test_plain_keys_stay_in_the_figure_and_shortcuts_pass(figure):
    shown = figure()
    page = shown.page
    page.evaluate(
        "() => { window.keys = []; addEventListener('keydown', (e) => keys.push(e.key)); }"
    )
    control(shown, "batch_heads").focus()
    for key in ["ArrowLeft", "a", "Escape", "Tab"]:
        page.keyboard.press(key)
    assert page.evaluate("window.keys") == ["Escape", "Tab"]


def test_focus_is_visible_on_every_control(figure):
    shown = figure()
    control(shown, "sequence_length").focus()
    outlines = []
    for _ in range(5):
        outlines.append(
            shown.page.evaluate(
                "() => { const focused = document.activeElement;"
                " const ring = focused.type === 'radio' ? focused.parentElement : focused;"
                " return [focused.dataset.key, getComputedStyle(ring).outlineStyle]; }"
            )
        )
        shown.page.keyboard.press("Tab")
    keys = ["sequence_length", "batch_heads", "head_dim", "dtype", "gpu"]
    assert outlines == [[key, "solid"] for key in keys]


def test_a_screen_reader_hears_the_same_numbers(figure):
    shown = figure()
    status = shown.get_by_role("status")
    tiles = {
        name: shown.locator(f"[data-name={name}]").inner_text()
        for name in ["score-fraction", "peak", "seconds"]
    }
    assert "N = 8,192, d = 64, fp16, 64 heads over the batch, on A100 80 GB" in status.inner_text()
    assert all(text in status.inner_text() for text in tiles.values())
    assert "fits" in status.inner_text()
    move_slider(shown, "sequence_length", 10)
    assert "does not fit: kernel 1" in status.inner_text()
    assert shown.locator(".bf-pill").inner_text() == "does not fit in 80 GB"


def test_the_timeline_holds_each_tensor_while_it_lives(figure):
    shown = figure()
    slabs = shown.locator(".los-tensor").evaluate_all(
        "(rects) => rects.map((rect) => [rect.dataset.kernel, rect.dataset.tensor])"
    )
    alive = {kernel: {t for k, t in slabs if k == kernel} for kernel in "123"}
    assert alive == {"1": set("QKVS"), "2": set("QKVSP"), "3": set("QKVPO")}


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_when_the_numbers_change(figure, width):
    shown = figure(width=width)
    parts = [".bf-controls", ".los-tiles", ".los-stage svg", ".los-table", ".bf-notes"]
    places = set()
    for n, heads, dtype, gpu in [
        (0, 0, "fp16", "H200"),
        (5, 4, "bf16", "T4"),
        (7, 6, "fp32", "A100 80 GB"),
        (10, 9, "fp32", "RTX 4090"),
    ]:
        move_slider(shown, "sequence_length", n)
        move_slider(shown, "batch_heads", heads)
        shown.locator(f"label:has-text('{dtype}')").click()
        control(shown, "gpu").select_option(gpu)
        boxes = [shown.locator(part).first.bounding_box() for part in parts]
        top = shown.bounding_box()["y"]
        places.add(tuple((box["y"] - top, box["width"], box["height"]) for box in boxes))
    assert len(places) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_no_words_are_cut_off(figure, width):
    shown = figure(width=width)
    for n in range(11):
        move_slider(shown, "sequence_length", n)
        outside = shown.evaluate(
            """(root) => {
              const frame = root.getBoundingClientRect();
              return [...root.querySelectorAll("text, span, small, p, .los-value, .bf-muted")]
                .filter((node) => !node.closest(".bf-hidden"))
                .filter((node) => {
                  const box = node.getBoundingClientRect();
                  return box.width && (box.left < frame.left || box.right > frame.right);
                }).map((node) => node.textContent);
            }"""
        )
        assert outside == []


def median_luminance(locator):
    image = Image.open(io.BytesIO(locator.screenshot())).convert("L")
    return statistics.median(image.tobytes())


@pytest.mark.parametrize("part", [".bf", "svg.plot"])
def test_the_pages_dark_switch_reaches_it(figure, part):
    """The reader's system says light; the page's own button says dark."""
    page = figure("notebook", color_scheme="light").page
    drawn = page.locator(f".cell_output .text_html:has({part})")
    light = median_luminance(drawn)
    for _ in range(3):  # auto, light, dark: the order depends on where it starts
        if page.evaluate("document.documentElement.dataset.theme") != "dark":
            page.locator("button.theme-switch-button:visible").first.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert light > 200 and median_luminance(drawn) < 60


def test_it_keeps_still_for_who_asks_for_it(figure):
    moving = "rect => getComputedStyle(rect).transitionDuration"
    assert figure().locator(".los-tensor").first.evaluate(moving).startswith("0.18s")
    still = figure(reduced_motion="reduce")
    assert still.locator(".los-tensor").first.evaluate(moving) == "0s"


def test_without_javascript_its_description_stands_there(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address('specimen')}/index.html")
    assert "the life of S and P" in page.locator(".book-figure").inner_text()
    context.close()
