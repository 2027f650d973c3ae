"""Sphinx extension: a term's first use in a chapter links to its entry in the glossary.

Headings, code, links, mathematics, captions, and what cells put out are left alone, and so is a term
that the chapter's author has linked before. The link's tooltip is the entry. The notation page is one
click away from every page, in the header.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from docutils import nodes
from sphinx.application import Sphinx

PAGE, NOTATION = "glossary", "notation"
CHAPTER = re.compile(r"\d\d_\w+")
CLOSED = (
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.reference,
    nodes.math,
    nodes.math_block,
    nodes.caption,
    nodes.thead,
    nodes.citation,
    nodes.raw,
)


@dataclass(frozen=True)
class Term:
    """A word of the glossary: its entry's address on the page, and the entry."""

    anchor: str
    entry: str


def terms(glossary: nodes.document) -> dict[str, Term]:
    """The glossary's words as a text may have them, in lower case; an entry may hold two words."""
    found = {}
    for letter in glossary[0].children:
        for section in letter.findall(nodes.section, descend=True):
            if section is letter:
                continue
            term = Term(section["ids"][0], section.children[1].astext())
            for word in section.children[0].astext().split(", "):
                found[word.lower()] = term
    return found


def pattern(words: dict[str, Term]) -> re.Pattern:
    """Any of the words, the longest first, whole, in the singular or the plural."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?:e?s)?(?![\w-])", re.IGNORECASE
    )


def link_first_uses(doctree: nodes.document, words: dict[str, Term], page: str) -> None:
    """Puts the links into a chapter; ``page`` is the glossary's address seen from there."""
    seen = set()
    look_for = pattern(words)
    for node in list(doctree.findall()):
        if isinstance(node, nodes.reference):
            seen.add(node.get("refuri", "").removeprefix(f"{page}#"))
        elif isinstance(node, nodes.Text) and not is_closed(node):
            node.parent.replace(node, list(with_links(node, look_for, words, page, seen)))


def is_closed(text: nodes.Text) -> bool:
    """Whether no link may stand here."""
    node = text.parent
    while node is not None:
        if isinstance(node, CLOSED) or "cell_output" in node.get("classes", []):
            return True
        node = node.parent
    return False


def with_links(
    text: nodes.Text, look_for: re.Pattern, words: dict[str, Term], page: str, seen: set[str]
) -> Iterator[nodes.Node]:
    """The text in pieces: what is a term's first use is a link."""
    done = 0
    for match in look_for.finditer(text):
        term = words[match[1].lower()]
        if term.anchor in seen:
            continue
        seen.add(term.anchor)
        if match.start() > done:
            yield nodes.Text(text[done : match.start()])
        uri = f"{page}#{term.anchor}"
        link = nodes.reference("", match[0], internal=True, refuri=uri, classes=["term"])
        link["reftitle"] = term.entry
        yield link
        done = match.end()
    if done < len(text):
        yield nodes.Text(text[done:])


def link_terms(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """The chapters' links, once every other reference is resolved."""
    if app.builder.format != "html" or not CHAPTER.fullmatch(page):
        return
    if PAGE in app.env.found_docs:
        glossary = app.builder.get_relative_uri(page, PAGE)
        link_first_uses(doctree, terms(app.env.get_doctree(PAGE)), glossary)


def add_notation_button(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """A link to the notation in the header; it opens beside the page that is being read."""
    if NOTATION in app.env.found_docs and "header_buttons" in context:
        context["header_buttons"].insert(
            0,
            {
                "type": "link",
                "url": context["pathto"](NOTATION),
                "icon": "fa-solid fa-square-root-variable",
                "tooltip": "Notation: what the symbols mean",
                "label": "notation-button",
            },
        )


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", link_terms)
    # After the theme has made its own buttons.
    app.connect("html-page-context", add_notation_button, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
