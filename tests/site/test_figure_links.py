"""A link opens a figure in the state it was copied from, and any other link does no harm."""

import html
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from xml.etree import ElementTree

import pytest

from figures._mount import HERE, classic_script, link_traits, shared_script
from figures.sphinx_extension import figure_classes

CLASSES = figure_classes()
SITE = "http://127.0.0.1:1/"  # answered by the test itself: no built site is needed
SVG = "{http://www.w3.org/2000/svg}"
SPECIMEN = Path(__file__).parent / "specimen" / "book" / "kernel_trace.md"

# They also compare with the setting before, in words and in how far the time axis goes. A link says
# how a figure is, not how it was.
REMEMBERING = {"quantization_playground", "warp_timeline"}

CHANGE_EVERYTHING = """(figure) => {
  for (const input of figure.querySelectorAll("[data-key]")) {
    if (input.type === "radio" && input.checked) continue;
    if (input.type === "radio") input.checked = true;
    else if (input.type === "range") input.value = Math.round((Number(input.max) + 1) / 3);
    else if (input.tagName === "SELECT") input.selectedIndex = input.options.length - 2;
    else continue;
    for (const name of ["input", "change"]) input.dispatchEvent(new Event(name, { bubbles: true }));
  }
  figure.querySelector("[data-go=forward]")?.click();
}"""

COLOURS_SEEN = """async (text) => {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return new Set(new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
}"""


def recorded_state(name):
    if name != "KernelTrace":
        return {}
    body = SPECIMEN.read_text("utf-8").split("{book-figure} KernelTrace\n")[1].split("\n```")[0]
    return json.loads(body)


def figure_html(name):
    return CLASSES[name](**recorded_state(name)).static_html()


@pytest.fixture
def open_figure(new_page):
    """open_figure("TileStepper", fragment): a page with two of that figure, as mount.js shows it."""

    def show(name, fragment="", **options):
        page = new_page(**options)
        module = CLASSES[name]._module
        body = figure_html(name)
        script = '<script defer src="mount.js"></script>'
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>{script}'
        answers = {
            "page.html": ("text/html", head + body + "<p style='height: 900px'>Text.</p>" + body),
            "mount.js": ("text/javascript", (HERE / "mount.js").read_text("utf-8")),
            "save_drawing.js": ("text/javascript", (HERE / "save_drawing.js").read_text("utf-8")),
            "_shared.js": ("text/javascript", shared_script()),
            f"{module}.js": ("text/javascript", classic_script(module)),
        }

        def answer(route):
            asked = urlsplit(route.request.url).path.lstrip("/")
            if asked not in answers:
                return route.fulfill(status=204)
            kind, text = answers[asked]
            return route.fulfill(body=text, content_type=f"{kind}; charset=utf-8")

        page.route(f"{SITE}**", answer)
        go(page, f"{SITE}page.html{fragment}")
        return page

    return show


def go(page, address):
    page.goto(address)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.book-figure')].every((e) => e.dataset.mounted)"
    )


def shown(page, place):
    """All that a reader sees of the figure: its words, its numbers, where its controls stand."""
    figure = page.locator(".bf").nth(place)
    controls = figure.locator("[data-key]").evaluate_all(
        "(inputs) => inputs.map((input) => [input.dataset.key, input.value, input.checked])"
    )
    numbers = figure.locator("[data-number]").evaluate_all(
        "(nodes) => nodes.map((node) => node.dataset.number)"
    )
    words = figure.evaluate(
        "(figure) => [...figure.children].filter((part) => !part.matches('style, .bf-title'))"
        ".map((part) => part.innerText)"
    )
    if figure.evaluate("(figure) => figure.parentElement.dataset.figure") in REMEMBERING:
        assert numbers
        return [control for control in controls if control[0] != "position"], numbers
    return controls, numbers, words


def copied_link(page, place):
    page.locator(".bf").nth(place).locator("[data-tool=link]").click()
    page.wait_for_function(
        "(place) => document.querySelectorAll('[data-tool=link]')[place].innerText === 'Copied'",
        arg=place,
    )
    return page.evaluate("() => navigator.clipboard.readText()")


@pytest.mark.parametrize("name", CLASSES)
def test_a_copied_link_opens_the_same_state(open_figure, name):
    permissions = ["clipboard-read", "clipboard-write"]
    page = open_figure(name, permissions=permissions, reduced_motion="reduce")
    as_built = shown(page, 1)
    page.locator(".bf").nth(1).evaluate(CHANGE_EVERYTHING)
    changed = shown(page, 1)
    assert changed != as_built
    check_drawing(page, name, 1)
    assert shown(page, 1) == changed
    link = copied_link(page, 1)
    asked = parse_qs(urlsplit(link).fragment)
    assert asked["figure"] == [f"{name}.2"]
    assert set(asked) == {"figure", *link_traits(CLASSES[name])}
    other = open_figure(name, "#" + urlsplit(link).fragment, reduced_motion="reduce")
    assert shown(other, 1) == changed
    assert shown(other, 0) == as_built
    assert copied_fallback(other, 1) == link
    # Following a link on the page that is open goes there too, and back.
    go(page, f"{SITE}page.html")
    assert shown(page, 1) == as_built
    page.evaluate("(hash) => { location.hash = hash; }", urlsplit(link).fragment)
    page.wait_for_function("() => document.activeElement.matches('.bf')")
    assert shown(page, 1) == changed
    assert shown(page, 0) == as_built


def check_drawing(page, name, place):
    """The saved file is an SVG by itself, with the figure's words, and something is to be seen."""
    figure = page.locator(".bf").nth(place)
    with page.expect_download() as download:
        figure.locator("[data-tool=svg]").click()
    assert download.value.suggested_filename == f"{name}.{place + 1}.svg"
    text = Path(download.value.path()).read_text("utf-8")
    drawing = ElementTree.fromstring(text)
    assert drawing.tag == f"{SVG}svg"
    title, description = drawing.find(f"{SVG}title"), drawing.find(f"{SVG}desc")
    assert title.text == figure.get_attribute("aria-label")
    assert description.text == figure.get_by_role("status").text_content()
    _, _, width, height = map(float, drawing.get("viewBox").split())
    assert width > 0 and height > 0
    for part in drawing.iter():
        assert part.tag.removeprefix(SVG) not in {"script", "image", "foreignObject", "style", "a"}
        for key, value in part.attrib.items():
            assert not key.endswith("href") and "var(" not in value and "color-mix" not in value
            used = re.findall(r"url\(([^)]*)\)", value)
            assert all(one.strip("\"'").startswith("#") for one in used)
    ids = {part.get("id") for part in drawing.iter()}
    assert set(re.findall(r"url\(&quot;#([^&]*)&quot;\)", text)) <= ids
    families = {part.get("font-family") for part in drawing.iter(f"{SVG}text")}
    assert families and all(family.endswith(("serif", "monospace")) for family in families)
    words = " ".join("".join(part.itertext()) for part in drawing.iter(f"{SVG}text"))
    assert figure.locator(".bf-title strong").inner_text() in words
    assert page.evaluate(COLOURS_SEEN, text) > 3


def copied_fallback(page, place):
    """Where the clipboard is refused, the link stands in a field, selected."""
    page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }"
    )
    figure = page.locator(".bf").nth(place)
    figure.locator("[data-tool=link]").press("Enter")
    field = figure.locator(".bf-link")
    field.wait_for(state="visible")
    assert page.evaluate("() => getSelection().toString()") == field.input_value()
    assert "Copy the selected link." in figure.locator(".bf-tools").inner_text()
    text = field.input_value()
    page.keyboard.press("Escape")
    assert field.is_hidden()
    assert figure.locator("[data-tool=link]").evaluate("(b) => b === document.activeElement")
    return text


def test_a_link_scrolls_there_and_the_figure_has_the_focus(open_figure):
    page = open_figure("TileStepper", "#figure=TileStepper.2&step=3", height=500)
    page.wait_for_function("() => document.activeElement.matches('.bf')")
    second = page.locator(".bf").nth(1)
    assert second.evaluate("(figure) => figure === document.activeElement")
    assert second.bounding_box()["y"] == pytest.approx(0, abs=20)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("TileStepper", "step=-5", {"step": "0"}),
        ("TileStepper", "block_m=3&causal=yes&order=rows&colour=red", {}),
        ("MemoryMap", "step=9999", {"step": "120"}),
        ("MemoryMap", "step=4e1&rate=1e9", {}),
        ("LifeOfScores", "gpu=" + quote("<img src=x onerror=alert(1)>"), {}),
        ("LifeOfScores", "gpus=[]&__proto__=1&constructor=1&toString=1", {}),
        ("ProgramScheduler", "seq_key=1024", {"seq_key": "1024", "seq_query": "1024"}),
        ("ProgramScheduler", "seq_query=77", {}),
        ("ProgramScheduler", "seq_query=1", {"seq_query": "1"}),
        ("OnlineSoftmax", "scores=1,2,3", {}),
        ("OnlineSoftmax", "scores=1,2,3,4,5,6,7,NaN", {}),
        (
            "OnlineSoftmax",
            "scores=1,2,3,4,5,-inf,-1e9,1e9",
            {"scores": "1,2,3,4,5,-inf,-100,100"},
        ),
    ],
)
def test_what_does_not_fit_is_passed_over(open_figure, name, asked, expected):
    page = open_figure(name, f"#figure={name}&{asked}")
    state = parse_qs(urlsplit(copied_fallback(page, 0)).fragment)
    built = parse_qs(urlsplit(copied_fallback(page, 1)).fragment)
    changed = {key: value[0] for key, value in state.items() if value != built[key]}
    assert changed.pop("figure") == name
    assert changed == {key: value for key, value in expected.items() if [value] != built[key]}
    assert page.locator(".book-figure img, .book-figure script").count() == 0


@pytest.mark.parametrize(
    "fragment",
    [
        "#figure=",
        "#figure=Nothing&step=1",
        "#figure=TileStepper.3&step=1",
        "#figure=TileStepper.-1&step=1",
        "#figure=__proto__&step=1",
        "#figure=%E0%A4%A&step=%",
        "#figure=%3Cscript%3Ealert(1)%3C/script%3E&step=1",
        "#step=1&figure=TileStepper",
        "#" + html.escape('"><img src=x onerror=alert(1)>'),
    ],
)
def test_a_link_to_no_figure_changes_nothing(open_figure, fragment):
    page = open_figure("TileStepper", fragment)
    page.evaluate("() => new Promise((resolve) => setTimeout(resolve))")
    assert shown(page, 0) == shown(page, 1)
    assert page.evaluate("() => document.activeElement === document.body")


def test_it_has_room_on_a_narrow_page_and_is_not_printed(open_figure):
    page = open_figure("TileStepper", width=360)
    tools = page.locator(".bf-tools").first
    box, frame = tools.bounding_box(), page.locator(".bf").first.bounding_box()
    assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
    assert all(button.bounding_box()["height"] >= 32 for button in tools.locator("button").all())
    page.emulate_media(media="print")
    assert tools.is_hidden()
