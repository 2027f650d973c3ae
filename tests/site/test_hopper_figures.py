"""The ring of slots and the butterflies, on built pages: steps, switches, words, room."""

import json

import pytest
import torch

from figures.ring_of_slots import RingOfSlots
from kernels import fp8_reference, hadamard
from tests.figures.test_ring_of_slots import DATA, events_of, replay, run_of

from .test_figure import control, move_slider
from .test_pages import open_page

START = RingOfSlots().state()


@pytest.fixture
def ring(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/ring_of_slots.html")
        return tab.locator(".bf")

    return show


def setting(ring, stages, mistake):
    ring.locator(f"label:has([data-key=stages][value='{stages}'])").click()
    control(ring, "mistake").select_option(mistake)


def shown_slots(ring):
    """State and the numbers of both barriers, slot by slot."""
    return ring.locator(".rs-slot:not([data-state=absent])").evaluate_all(
        """(slots) => slots.map((slot) => [slot.dataset.state,
          ...[...slot.querySelectorAll("[data-barrier]")].map((one) => one.dataset.numbers)])"""
    )


@pytest.mark.parametrize(
    ("stages", "mistake", "step"), [(2, "none", 37), (3, "none", 50), (1, "early", 39)]
)
def test_slots_show_the_barriers_of_the_run(ring, stages, mistake, step):
    page = ring()
    setting(page, stages, mistake)
    move_slider(page, "step", step)
    run = run_of(stages, mistake)
    barriers, tiles, reads = list(replay(run))[step]
    for place, (state, full, empty) in enumerate(shown_slots(page)):
        assert tuple(json.loads(full)) == barriers["full", place]
        assert tuple(json.loads(empty)) == barriers["empty", place]
        assert (state == "in use") == (place in {at for *_, at in reads} and mistake == "none")
    texts = page.locator(".rs-slot:not([data-state=absent]) .rs-tile").all_inner_texts()
    expected = [
        f"{letter} tile {tiles[tensor, place][0]}" if (tensor, place) in tiles else f"no {letter}"
        for place in range(stages)
        for tensor, letter in (("key", "K"), ("value", "V"))
    ]
    assert texts == expected


def test_buttons_and_keyboard_step_and_the_words_follow(ring):
    page = ring()
    keyboard = page.page.keyboard
    status, slider = page.get_by_role("status"), control(page, "step")
    events = list(events_of(run_of(2)))
    page.locator("[data-go=forward]").click()
    assert status.inner_text().startswith(f"Cycle {events[START['step'] + 1][0]:,}. ")
    slider.focus()
    keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext").startswith(f"event 1 of {len(events)}: The produ")
    keyboard.press("End")
    assert status.inner_text().startswith(f"Cycle {events[-1][0]:,}. Consumer 1 releases slot 0")
    control(page, "stages").nth(1).focus()
    order = []
    for _ in range(4):
        keyboard.press("Tab")
        found = page.page.evaluate(
            "() => { const at = document.activeElement;"
            " return [at.dataset.key ?? at.dataset.go, getComputedStyle(at).outlineStyle]; }"
        )
        order.append(found)
    assert order == [[key, "solid"] for key in ("mistake", "first", "back", "forward")]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [("parity", "A deadlock"), ("early", "A race"), ("never", "A deadlock")],
)
def test_a_mistake_ends_in_what_the_simulator_found(ring, mistake, words):
    page = ring(color_scheme="dark")
    setting(page, 2, mistake)
    move_slider(page, "step", len(run_of(2, mistake)["events"]) - 1)
    assert words in page.get_by_role("status").inner_text()
    waiting = page.locator("[data-partition][data-waits]").count()
    assert waiting == (0 if mistake == "early" else len(DATA["partitions"]))
    states = [state for state, *_ in shown_slots(page)]
    assert states.count("overwritten") == (mistake == "early")


@pytest.mark.parametrize("width", [360, 800, 1440])
def test_nothing_moves_with_the_steps_or_is_cut_off(ring, width):
    page = ring(width=width)
    parts = [".rs-time", ".rs-slots", ".rs-who", ".bf-notes"]
    for stages, mistake in ((2, "none"), (3, "early"), (1, "never"), (3, "parity")):
        setting(page, stages, mistake)
        # All steps at once: each is drawn before it is measured.
        places, outside = page.evaluate(
            """async (root, [parts, steps]) => {
              const input = root.querySelector("[data-key=step]");
              const [places, outside] = [new Set(), new Set()];
              for (let step = 0; step < steps; step += 1) {
                input.value = step;
                input.dispatchEvent(new Event("input"));
                await Promise.resolve().then(() => null);
                const frame = root.getBoundingClientRect();
                places.add(JSON.stringify(parts.map((part) => {
                  const box = root.querySelector(part).getBoundingClientRect();
                  return [box.y - frame.y, box.height];
                })));
                [...root.querySelectorAll("span, p, b, label, div")].forEach((node) => {
                  const box = node.getBoundingClientRect();
                  const cut = node.scrollWidth > node.clientWidth + 1 && node.clientWidth;
                  if (node.closest(".bf-hidden") || !box.width) return;
                  if (box.left < frame.left || box.right > frame.right || cut) {
                    outside.add(node.textContent);
                  }
                });
              }
              return [[...places], [...outside]];
            }""",
            [parts, len(run_of(stages, mistake)["events"])],
        )
        assert (len(places), outside) == (1, []), (stages, mistake)


@pytest.fixture
def butterflies(new_page, address):
    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/hadamard_steps.html")
        return tab.locator(".bf")

    return show


def shown_row(page):
    cells = page.locator(".hs-cell").evaluate_all("(all) => all.map((one) => one.dataset.number)")
    return torch.tensor([float(number) for number in cells])


def test_the_keyboard_steps_from_the_row_to_the_rotated_row(butterflies):
    page = butterflies()
    keyboard = page.page.keyboard
    move_slider(page, "size", 6)
    move_slider(page, "place", 9)
    page.locator("label:has([data-key=seed][value='3'])").click()
    row = shown_row(page)
    assert row[9] == 64
    control(page, "step").focus()
    for holding in (1, 1, 2, 4, 8, 16, 16):
        assert page.locator(".hs-cell[data-outlier]").count() == holding
        keyboard.press("ArrowRight")
    signs = hadamard.random_signs(16, 3).cpu()
    assert torch.equal(shown_row(page), fp8_reference.rotate(row, signs))
    assert "went from 64 to" in page.get_by_role("status").inner_text()
    heard = control(page, "step").get_attribute("aria-valuetext")
    assert heard == page.get_by_role("status").inner_text()
    keyboard.press("Home")
    assert torch.equal(shown_row(page), row)


@pytest.mark.parametrize("width", [360, 560, 800, 1440])
def test_no_butterfly_moves_the_page_or_is_cut_off(butterflies, width):
    page = butterflies(width=width, color_scheme="dark" if width == 800 else "light")
    for size in (0, 4, 10):
        move_slider(page, "size", size)
        places = set()
        for step in range(7):
            move_slider(page, "step", step)
            place, outside, overlaps = page.evaluate(
                """(root) => {
                  const frame = root.getBoundingClientRect();
                  const boxes = [".hs-time", ".hs-row", ".hs-table", ".bf-notes"].map((part) =>
                    root.querySelector(part).getBoundingClientRect());
                  const width = (node) => {
                    const range = document.createRange();
                    range.selectNodeContents(node);
                    return range.getBoundingClientRect();
                  };
                  const words = [...root.querySelectorAll(".hs-cell b, .hs-origin")];
                  const cells = words.filter((node) => {
                    const [text, cell] = [width(node), node.parentElement.getBoundingClientRect()];
                    return text.width && (text.left < cell.left - 1 || text.right > cell.right + 1);
                  });
                  const outside = [...root.querySelectorAll("span, b, p, label")].filter((node) => {
                    const box = node.getBoundingClientRect();
                    return !node.closest(".bf-hidden") && box.width && box.right > frame.right;
                  });
                  return [JSON.stringify(boxes.map((box) => [box.y - frame.y, box.height])),
                    outside.map((node) => node.textContent), cells.map((node) => node.textContent)];
                }"""
            )
            assert (outside, overlaps) == ([], []), (size, step)
            places.add(place)
        assert len(places) == 1, size
