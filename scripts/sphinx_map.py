"""Sphinx extension: the map of the chapters, and the next chapter's question under each page.

    ```{chapter-map}
    ```

is a list in reading order, drawn as a line with side tracks (book/_static/book.css). Each stop has
the chapter's title, its question, what it builds on, and one sentence read from the records.
"""

from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from instruments import records
from scripts.chapters import DATA, Chapter, Measured, measured, read_chapters

GPU = records.REFERENCE_GPU.rpartition("-")[2].upper()


class ChapterMap(SphinxDirective):
    """The list of stops."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        self.env.note_dependency(str(root / DATA))
        chapters = read_chapters(root)
        stops = nodes.enumerated_list(classes=["chapter-map"], start=chapters[0].number)
        for chapter, tracks in zip(chapters, tracks_beside(chapters), strict=True):
            stops += nodes.list_item("", *self.stop(chapter, chapters), classes=tracks)
        return [stops]

    def stop(self, chapter: Chapter, chapters: list[Chapter]) -> list[nodes.Node]:
        sign = f'<span class="station" aria-hidden="true">{chapter.number}</span>'
        parts = [nodes.raw("", sign, format="html")]
        parts += self.paragraph(f"[]({chapter.file}.ipynb)", "stop")
        parts += self.paragraph(chapter.question, "question")
        if found := measured(chapter):
            parts += self.paragraph(f"{found.sentence} *{source(found)}*", "measured")
            for name in found.records:
                for path in records.RESULTS.glob(f"*/{name}.json"):
                    self.env.note_dependency(str(path))
        if chapter.needs:
            by_number = {chapter.number: chapter for chapter in chapters}
            parts += self.paragraph(needs([by_number[n] for n in chapter.needs]), "needs")
        return parts

    def paragraph(self, text: str, name: str) -> list[nodes.Node]:
        parsed = self.parse_text_to_nodes(text)
        for node in parsed:
            node["classes"].append(name)
        return parsed


def source(found: Measured) -> str:
    """Where a sentence's numbers come from."""
    names = " and ".join(f"`{name}`" for name in found.records)
    return f"{GPU}, record{'s' if len(found.records) > 1 else ''} {names}"


def needs(chapters: list[Chapter]) -> str:
    """What a chapter builds on, as links."""
    links = [
        f"[{f'chapter {each.number}' if each.number else 'the primer'}]({each.file}.ipynb)"
        for each in chapters
    ]
    return f"builds on {' and '.join(filter(None, [', '.join(links[:-1]), links[-1]]))}"


def tracks_beside(chapters: list[Chapter]) -> list[list[str]]:
    """For each stop the classes that draw its piece of the line and of the side track.

    The line runs from the first to the last chapter that stands on it. A side track leaves it at the
    stop that its chapter names, passes the stops between, and ends at the chapter.
    """
    on_line = [chapter.number for chapter in chapters if chapter.leaves is None]
    classes = []
    for chapter in chapters:
        number = chapter.number
        drawn = []
        if number == on_line[0]:
            drawn.append("line-starts")
        elif number == on_line[-1]:
            drawn.append("line-ends")
        elif number > on_line[-1]:
            drawn.append("line-ended")
        if chapter.leaves is not None:
            drawn.append("side-ends")
        for side in chapters:
            if side.leaves == number:
                drawn.append("side-starts")
            elif side.leaves is not None and side.leaves < number < side.number:
                drawn.append("side-passes")
        classes.append(drawn)
    return classes


def say_why(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Under the titles of the previous and the next page stand their questions."""
    questions = {each.file: each.question for each in read_chapters(Path(app.srcdir).parent)}
    around = app.builder.relations.get(page, (None, None, None))[1:]
    for way, name in zip(("prev", "next"), around, strict=True):
        if name in questions and context.get(way):
            title = context[way]["title"]
            question = escape(questions[name])
            context[f"{way}_title"] = f'{title}<span class="its-question">{question}</span>'


def setup(app: Sphinx) -> dict:
    app.add_directive("chapter-map", ChapterMap)
    app.connect("html-page-context", say_why)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
