"""The chapters as the website speaks of them: book/chapters.toml, and what was measured in each."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instruments import records
from instruments.claims import Load
from scripts.claims import load
from scripts.headlines import HEADLINES

DATA = Path("book/chapters.toml")


@dataclass(frozen=True)
class Chapter:
    """A chapter's place and question; chapters.toml explains the fields."""

    file: str
    question: str
    needs: Sequence[int]
    leaves: int | None = None

    @property
    def number(self) -> int:
        return int(self.file[:2])

    @property
    def name(self) -> str:
        """The file's name without the number."""
        return self.file[3:]


@dataclass(frozen=True)
class Measured:
    """A chapter's measured sentence and the records it was read from."""

    sentence: str
    records: tuple[str, ...]


def read_chapters(root: Path) -> list[Chapter]:
    """The chapters in order; none if the book in ``root`` has no such list."""
    path = root / DATA
    if not path.is_file():
        return []
    return [Chapter(**chapter) for chapter in tomllib.loads(path.read_text("utf-8"))["chapter"]]


def measured(chapter: Chapter, load: Load = load) -> Measured | None:
    """What the chapter measured; nothing where its record is missing."""
    used = []

    def noted(name: str) -> records.Record:
        used.append(name)
        return load(name)

    try:
        sentence = HEADLINES[chapter.name](noted)
    except FileNotFoundError:
        return None
    return Measured(sentence, tuple(dict.fromkeys(used)))
