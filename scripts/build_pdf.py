"""Prints the built website as one book: _build/the-attention-book.pdf.

    python -m scripts.build_pdf

Chromium prints the pages that _toc.yml names, in its order, after a title page. Printed pages show
everything: folded parts are open, and figures stand as they do before a reader touches them.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from bs4 import BeautifulSoup

from scripts.build_book import ROOT, say

NAMES = ("chromium", "chromium-browser", "google-chrome")
PDF = Path("_build/the-attention-book.pdf")
BOOK = "the-attention-book.html"
# A figure is drawn by its script after the page has loaded.
PATIENCE_MS = 20_000


def chromium() -> str:
    for name in NAMES:
        if path := shutil.which(name):
            return path
    sys.exit(f"make pdf needs Chromium to print with: install one of {', '.join(NAMES)}.")


def page_names(root: Path) -> list[str]:
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    files = [toc["root"], *(chapter["file"] for chapter in toc["chapters"])]
    return [file.removesuffix(".ipynb") for file in files]


def one_page(site: Path, names: list[str], book: dict) -> str:
    """The pages in one: each is a section, and what names or links to a part says of which page."""
    pages = {
        name: BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
        for name in names
    }
    sections = "".join(section(name, page, names) for name, page in pages.items())
    longest = max(pages.values(), key=lambda page: len(page.head.find_all("link")))
    styles = "".join(str(link) for link in longest.head.find_all("link", rel="stylesheet"))
    authors = html.escape(", ".join(author["name"] for author in book["authors"]))
    title, version = html.escape(book["title"]), html.escape(book["version"])
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{styles}"
        '<script defer src="_static/figures/mount.js"></script></head>'
        f'<body><div class="bd-content"><article class="bd-article printed-book">'
        f'<section class="title-page"><img src="_static/logo.svg" alt=""><p>{title}</p>'
        f"<p>{html.escape(' '.join(book['abstract'].split()))}</p>"
        f"<p>{authors} · version {version}</p></section>"
        f"{contents(pages)}{sections}</article></div></body></html>"
    )


def contents(pages: dict[str, BeautifulSoup]) -> str:
    entries = "".join(
        f'<li><a href="#{name}">{html.escape(heading(page))}</a></li>'
        for name, page in pages.items()
    )
    return f'<section class="contents"><p>Contents</p><ol>{entries}</ol></section>'


def heading(page: BeautifulSoup) -> str:
    return page.find("h1").find(string=True).strip()


def section(name: str, page: BeautifulSoup, names: list[str]) -> str:
    """One page's article, its parts renamed so that no two pages share a name."""
    article = page.select_one("article.bd-article")
    for tag in article.select(".headerlink, .claim-link, script"):
        tag.decompose()
    for tag in article.find_all("details"):
        tag["open"] = ""
    # Names inside a plot or a formula are unique in the book already, or refer to nothing.
    for tag in article.find_all(id=True):
        if not tag.find_parent("svg"):
            tag["id"] = f"{name}--{tag['id']}"
    for tag in article.find_all("a", href=True):
        target, sign, fragment = tag["href"].partition("#")
        target = target.removesuffix(".html") or name
        if target in names and (sign or target != name):
            tag["href"] = f"#{target}--{fragment}" if fragment else f"#{target}"
    return f'<section class="printed-page" id="{name}">{article.decode_contents()}</section>'


def print_page(browser: str, page: Path, pdf: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        # Only what lies in the site is read: the sandbox, which containers do not allow, guards
        # against pages from elsewhere.
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        command += [f"--user-data-dir={profile}", f"--virtual-time-budget={PATIENCE_MS}"]
        command += ["--generate-pdf-document-outline", f"--print-to-pdf={pdf}", page.as_uri()]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0 or not pdf.is_file():
        sys.exit(f"Chromium could not print the book: {answer.stderr.strip()[-300:]}")


def build_pdf(root: Path) -> Path:
    browser = chromium()
    site = root / "_build" / "html"
    if not (site / "index.html").is_file():
        sys.exit("There is no site to print yet: run `make book` first.")
    say("Printing the site with Chromium (about a minute) ...")
    book = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    page, pdf = site / BOOK, root / PDF
    page.write_text(one_page(site, page_names(root), book), "utf-8")
    pdf.unlink(missing_ok=True)
    try:
        print_page(browser, page, pdf)
    finally:
        page.unlink()
    say(f"Printed: {pdf}")
    return pdf


if __name__ == "__main__":
    build_pdf(ROOT)
