"""The memory map and the walk through the block table, on a built page."""

import pytest

from figures.block_table_walk import BlockTableWalk
from figures.memory_map import BLOCK_SIZES, STEPS, MemoryMap
from tests.figures import test_block_table_walk, test_memory_map

from .test_figure import control, move_slider
from .test_pages import open_page

WIDTHS = [360, 800, 1440]
SYSTEMS = ("contiguous", "paged")
MAP_START = MemoryMap(rate=6, step=40).state()
WALK_START = BlockTableWalk(context=42).state()
SLIDERS = {
    **{name: MemoryMap.class_traits()[name].values for name in ("rate", "prompt", "output")},
    "step": range(STEPS + 1),
    "context": range(1, 49),
    "token": range(48),
}


@pytest.fixture
def figures(new_page, address):
    """figures(...): the page's two figures."""

    def show(**options):
        tab = new_page(**options)
        open_page(tab, f"{address('specimen')}/memory.html")
        return tab.locator(".bf").nth(0), tab.locator(".bf").nth(1)

    return show


def set_options(figure, **options):
    """Moves the controls; how each is moved by hand is the business of other tests."""
    for key, value in options.items():
        if key in SLIDERS:
            move_slider(figure, key, list(SLIDERS[key]).index(value))
        else:
            figure.locator(f"label:has([data-key={key}][value='{value}'])").click()


def frames(**options):
    """Both memories in Python, step by step."""
    state = MAP_START | options
    trace = test_memory_map.make_trace(state)
    return {name: test_memory_map.python_frames(trace, state, name) for name in SYSTEMS}


def shown_numbers(figure, system):
    cells = figure.locator(f"[data-of={system}]").evaluate_all(
        "(all) => all.map((cell) => [cell.dataset.name, Number(cell.dataset.number)])"
    )
    return dict(cells)


MAPS = [
    {},
    {"rate": 16, "block_size": 16, "reservation": "pow2", "output": 24, "step": 100},
    {"parallel": 4, "method": "beam", "prefix": 8, "reservation": "oracle", "step": 61},
]


@pytest.mark.parametrize("options", MAPS, ids=str)
def test_the_maps_numbers_and_its_picture_are_pythons(figures, options):
    figure, _ = figures()
    set_options(figure, **options)
    step = options.get("step", 40)
    for system, expected in frames(**options).items():
        frame = expected[step]
        numbers = shown_numbers(figure, system)
        assert {name: numbers[name] for name in frame["use"]} == frame["use"]
        assert (numbers["running"], numbers["waiting"]) == (
            len(frame["running"]),
            len(frame["waiting"]),
        )
        assert (numbers["finished"], numbers["preemptions"]) == (
            frame["finished"],
            frame["preemptions"],
        )
        mean = sum(each["use"]["tokens"] for each in expected[: step + 1]) / 256 / (step + 1)
        assert numbers["mean"] == pytest.approx(mean)
        # What is drawn of each kind, in slots.
        drawn = figure.locator(f"svg[data-system={system}]").evaluate(
            """(svg) => {
              const total = {};
              for (const rect of svg.querySelectorAll("[data-kind]")) {
                total[rect.dataset.kind] =
                  (total[rect.dataset.kind] ?? 0) + (32 * rect.width.baseVal.value) / svg.clientWidth;
              }
              return total;
            }"""
        )
        line = figure.locator(f"[data-line={system}]").get_attribute("d")
        heights = [float(point.split()[1]) for point in line[1:].split("L")]
        assert heights == pytest.approx(
            [14 + 190 * (1 - each["use"]["tokens"] / 256) for each in expected], abs=0.01
        )
        for kind in ("tokens", "reserved", "internal", "rounding"):
            assert drawn.get(kind, 0) == pytest.approx(frame["use"][kind], abs=0.01), kind
        side = figure.locator(".mm-side").nth(SYSTEMS.index(system))
        tables = side.locator("[data-sequence] span").all_inner_texts()
        arrow = "→ " if system == "paged" else "→ from slot "
        assert tables == [
            f"{t['written']} of {t['final']} tokens {arrow}{' '.join(map(str, t['blocks']))}"
            for t in frame["tables"]
        ]
        waiting = " ".join(str(number + 1) for number in frame["waiting"][:12])
        assert side.locator(".mm-queue").inner_text().startswith(f"Queue: {waiting or 'empty'}")


def test_the_sentence_says_what_happens(figures):
    figure, _ = figures()
    say = figure.get_by_role("status")
    options = {"rate": 16, "output": 24, "block_size": 4}
    expected = frames(**options)
    set_options(figure, **options)
    pushed_out = next(
        step for step, frame in enumerate(expected["paged"]) if len(frame["preempted"]) == 1
    )
    set_options(figure, step=pushed_out)
    (number,) = expected["paged"][pushed_out]["preempted"]
    assert f"Blocks ran out: request {number + 1} gives back all of its own" in say.inner_text()
    set_options(figure, step=STEPS)
    served = [expected[system][STEPS]["finished"] for system in SYSTEMS]
    assert say.inner_text().startswith(
        f"After 120 steps contiguous memory has served {served[0]} requests and paged memory "
        f"{served[1]}."
    )


def focused(page):
    return page.evaluate(
        "() => { const at = document.activeElement;"
        " const ring = at.type === 'radio' ? at.parentElement : at;"
        " return [at.dataset.key ?? at.dataset.go ?? at.className, getComputedStyle(ring).outlineStyle]; }"
    )


def test_everything_is_reached_and_moved_with_the_keyboard(figures):
    figure, walk = figures()
    keyboard = figure.page.keyboard
    control(figure, "rate").focus()
    keyboard.press("ArrowRight")
    order = []
    for _ in range(15):
        order.append(focused(figure.page))
        if order[-1][0] in ("block_size", "parallel", "step"):
            keyboard.press("ArrowRight")
        keyboard.press("Tab")
    keys = "rate prompt output block_size reservation prefix parallel method"
    buttons = "first back forward last play"
    tables = ["mm-tables", "mm-tables"]
    expected = [*keys.split(), *buttons.split(), "step", *tables]
    found = [each for each, _ in order]
    assert found == expected[: len(found)] and {ring for _, ring in order} == {"solid"}
    options = {"rate": 8, "block_size": 8, "parallel": 2, "step": 41}
    assert (
        shown_numbers(figure, "paged")["tokens"]
        == (frames(**options)["paged"][41]["use"]["tokens"])
    )

    control(walk, "token").focus()
    keyboard.press("ArrowRight")
    assert walk_numbers(walk) == walk_expected(token=22)


def test_one_sequence_has_no_siblings(figures):
    figure, _ = figures()
    inert = figure.locator("[inert] [data-key=method]")
    assert inert.count() == 2
    set_options(figure, parallel=2)
    assert inert.count() == 0


def test_they_play_slowly_for_those_who_asked_for_little_motion(figures):
    shown = figures(reduced_motion="reduce")
    shown[0].page.evaluate(
        "() => { const real = setInterval; window.intervals = [];"
        " window.setInterval = (...all) => { intervals.push(all[1]); return real(...all); }; }"
    )
    for figure in shown:
        figure.locator("[data-go=play]").click()
    assert shown[0].page.evaluate("intervals") == [1200, 1600]


def walk_numbers(figure):
    names = ("logical", "offset", "physical", "slot", "bytes")
    return [
        int(figure.locator(f"[data-name={name}]").get_attribute("data-number")) for name in names
    ]


def walk_expected(**options):
    found = test_block_table_walk.expected(WALK_START | options)
    return [found[name] for name in ("logical", "offset", "physical", "slot", "bytes")]


def test_the_walk_is_pythons(figures):
    _, figure = figures()
    for options in (
        {"token": 30},
        {"block_size": 2, "tile": 32, "token": 41},
        {"block_size": 16, "tile": 4, "token": 5, "context": 48},
        {"context": 3, "token": 2, "block_size": 16, "tile": 4},
    ):
        set_options(figure, **options)
        found = test_block_table_walk.expected(WALK_START | options)
        assert walk_numbers(figure) == walk_expected(**options)
        holds = figure.locator("[data-holds]").evaluate_all(
            "(all) => all.map((rect) => [Number(rect.dataset.slot), Number(rect.dataset.holds)])"
        )
        context, size = (WALK_START | options)["context"], (WALK_START | options)["block_size"]
        slots = {t: found["table"][t // size] * size + t % size for t in range(context)}
        assert sorted(holds) == sorted([slot, token] for token, slot in slots.items())
        assert figure.locator("[data-row]").count() == sum(row is not None for row in found["rows"])
        said = figure.get_by_role("status").inner_text().replace("\u00a0", " ")
        assert f"= {found['slot']}. It is row {found['row']} of tile" in said


def test_a_token_that_the_sequence_no_longer_has_is_its_last(figures):
    _, figure = figures()
    set_options(figure, token=40)
    set_options(figure, context=9)
    assert walk_numbers(figure) == walk_expected(context=9, token=8)
    assert control(figure, "token").get_attribute("aria-valuetext") == "8 (0 to 8)"
    move_slider(figure, "token", 30)
    assert walk_numbers(figure) == walk_expected(context=9, token=8)
    assert control(figure, "token").evaluate("(input) => input.value") == "8"


HARD = [
    [
        {"step": 0},
        {"rate": 16, "output": 24, "step": 119, "block_size": 1, "reservation": "pow2"},
        {"parallel": 4, "method": "beam", "block_size": 16, "prefix": 16, "step": STEPS},
    ],
    [
        {"context": 1},
        {"context": 48, "block_size": 1, "tile": 32, "token": 47},
        {"block_size": BLOCK_SIZES[-1], "tile": 4, "token": 20},
    ],
]
PARTS = [
    [".mm-controls", ".mm-caption", ".mm-side >> nth=0", ".mm-side >> nth=1", ".mm-numbers"],
    [".bw-controls", ".bw-caption", ".bw-stage", ".bw-numbers", ".bf-notes"],
]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_moves_is_cut_off_or_overlaps(figures, width):
    for figure, parts, hard in zip(figures(width=width), PARTS, HARD, strict=True):
        places = set()
        for options in hard:
            set_options(figure, **options)
            boxes = [figure.locator(part).first.bounding_box() for part in parts]
            top = figure.bounding_box()["y"]
            places.add(tuple((box["y"] - top, box["width"], box["height"]) for box in boxes))
            outside, overlaps = figure.evaluate(
                """(root) => {
                  const frame = root.getBoundingClientRect();
                  const seen = [...root.querySelectorAll("text, span, p, b, label")]
                    .filter((node) => !node.closest(".bf-hidden, .mm-tables"));
                  const outside = seen.filter((node) => {
                    const box = node.getBoundingClientRect();
                    return box.width && (box.left < frame.left || box.right > frame.right);
                  }).map((node) => node.textContent);
                  const drawn = ":is(.mm-side, .mm-over-time, .bw-stage) svg text";
                  const texts = [...root.querySelectorAll(drawn)];
                  const meet = (a, b) =>
                    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
                  const boxes = texts.map((text) => text.getBoundingClientRect());
                  const overlaps = texts.flatMap((one, index) => texts.slice(index + 1)
                    .filter((_, other) => meet(boxes[index], boxes[index + 1 + other]))
                    .map((other) => [one.textContent, other.textContent]));
                  return [outside, overlaps];
                }"""
            )
            assert (outside, overlaps) == ([], []), options
        assert len(places) == 1, places
