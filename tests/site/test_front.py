"""The front of the site and its head: what a reader meets first, and what a link to it brings along."""

import functools
import re
import shutil

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from scripts.build_book import ROOT, build
from scripts.chapters import measured, read_chapters
from scripts.claims import DATA, read_papers
from scripts.notebooks import METADATA
from scripts.sphinx_head import CARD, CARD_HEIGHT, CARD_WIDTH, site_address

CHAPTERS = read_chapters(ROOT)
ADDRESS = "https://an-owner.github.io/a-book/"


def text(site, name):
    return (site / f"{name}.html").read_text("utf-8")


@functools.cache
def soup(site, name):
    return BeautifulSoup(text(site, name), "html.parser")


def head(site, name):
    return BeautifulSoup(text(site, name).partition("</head>")[0], "html.parser")


def words(tag):
    return " ".join(tag.get_text().split())


def metas(page):
    return {
        tag.get("name") or tag.get("property"): tag["content"]
        for tag in page.find_all("meta", content=True)
    }


# The book.


def test_the_map_leads_to_every_chapter(site):
    stops = soup(site("book"), "index").select("ol.chapter-map > li")
    assert [stop.select_one(".stop a")["href"] for stop in stops] == [
        f"{chapter.file}.html" for chapter in CHAPTERS
    ]
    for stop, chapter in zip(stops, CHAPTERS, strict=True):
        assert words(stop.select_one(".question")) == chapter.question
        assert len(stop.select(".needs a")) == len(chapter.needs)
        found = measured(chapter)
        assert bool(stop.select(".measured")) == bool(found)
        if found:
            assert found.records[0] in words(stop.select_one(".measured em"))


def test_the_map_can_be_walked_with_the_keyboard_on_a_phone(new_page, address):
    page = new_page(width=360, height=740)
    page.goto(f"{address('book')}/index.html")
    page.locator(".chapter-map .stop a").first.focus()
    page.keyboard.press("Tab")
    assert "01_naive_attention" in page.evaluate("document.activeElement.href")
    # A stop's text stands beside the tracks, not on them.
    for stop in page.locator(".chapter-map > li").all():
        sign, title = stop.locator(".station").bounding_box(), stop.locator(".stop").bounding_box()
        assert title["x"] >= sign["x"] + sign["width"]


def test_previous_and_next_say_why(site):
    page = soup(site("book"), CHAPTERS[3].file)
    asked = [words(tag) for tag in page.select(".prev-next-area .its-question")]
    assert asked == [CHAPTERS[2].question, CHAPTERS[4].question]
    assert "its-question" not in page.head.decode()


def test_every_page_has_the_notation_one_click_away_and_says_which_book_it_is(site):
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]
    for name in [*(chapter.file for chapter in CHAPTERS), "index", "claims", "glossary"]:
        # A chapter is long: its text is searched, not parsed.
        page = text(site("book"), name)
        assert re.search(r'<a href="notation\.html"[^>]*class="[^"]*btn-notation-button', page)
        footer = BeautifulSoup(page[page.index('<div class="extra_footer">') :], "html.parser")
        assert words(footer.div).startswith(f"Version {version} · ")


def test_a_claim_can_be_pointed_at_and_shows_its_plot_and_its_rule(site):
    page = soup(site("book"), "claims")
    claims = page.select("tr.claim")
    assert len(claims) == sum(len(paper.claims) for paper in read_papers(ROOT / DATA))
    for claim in claims:
        assert claim.select_one("a.claim-link")["href"] == f"#{claim['id']}"
        labels = [words(tag) for tag in claim.select(".column")]
        assert [label.split(",")[0] for label in labels] == ["paper", "ours", "ours / paper"]
    measured_ones = [claim for claim in claims if claim.select("svg.claim-plot")]
    assert len(measured_ones) > 20
    for claim in measured_ones:
        assert "python -m benchmarks." in words(claim.select_one("details.rule"))


def test_the_first_page_says_how_the_claims_stand(site):
    front, page = soup(site("book"), "index"), soup(site("book"), "claims")
    assert words(front.select_one(".verdict-bar")) == words(page.select_one(".verdict-bar"))
    sentence = words(page.select_one(".verdict-bar").find_next("p"))
    assert "measurable claims are reproduced" in sentence and sentence in words(front)


def test_the_status_page_has_every_notebook_and_every_record(site):
    tables = soup(site("book"), "status").select("table")
    assert soup(site("book"), CHAPTERS[0].file).select_one(".recording a")["href"] == "status.html"
    linked = [row.a["href"] for row in tables[0].select("tbody tr")]
    assert linked == [f"{chapter.file}.html" for chapter in CHAPTERS]
    for row in tables[0].select("tbody tr"):
        assert re.match("fresh|stale: |not recorded", words(row.find_all("td")[1]))
    names = sorted(path.stem for path in (ROOT / "benchmarks/results").glob("*/*.json"))
    assert [words(row.td) for row in tables[1].select("tbody tr")] == names


def test_the_search_finds_a_term(new_page, address):
    page = new_page()
    page.goto(f"{address('book')}/search.html?q=logsumexp")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").evaluate_all("all => all.map((a) => a.href)")
    assert any("glossary.html" in link for link in found)


def test_the_card_is_as_large_as_its_tags_say():
    assert Image.open(ROOT / "book" / CARD).size == (CARD_WIDTH, CARD_HEIGHT)


# The head, with and without the site's address.


def test_the_address_comes_from_the_repository():
    assert site_address("https://github.com/An-Owner/a-book") == ADDRESS
    assert site_address("https://github.com/An-Owner/a-book/") == ADDRESS
    assert site_address("https://github.com/no--account/a-book") is None
    assert site_address("https://example.org/a-book") is None


CONFIG = """
title: A book
author: Its authors
copyright: "2026"
only_build_toc_files: true
execute: {execute_notebooks: "off"}
repository: {url: "https://github.com/An-Owner/a-book", path_to_book: book, branch: main}
sphinx:
  extra_extensions: [scripts.sphinx_map, scripts.sphinx_glossary, scripts.sphinx_head]
  recursive_update: true
  config: {html_theme_options: {logo: {text: A book}}, myst_heading_anchors: 3}
"""
TOC = "{format: jb-book, root: index, chapters: [{file: glossary}, {file: 01_first.ipynb}]}"
PAGES = {
    "_config.yml": CONFIG,
    "_toc.yml": TOC,
    "book/index.md": "# A book\n\nIts *first* words & more.\n",
    "book/glossary.md": "# Glossary\n\nWords.\n\n## S\n\n### scale\n\nA factor.\n\n## T\n\n"
    "### tile\n\nA piece.\n\n### tile row\n\nSeveral.\n\n### two words, second\n\nBoth.\n",
    "book/chapters.toml": '[[chapter]]\nfile = "01_first"\nquestion = "Is it \\"so\\"?"\nneeds = []\n',
}
CHAPTER = """# Of tiles

## A scale

The `tile` and [a tile elsewhere](index.md), $tile$, a subtile and a tile-like thing: then **Tiles**,
another tile, tile rows, and the [scale](glossary.md#scale) before the scale. Second comes last."""


@pytest.fixture(scope="module")
def addressed(tmp_path_factory):
    """A small book whose address is known, built."""
    root = tmp_path_factory.mktemp("addressed")
    (root / "book").mkdir()
    for name, text in PAGES.items():
        (root / name).write_text(text, "utf-8")
    shown = new_output("display_data", {"text/markdown": "a *tile row* that a cell prints"})
    cells = [new_markdown_cell("# A chapter\n\nFirst."), new_code_cell("tile", outputs=[shown])]
    cells.append(new_markdown_cell(CHAPTER.replace("# Of tiles", "## Of tiles", 1)))
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), root / "book/01_first.ipynb")
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    return build(root)


def test_a_terms_first_use_is_linked_and_nothing_else(addressed):
    links = soup(addressed, "01_first").select("a.term")
    # Not in headings, code, links, formulas, outputs, other words; not again; not where a hand has.
    assert [(link["href"], words(link), link["title"]) for link in links] == [
        ("glossary.html#tile", "Tiles", "A piece."),
        ("glossary.html#tile-row", "tile rows", "Several."),
        ("glossary.html#two-words-second", "Second", "Both."),
    ]
    assert links[0].parent.name == "strong"
    assert soup(addressed, "index").select("a.term") == []


def test_with_an_address_pages_say_where_they_are(addressed):
    page = soup(addressed, "01_first")
    assert page.select_one("link[rel=canonical]")["href"] == f"{ADDRESS}01_first.html"
    assert soup(addressed, "index").select_one("link[rel=canonical]")["href"] == ADDRESS
    told = metas(page)
    assert told["description"] == told["og:description"] == 'Is it "so"?'
    assert told["og:title"] == told["citation_title"] == "A chapter"
    assert told["og:url"] == told["citation_public_url"] == f"{ADDRESS}01_first.html"
    assert told["og:image"] == f"{ADDRESS}{CARD}" and (addressed / CARD).is_file()
    assert told["citation_publication_date"] == "2026" and told["citation_author"]
    assert metas(soup(addressed, "index"))["description"] == "Its first words & more."


def test_with_an_address_there_is_a_sitemap(addressed):
    places = re.findall("<loc>(.*?)</loc>", (addressed / "sitemap.xml").read_text("utf-8"))
    assert places == [ADDRESS, f"{ADDRESS}glossary.html", f"{ADDRESS}01_first.html"]
    robots = (addressed / "robots.txt").read_text("utf-8")
    assert f"Sitemap: {ADDRESS}sitemap.xml" in robots
    told = (addressed / "llms.txt").read_text("utf-8")
    assert f'- [A chapter]({ADDRESS}01_first.html): Is it "so"?\n' in told


def test_without_an_address_nothing_pretends_to_know_it(site):
    book = site("book")
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    if site_address(config["repository"]["url"]):
        pytest.skip("the book's address is set")
    for chapter in CHAPTERS:
        page = head(book, chapter.file)
        told = metas(page)
        assert page.select("link[rel=canonical]") == []
        assert not {"og:url", "og:image", "citation_public_url"} & told.keys()
        assert told["description"] == chapter.question
    assert not (book / "sitemap.xml").exists()
    assert "Sitemap" not in (book / "robots.txt").read_text("utf-8")
    assert f"({CHAPTERS[0].file}.html): {CHAPTERS[0].question}" in (book / "llms.txt").read_text()
