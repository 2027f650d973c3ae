"""The book's site as a whole: every page light, still, in order, printable, and usable by keyboard."""

import functools
import gzip
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fontTools.ttLib import TTFont

from scripts import build_pdf
from scripts.build_book import ROOT

from .conftest import QuietHandler
from .pages import PAGES
from .test_pages import open_page

PARSE5 = ROOT / "node_modules" / "parse5"
BOOK_PAGES = [path for name, path in PAGES if name == "book"]
WIDE, NARROW, PAPER = 1440, 360, 680

# Bytes as they are served, uncompressed. What the pages share is loaded once by a reader; the rest is
# the page's own: text, code, and plots as SVG.
SHARED_BUDGET = 850_000
PAGE_BUDGET = 1_000_000
FIGURE_BUDGET = 60_000
# Bytes of a page's first load as a static host sends them: text compressed, the rest as it is.
SENT_BUDGET = 1_500_000
TEXT = {".html", ".css", ".js", ".mjs", ".json", ".svg", ".txt"}
SHIFT_BUDGET = 0.02

NOTE_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => window.shifts.push(...list.getEntries()))
  .observe({ type: "layout-shift", buffered: true });
"""
# While a page still arrives, its tables grow: what counts is what moves once it is there.
SHIFTED = """() => {
  const arrived = performance.getEntriesByType("navigation")[0].domInteractive;
  return window.shifts.filter((entry) => entry.startTime > arrived)
    .reduce((sum, entry) => sum + entry.value, 0);
}"""

STRUCTURE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const says = (element) => element.outerHTML.slice(0, 120);
  const levels = all("article :is(h1, h2, h3, h4, h5, h6)").map((each) => Number(each.tagName[1]));
  const counts = {};
  // Names in a plot are told apart where plots are made (tests/instruments/test_plots.py).
  all("[id]").filter((each) => !each.closest("svg.plot"))
    .forEach((each) => { counts[each.id] = (counts[each.id] ?? 0) + 1; });
  const named = (each) => each.hasAttribute("aria-label") || each.hasAttribute("aria-labelledby")
    || each.querySelector("title");
  return {
    "first headings": levels.filter((level) => level === 1).length === 1 ? [] : levels,
    "headings that skip a level": levels.filter((level, i) => i && level > levels[i - 1] + 1),
    "names given twice": Object.keys(counts).filter((name) => counts[name] > 1),
    "pictures without words": all("img:not([alt]), article [role=img]:not(:is(img))")
      .filter((each) => each.tagName === "IMG" || !named(each)).map(says),
    "tables without heads": all("article table").filter((each) => !each.querySelector("th"))
      .map(says),
    "places in the order of Tab": all("[tabindex]").filter((each) => each.tabIndex > 0).map(says),
  };
}"""

# Every icon as the style sheets draw it: its character, its font and its weight.
ICONS = """() => {
  const found = {};
  for (const each of document.querySelectorAll("body :not(svg, svg *, mjx-container *)")) {
    for (const part of ["::before", "::after"]) {
      const { content, fontFamily, fontWeight } = getComputedStyle(each, part);
      if (fontFamily.includes("Font Awesome") && /^"[^"]/.test(content)) {
        found[content + fontFamily + fontWeight] = [JSON.parse(content), fontFamily, fontWeight];
      }
    }
  }
  return Object.values(found);
}"""
ICON_FONTS = "_static/vendor/fontawesome/webfonts"

MOTION = """() => ({
  "scrolls smoothly": getComputedStyle(document.documentElement).scrollBehavior === "smooth",
  "animations": document.getAnimations().filter((each) => each.playState === "running").length,
  "figures move": [...document.querySelectorAll(".bf :is(rect, line)")]
    .filter((each) => parseFloat(getComputedStyle(each).transitionDuration) > 0.01).length,
})"""

CUT_ON_PAPER = """() => {
  const edge = document.documentElement.clientWidth + 1;
  const says = (element) => element.outerHTML.slice(0, 120);
  const shown = [...document.querySelectorAll("article :is(table, pre, svg, img, mjx-container)")]
    .filter((each) => each.checkVisibility());
  return {
    "beyond the edge": shown.filter((each) => each.getBoundingClientRect().right > edge).map(says),
    "cut within": shown
      .filter((each) => each.matches("pre, table") && each.scrollWidth > each.clientWidth + 1)
      .map(says),
    "folded": [...document.querySelectorAll("article details > :last-child")]
      .filter((each) => !each.checkVisibility({ contentVisibilityAuto: true })).map(says),
    "controls": [...document.querySelectorAll("article :is(.copybtn, .headerlink, .bf button)")]
      .filter((each) => each.checkVisibility()).map(says),
  };
}"""


def nothing(found: dict) -> dict:
    """The findings there are."""
    return {what: value for what, value in found.items() if value}


@pytest.fixture(scope="module")
def base(site):
    """The book below a folder, as GitHub Pages serves it."""
    book = site("book")
    handler = functools.partial(QuietHandler, directory=str(book.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{book.name}"
    server.shutdown()
    server.server_close()


@functools.cache
def sent(path: Path) -> int:
    """The bytes of a file as a static host sends it."""
    content = path.read_bytes()
    return len(gzip.compress(content) if path.suffix in TEXT else content)


@functools.cache
def drawn(path: Path) -> set[str]:
    """The characters that a font can draw."""
    with TTFont(path) as font:
        return set(map(chr, font.getBestCmap()))


def icons_without_a_glyph(book: Path, icons: list[list[str]]) -> list[list[str]]:
    names = {"Free900": "solid-900", "Free400": "regular-400", "Brands400": "brands-400"}
    missing = []
    for character, family, weight in icons:
        name = names[family.strip('"').rpartition(" ")[2] + weight]
        if character not in drawn(book / ICON_FONTS / f"fa-{name}.woff"):
            missing.append([ascii(character), family, weight])
    return missing


@pytest.mark.parametrize("path", BOOK_PAGES)
def test_a_page_in_every_respect(new_page, site, base, path):
    page = new_page(width=WIDE, reduced_motion="reduce")
    page.add_init_script(NOTE_SHIFTS)
    sizes = {}
    page.on("response", lambda each: sizes.update({each.url: int(each.headers["content-length"])}))
    open_page(page, f"{base}/{path}")
    book = site("book")
    first_load = {url: sent(book / unquote(urlsplit(url).path).split("/", 2)[2]) for url in sizes}
    assert sum(first_load.values()) <= SENT_BUDGET, first_load
    own = sizes.pop(f"{base}/{path}")
    figures = {url: size for url, size in sizes.items() if "/figures/" in url}
    assert own <= PAGE_BUDGET
    assert sum(sizes.values()) <= SHARED_BUDGET, sorted(sizes.items(), key=lambda each: each[1])
    assert all(size <= FIGURE_BUDGET for size in figures.values()), figures
    icons = page.evaluate(ICONS)
    assert icons and icons_without_a_glyph(book, icons) == []
    assert page.evaluate(SHIFTED) < SHIFT_BUDGET
    assert nothing(page.evaluate(STRUCTURE)) == {}
    assert nothing(page.evaluate(MOTION)) == {}
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER, "height": 900})
    assert nothing(page.evaluate(CUT_ON_PAPER)) == {}


@pytest.mark.parametrize("path", ["index.html", "notation.html", "03_tiling.html"])
def test_a_page_stands_still_on_a_phone(new_page, base, path):
    page = new_page(width=NARROW, height=740)
    page.add_init_script(NOTE_SHIFTS)
    open_page(page, f"{base}/{path}")
    assert page.evaluate(SHIFTED) < SHIFT_BUDGET


# Marks where the focus is; says whether it is seen.
FOCUS = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const again = at.hasAttribute("data-walked");
  at.setAttribute("data-walked", "");
  const seen = [at, at.closest("label"), at.parentElement].filter(Boolean).some((each) => {
    const style = getComputedStyle(each);
    return (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
      || style.boxShadow !== "none";
  });
  return { again, seen, what: at.outerHTML.slice(0, 120) };
}"""
LEFT_OUT = """() => [...document.querySelectorAll("a[href], button, select, input, summary")]
  .filter((each) => !each.hasAttribute("data-walked") && !each.disabled && each.tabIndex >= 0
    && each.type !== "radio" && each.checkVisibility({ visibilityProperty: true }))
  .map((each) => each.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("path", ["index.html", "01_naive_attention.html"])
def test_the_keyboard_reaches_everything_and_is_never_caught(new_page, base, path):
    page = new_page(width=WIDE)
    open_page(page, f"{base}/{path}")
    unseen = []
    for _ in range(600):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus is None or focus["again"]:
            break
        if not focus["seen"]:
            unseen.append(focus["what"])
    else:
        pytest.fail("Tab did not come around")
    assert page.evaluate(LEFT_OUT) == []
    assert unseen == []


def test_the_first_tab_leads_past_the_sidebar(new_page, base):
    page = new_page(width=WIDE)
    open_page(page, f"{base}/03_tiling.html")
    page.keyboard.press("Tab")
    assert "skip" in page.evaluate("document.activeElement.textContent.toLowerCase()")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('main')")


def test_every_page_is_what_the_html_standard_allows(site):
    if not PARSE5.is_dir():
        pytest.skip("parse5 is not installed: it comes with npm")
    command = [shutil.which("node"), Path(__file__).with_name("parse_errors.mjs")]
    command += [site("book") / path for path in BOOK_PAGES]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    assert len(found) == len(BOOK_PAGES) and nothing(found) == {}


# The book on paper.


def test_make_pdf_prints_the_book():
    text = (ROOT / "Makefile").read_text("utf-8")
    assert "\npdf: book\n\t@$(IN_VENV) -m scripts.build_pdf\n" in text


def test_without_chromium_make_pdf_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(build_pdf.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="make pdf needs Chromium to print with: install one of"):
        build_pdf.build_pdf(tmp_path)


def test_without_a_site_there_is_nothing_to_print(monkeypatch, tmp_path):
    monkeypatch.setattr(build_pdf.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(SystemExit, match="run `make book` first"):
        build_pdf.build_pdf(tmp_path)


def test_the_printed_book_has_every_page_once_and_its_links_lead_within(site):
    names = build_pdf.page_names(ROOT)
    few = [names[0], "notation", "02_online_softmax"]
    book = {"title": "A <book>", "version": "1", "abstract": "Words", "authors": [{"name": "One"}]}
    soup = build_pdf.BeautifulSoup(build_pdf.one_page(site("book"), few, book), "html.parser")
    assert [part["id"] for part in soup.select(".printed-page")] == few
    assert soup.select_one(".title-page p").get_text() == "A <book>"
    assert soup.select("details") and all(part.has_attr("open") for part in soup.select("details"))
    ids = {tag["id"] for tag in soup.find_all(id=True)}
    within = [link["href"][1:] for link in soup.select('a[href^="#"]')]
    assert len(within) > len(few) and set(within) <= ids
