"""Bytes in, the same text out, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import tokenizer


@given(st.text(), st.integers(1, 5))
def test_a_text_comes_back_whole_and_in_pieces(text, size):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    decoder = tokenizer.Decoder()
    pieces = [decoder.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    assert "".join(pieces) + decoder.push([], final=True) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [([0xFF], "\ufffd"), ([0xC3], "\ufffd"), ([72, tokenizer.END, 105], "Hi"), ([], "")],
)
def test_what_is_no_text_is_shown_as_such(tokens, text):
    assert tokenizer.decode(tokens) == text
    assert tokenizer.Decoder().push(tokens, final=True) == text


def test_every_token_is_in_the_vocabulary():
    assert max(tokenizer.encode("".join(map(chr, range(0x400))))) < tokenizer.END
    assert tokenizer.END == tokenizer.VOCABULARY - 1
