"""The glossary is in order, short, and says where each word is taught."""

import re

import pytest

from scripts.environment import ROOT

PAGE = (ROOT / "book" / "glossary.md").read_text("utf-8")
ENTRIES = re.findall(r"^### (.+)\n\n(.+)$", PAGE, re.MULTILINE)


def test_terms_are_in_alphabetical_order_under_their_letters():
    headings = re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE)
    assert headings == sorted(headings, key=lambda heading: (heading.lower(), heading))
    letters = [heading for heading in headings if len(heading) == 1]
    assert letters == sorted({term[0].upper() for term, _ in ENTRIES})
    assert len(headings) == len(letters) + len(ENTRIES)


@pytest.mark.parametrize(("term", "text"), ENTRIES, ids=[term for term, _ in ENTRIES])
def test_an_entry_has_two_sentences_at_most_and_a_place(term, text):
    assert len(re.findall(r"[.?](?= |$)", text)) <= 2
    assert re.search(r"\((\[(primer|notation|claims|chapter \d)\]\(.+\)|chapter \d)\)", text)
