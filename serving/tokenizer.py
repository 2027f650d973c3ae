"""Text as bytes: 256 tokens, and one more that ends a text.

A larger vocabulary makes a model faster, not different, and has to be learned and stored; bytes need
neither, and every text has them.
"""

import codecs
from collections.abc import Iterable

END = 256
"""The token after the last byte of a text."""

VOCABULARY = 257


def encode(text: str) -> list[int]:
    """The bytes of a text in UTF-8."""
    return [*text.encode("utf-8")]


def decode(tokens: Iterable[int]) -> str:
    """The text of tokens; bytes that are no UTF-8 become U+FFFD, and what is no byte is left out."""
    return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")


class Decoder:
    """Decodes a stream of tokens, holding back a character until its last byte has come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int], final: bool = False) -> str:
        """The characters that the next tokens complete; all that is left if they are the last."""
        return self._decoder.decode(bytes(token for token in tokens if token < 256), final)
