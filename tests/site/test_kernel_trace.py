"""The recorded loads and stores, and the roofline, on a built page: steps, keys, numbers, widths."""

import json
import re

import pytest

from instruments import kernel_trace
from instruments.roofline import Ceilings
from tests.figures.test_roofline import python_work
from tests.site.test_tile_stepper import go, si_bytes, status

from .test_pages import open_page

WIDTHS = [360, 800, 1440]
PAGE = "() => JSON.parse(document.querySelector('[data-figure=kernel_trace]').getAttribute('data-state'))"


@pytest.fixture
def page(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/kernel_trace.html")
        return tab

    return show


def trace_of(tab):
    return tab.locator("[data-figure=kernel_trace] .bf")


def choose(figure, key, value):
    figure.locator(f"label:has([data-key={key}][value='{value}'])").click()


def shown_bytes(figure):
    rows = figure.locator(".kt-row[data-tensor]").evaluate_all(
        "(all) => all.map(({dataset: d}) => [d.tensor, Number(d.read), Number(d.written)])"
    )
    return {name: (read, written) for name, read, written in rows}


def shown_counts(figure, tensor):
    """How many elements were touched how often."""
    pieces = figure.locator(f"[data-tensor={tensor}] .kt-piece").evaluate_all(
        "(all) => all.map((p) => [Number(p.dataset.count),"
        " p.getAttribute('width') * p.getAttribute('height')])"
    )
    counts = {}
    for count, area in pieces:
        counts[count] = counts.get(count, 0) + area
    whole = sum(counts.values())
    return {count: area / whole for count, area in counts.items()}


@pytest.mark.parametrize("name", ["plain", "transposed"])
def test_every_step_shows_the_recordings_bytes(page, name):
    tab = page()
    figure = trace_of(tab)
    run = next(run for run in tab.evaluate(PAGE)["runs"] if run["name"] == name)
    choose(figure, "run", name)
    total = len(run["accesses"])
    words = f"{total} loads and stores by {total // 2} programs of 1 kernel"
    assert words in status(figure)
    for count, (_, program, tensor, stored, top, bottom, left, right, *_) in enumerate(
        run["accesses"], 1
    ):
        go(figure, "forward")
        assert figure.locator(".kt-position").inner_text() == f"{count} / {total}"
        so_far = kernel_trace.bytes_of(run | {"accesses": run["accesses"][:count]})
        expected = {
            entry["name"]: vars(so_far[key]).values() if key in so_far else (0, 0)
            for entry in run["tensors"]
            for key in [("scale_kernel", entry["name"])]
        }
        assert shown_bytes(figure) == {key: tuple(two) for key, two in expected.items()}
        down, across, _ = run["launches"][0]["grid"]
        place = f"({program % down}, {program // down})" if across > 1 else program
        words = f"Program {place} of scale_kernel"
        assert status(figure).startswith(f"{words} {'stores' if stored else 'loads'} ")
        size = (bottom - top) * (right - left)
        if count < total:
            assert f": {si_bytes(4 * size)}." in status(figure)
        touched = sum(
            (r[5] - r[4]) * (r[7] - r[6]) for r in run["accesses"][:count] if r[2] == tensor
        )
        counts = shown_counts(figure, run["tensors"][tensor]["name"])
        assert counts[1] == pytest.approx(touched / 60)
    assert "Done: 240 B read, 240 B written" in status(figure)
    assert ("what the formula says" in status(figure)) == (name == "plain")


def test_masked_addresses_are_drawn_and_counted(page):
    figure = trace_of(page())
    for _ in range(7):
        go(figure, "forward")
    assert "28 addresses of its 4 × 8 block are masked off" in status(figure)
    block, source = (
        figure.locator(one).bounding_box()
        for one in (".kt-tile", "[data-tensor=source] .kt-ground >> nth=0")
    )
    assert block["x"] + block["width"] > source["x"] + source["width"]
    assert block["y"] + block["height"] > source["y"] + source["height"]


def test_the_other_run_is_a_question_until_it_has_run(page):
    figure = trace_of(page())
    lane = figure.locator("[data-lane=transposed]")
    go(figure, "last")
    assert "?" in lane.inner_text()
    choose(figure, "run", "transposed")
    assert figure.locator(".kt-position").inner_text() == "0 / 6"
    go(figure, "last")
    assert "480 B" in lane.inner_text()
    assert "480 B" in figure.locator("[data-lane=plain]").inner_text()


def test_a_step_can_be_a_program(page):
    figure = trace_of(page())
    choose(figure, "by", "program")
    go(figure, "forward")
    assert figure.locator(".kt-position").inner_text() == "1 / 4"
    assert "loads source 128 B and stores target 128 B" in status(figure)
    choose(figure, "by", "access")
    assert figure.locator(".kt-position").inner_text() == "2 / 8"


def test_keys_move_it_and_every_control_shows_the_focus(page):
    tab = page()
    figure = trace_of(tab)
    figure.locator("[data-key=track]").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert figure.locator(".kt-position").inner_text() == "2 / 8"
    tab.keyboard.press("End")
    assert "Done" in status(figure)
    tab.keyboard.press("Home")
    figure.locator("input").first.focus()
    tab.keyboard.press("ArrowRight")
    rings = []
    while figure.evaluate("(root) => root.contains(document.activeElement)"):
        rings.append(
            tab.evaluate(
                "() => { const focused = document.activeElement;"
                " const ring = focused.type === 'radio' ? focused.parentElement : focused;"
                " return getComputedStyle(ring).outlineStyle; }"
            )
        )
        tab.keyboard.press("Tab")
    assert rings == ["solid"] * (2 + 5 + 1)


def test_it_plays_to_the_end(new_page, address):
    tab = new_page()
    tab.clock.install()
    open_page(tab, f"{address('specimen')}/kernel_trace.html")
    figure = trace_of(tab)
    play = figure.locator("[data-go=play]")
    play.click()
    assert play.inner_text() == "Pause"
    tab.clock.run_for(31_000)
    assert (play.inner_text(), "Done" in status(figure)) == ("Play", True)


LOOK = """(root) => {
  const frame = root.getBoundingClientRect();
  const boxOf = (node) => node.getBoundingClientRect();
  const parts = [...root.querySelectorAll(".bf-controls, p, .kt-tensors, .kt-memory, .kt-bytes,"
    + ".kt-lane, .rf-plot, .rf-bars, .rf-table, .bf-notes")];
  const seen = [...root.querySelectorAll("text, span, p, b, button")]
    .filter((node) => !node.closest(".bf-hidden") && boxOf(node).width);
  const cut = seen.filter((node) => boxOf(node).left < frame.left || boxOf(node).right > frame.right);
  const cells = [...root.querySelectorAll(".kt-row > *, .rf-row > *")].filter((node) =>
    node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).textOverflow !== "ellipsis");
  return {
    places: parts.map((part) => boxOf(part))
      .map((box) => [box.top - frame.top, box.width, box.height].join()).join(";"),
    cut: [...cut, ...cells].map((node) => node.textContent), text: root.textContent + root.outerHTML,
  };
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_and_nothing_is_cut(page, width):
    tab = page(width=width, reduced_motion="reduce")
    figure = trace_of(tab)
    places = set()
    for name in ("plain", "transposed"):
        choose(figure, "run", name)
        for _ in range(9):
            look = figure.evaluate(LOOK)
            assert look["cut"] == []
            assert not re.search(r"NaN|undefined|null", look["text"])
            places.add(look["places"])
            go(figure, "forward")
    assert len(places) == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


# ---- the roofline -------------------------------------------------------------------------------


def test_the_roofline_shows_pythons_times(page):
    tab = page()
    figure = tab.locator("[data-figure=roofline] .bf")
    state = json.loads(tab.locator("[data-figure=roofline]").get_attribute("data-state"))
    gpu = next(gpu for gpu in state["gpus"] if gpu["name"] == state["gpu"])
    ceilings = Ceilings(gpu["bandwidth_tbs"], gpu["tflops"])
    for kernel in ("sum", "standard", "product", "fused"):
        figure.locator("[data-key=kernel]").select_option(kernel)
        flops, moved = python_work(kernel, 4096, "fp16")
        below = flops / moved < ceilings.ridge("fp16")
        assert ("left" in status(figure)) == below
        assert f"{'memory' if below else 'arithmetic'} is the limit" in status(figure)
        time = 1e3 * ceilings.milliseconds(flops, moved, "fp16")  # microseconds
        shown = float(re.search(r"at least ([\d.]+) µs", status(figure))[1])
        assert shown == pytest.approx(time, rel=0.005)
        point = figure.locator(".rf-point")
        assert point.get_attribute("data-limit") == ("memory" if below else "arithmetic")


def test_moving_the_operations_makes_the_kernel_the_readers_own(page):
    tab = page()
    figure = tab.locator("[data-figure=roofline] .bf")
    figure.locator("[data-key=operations]").focus()
    left = figure.locator(".rf-point").get_attribute("cx")
    tab.keyboard.press("ArrowRight")
    assert figure.locator("[data-key=kernel]").input_value() == "own"
    assert "Your kernel: 23.7 MFLOP" in status(figure)  # the next half power of two after 2²⁴
    assert float(figure.locator(".rf-point").get_attribute("cx")) > float(left)


def test_a_gpu_without_a_unit_says_so(page):
    figure = page().locator("[data-figure=roofline] .bf")
    figure.locator("[data-key=gpu]").select_option("T4")
    choose(figure, "dtype", "bf16")
    assert status(figure) == "The T4 has no unit for bf16: choose another precision."
    assert figure.locator(".rf-point").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_roofline_stays_in_its_place(page, width):
    figure = page(width=width, reduced_motion="reduce").locator("[data-figure=roofline] .bf")
    places = set()
    for kernel in ("sum", "softmax", "standard", "product", "fused", "own"):
        figure.locator("[data-key=kernel]").select_option(kernel)
        for key in ("Home", "End"):
            figure.locator("[data-key=size]").focus()
            figure.page.keyboard.press(key)
            look = figure.evaluate(LOOK)
            assert look["cut"] == []
            assert not re.search(r"NaN|undefined|null|Infinity", look["text"])
            places.add(look["places"])
    assert len(places) == 1
