"""Sphinx extension: what search engines, reference managers and link previews read of a page.

Every page has a description, Open Graph and citation tags; the site has robots.txt and llms.txt. What
needs the site's own address (canonical links, the card, sitemap.xml) is written once _config.yml knows
the repository: a wrong address would be worse than none. These few tags are written here and not by
extensions because a chapter's description is its question, not the first words on its page, and
because those extensions want an address.
"""

import re
from html import escape
from pathlib import Path
from urllib.parse import urljoin
from xml.sax.saxutils import escape as escape_xml

import yaml
from docutils import nodes
from sphinx.application import Sphinx

from scripts.chapters import read_chapters
from scripts.environment import ROOT

CARD = "_static/card.png"
CARD_WIDTH, CARD_HEIGHT = 1200, 630
CARD_WORDS = "The memory that standard attention holds over time: nearly all of it is S and P"
LONGEST = 200


def site_address(repository: str) -> str | None:
    """Where GitHub Pages serves the repository; nothing while its address is not set."""
    parts = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)/?", repository)
    # No account's name has two hyphens in a row: the placeholder's has.
    if parts is None or "--" in parts[1]:
        return None
    return f"https://{parts[1].lower()}.github.io/{parts[2]}/"


def set_address(app: Sphinx, config) -> None:
    """Sphinx makes the canonical links of this; an address set by hand stays."""
    repository = config.html_theme_options.get("repository_url", "")
    config.html_baseurl = config.html_baseurl or site_address(repository) or ""


def shortened(text: str) -> str:
    """The text's beginning, to the end of a word."""
    text = " ".join(text.split())
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 1].rpartition(" ")[0] + "…"


def description(app: Sphinx, page: str) -> str:
    """A chapter's question, or the first paragraph of another page."""
    for chapter in read_chapters(Path(app.srcdir).parent):
        if chapter.file == page:
            return chapter.question
    first = next(app.env.get_doctree(page).findall(nodes.paragraph), None)
    return shortened(first.astext()) if first else ""


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def tags(app: Sphinx, page: str) -> list[tuple[str, str, str]]:
    """A page's tags: the attribute that names each, the name, the content."""
    book, is_book = citation(), page == app.config.root_doc
    title = app.env.titles[page].astext()
    said = description(app, page)
    base = app.config.html_baseurl
    found = [
        ("name", "description", said),
        ("property", "og:title", title),
        ("property", "og:description", said),
        ("property", "og:type", "book" if is_book else "article"),
        ("property", "og:site_name", book["title"]),
        ("name", "citation_title", title),
        *(("name", "citation_author", author["name"]) for author in book["authors"]),
        ("name", "citation_publication_date", app.config.copyright),
        ("name", "citation_language", app.config.language),
    ]
    if not is_book:
        found.append(("name", "citation_inbook_title", book["title"]))
    if base:
        found += [
            ("property", "og:url", address(app, page)),
            ("property", "og:image", urljoin(base, CARD)),
            ("property", "og:image:width", str(CARD_WIDTH)),
            ("property", "og:image:height", str(CARD_HEIGHT)),
            ("property", "og:image:alt", CARD_WORDS),
            ("name", "twitter:card", "summary_large_image"),
            ("name", "citation_public_url", address(app, page)),
        ]
    return found


def address(app: Sphinx, page: str) -> str:
    """A page's address, or its path where the site has none yet; the first page is the folder."""
    if page == app.config.root_doc and app.config.html_baseurl:
        return app.config.html_baseurl
    return urljoin(app.config.html_baseurl, app.builder.get_target_uri(page))


def write_tags(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    if page not in app.env.titles:
        return
    context["metatags"] += "".join(
        f'\n    <meta {kind}="{name}" content="{escape(content)}" />'
        for kind, name, content in tags(app, page)
        if content
    )
    if app.config.html_baseurl:
        context["pageurl"] = address(app, page)


def write_files(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    pages = list(app.env.collect_relations())
    out = Path(app.outdir)
    robots = "User-agent: *\nAllow: /\n"
    if app.config.html_baseurl:
        robots += f"Sitemap: {urljoin(app.config.html_baseurl, 'sitemap.xml')}\n"
        (out / "sitemap.xml").write_text(sitemap([address(app, page) for page in pages]), "utf-8")
    (out / "robots.txt").write_text(robots, "utf-8")
    (out / "llms.txt").write_text(llms(app, pages), "utf-8")


def sitemap(addresses: list[str]) -> str:
    lines = "".join(f"  <url><loc>{escape_xml(each)}</loc></url>\n" for each in addresses)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{lines}</urlset>\n'
    )


def llms(app: Sphinx, pages: list[str]) -> str:
    """The site for a language model: what the book is, and each page with its description."""
    book = citation()
    chapters = {chapter.file for chapter in read_chapters(Path(app.srcdir).parent)}

    def lines(chosen: list[str]) -> str:
        entries = []
        for page in chosen:
            link = f"[{app.env.titles[page].astext()}]({address(app, page)})"
            entries.append("- " + ": ".join(filter(None, [link, description(app, page)])))
        return "\n".join(entries)

    others = [page for page in pages if page not in chapters and page != app.config.root_doc]
    return (
        f"# {book['title']}\n\n> {' '.join(book['abstract'].split())}\n\n"
        f"## Chapters\n\n{lines([page for page in pages if page in chapters])}\n\n"
        f"## Other pages\n\n{lines(others)}\n"
    )


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", set_address)
    app.connect("html-page-context", write_tags)
    app.connect("build-finished", write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
