"""Every page, in a browser with no network: complete, without an error, readable for everyone."""

import re
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from scripts.build_book import ROOT

from .pages import PAGES

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# sphinx-book-theme 1.2.0 puts the sidebar's logo outside every landmark (axe: "region"), on every
# page; there is no option to change that.
THEME_PARTS = [[".navbar-brand"]]
# The innards of a formula are alike in all and take axe most of its time: the specimen's are looked at.
FORMULAS = [["mjx-container"]]


def open_page(page, url):
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.book-figure')].every((e) => e.dataset.mounted)"
    )
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize(("name", "path"), PAGES)
def test_nothing_fails_and_nothing_is_asked_of_the_network(new_page, address, name, path):
    open_page(new_page(), f"{address(name)}/{path}")


@pytest.mark.parametrize(("name", "path"), PAGES)
def test_it_also_opens_from_a_folder(new_page, site, name, path):
    if path == "search.html":
        pytest.skip("the theme's search fetches its index, which browsers refuse from a folder")
    open_page(new_page(), (site(name) / path).as_uri())


@pytest.mark.parametrize("address_of", ["served", "folder"])
def test_formulas_are_set_in_the_fonts_that_came_along(new_page, address, site, address_of):
    page = new_page()
    base = address("specimen") if address_of == "served" else site("specimen").as_uri()
    open_page(page, f"{base}/index.html")
    assert page.locator("mjx-container").count() == 3
    assert page.locator("mjx-merror").count() == 0
    loaded = page.evaluate(
        "[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)"
    )
    assert {"MJXTEX-I", "MJXTEX-C"} <= {family.strip('"') for family in loaded}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "path"), PAGES)
def test_axe_finds_nothing(new_page, address, name, path, theme):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: it comes with npm")
    page = new_page(color_scheme=theme)
    open_page(page, f"{address(name)}/{path}")
    page.add_script_tag(path=str(AXE))
    # preload: axe would fetch the style sheets again, and follow their @imports to the wrong place.
    # A theme changes colours only: in the dark one the rest would be asked a second time.
    only = {
        "light": {"type": "tag", "values": AXE_RULES},
        "dark": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
    }
    # The first only ever says that it cannot look, and the second is about the frame that all pages share.
    left_out = ["hidden-content"] + (["region"] if name == "book" and path != "index.html" else [])
    rules = {rule: {"enabled": False} for rule in left_out}
    options = {"runOnly": only[theme], "rules": rules, "preload": False}
    parts = {"exclude": THEME_PARTS + (FORMULAS if name == "book" else [])}
    found = page.evaluate("([parts, options]) => axe.run(parts, options)", [parts, options])
    ours = [
        (violation["id"], node["target"], node["html"][:160], node.get("failureSummary"))
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
    assert ours == []


@pytest.mark.parametrize(("name", "path"), PAGES)
def test_a_phone_needs_no_sideways_scrolling(new_page, address, name, path):
    page = new_page(width=360, height=740)
    open_page(page, f"{address(name)}/{path}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", ["book", "specimen"])
def test_every_internal_link_leads_somewhere(site, name):
    root = site(name)
    pages = {
        path: BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for path in root.rglob("*.html")
        if "_static" not in path.parts
    }
    anchors = {path: {tag["id"] for tag in soup.find_all(id=True)} for path, soup in pages.items()}
    broken, checked = [], 0
    for path, soup in pages.items():
        for tag in soup.find_all(["a", "img", "script", "link"]):
            link = urlsplit(tag.get("href") or tag.get("src") or "")
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            fragment = unquote(link.fragment)
            checked += 1
            if not target.is_file() or (fragment and fragment not in anchors.get(target, fragment)):
                broken.append(f"{path.name}: {link.geturl()}")
    assert broken == [] and checked > 50


def test_the_launch_buttons_point_at_the_notebook(site):
    text = (site("specimen") / "notebook.html").read_text("utf-8")
    repository = "address--unset/attention-book"
    assert re.search(rf"colab[^\"]*{repository}/blob/main/book/notebook\.ipynb", text)
    assert re.search(
        rf"mybinder[^\"]*{repository}/main\?urlpath=lab/tree/book/notebook\.ipynb", text
    )


def test_a_page_without_a_figure_loads_no_figure_script(site):
    assert "figures/mount.js" in (site("specimen") / "index.html").read_text("utf-8")
    assert "figures/mount.js" not in (site("specimen") / "bibliography.html").read_text("utf-8")
