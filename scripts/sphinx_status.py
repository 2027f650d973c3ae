"""Sphinx extension: what the recordings and the records were made on, and which book this is.

    ```{chapter-status}
    ```

is a table of the notebooks, from what `python -m scripts.notebooks record` left in them, and

    ```{record-status}
    ```

one of the records in benchmarks/results. Every page's footer names the version of the book.
"""

import datetime
import json
import subprocess
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from scripts.environment import ROOT
from scripts.recordings import dependencies, read, why_stale

CHAPTER_HEAD = ("notebook", "state", "last run", "with", "of")
RECORD_HEAD = ("record", "measured", "with", "of", "by")


def versions(facts: dict) -> str:
    names = {"torch": "torch", "triton": "Triton", "python": "Python"}
    return ", ".join(f"{names[name]} {facts[name].split('+')[0]}" for name in names)


def commit(facts: dict) -> str:
    return f"commit `{facts['commit'][:7]}`" + (" + changes" if facts["dirty"] else "")


def chapter_row(path: Path, root: Path) -> tuple[str, ...]:
    """A notebook's cells in the table, as Markdown."""
    notebook = read(path)
    link = f"[]({path.name})"
    recording = notebook["metadata"].get("recording")
    if recording is None:
        return (link, "**not recorded**", "–", "–", "–")
    reasons = why_stale(notebook, root)
    return (
        link,
        f"**stale**: {escape(shortened(reasons))}" if reasons else "**fresh**",
        f"{recording['gpu']}, {recording['date'][:10]}, {recording['seconds']:.0f}\N{NO-BREAK SPACE}s",
        versions(recording),
        commit(recording),
    )


def shortened(reasons: list[str]) -> str:
    """The first reason and how many more there are."""
    more = len(reasons) - 1
    return reasons[0] + (f", and {more} more reason{'s' if more > 1 else ''}" if more else "")


def record_row(path: Path) -> tuple[str, ...]:
    """A record's cells in the table, as Markdown."""
    facts = json.loads(path.read_text("utf-8"))["environment"]
    return (
        f"`{path.stem}`",
        f"{'CPU' if facts['gpu'] == 'cpu' else facts['gpu']}, {facts['date'][:10]}",
        versions(facts),
        commit(facts),
        f"`{facts['command']}`",
    )


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("--",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


class ChapterStatus(SphinxDirective):
    """The table of the notebooks, in the order of their names."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        paths = sorted((root / "book").glob("[0-9][0-9]_*.ipynb"))
        for path in paths:
            for name in [path.relative_to(root), *dependencies(read(path), root)]:
                self.env.note_dependency(str(root / name))
        rows = [chapter_row(path, root) for path in paths]
        return self.parse_text_to_nodes(table(CHAPTER_HEAD, rows))


class RecordStatus(SphinxDirective):
    """The table of the records, by name."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        paths = sorted((root / "benchmarks/results").glob("*/*.json"), key=lambda path: path.stem)
        for path in paths:
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(table(RECORD_HEAD, [record_row(path) for path in paths]))


def stamp(root: Path) -> str:
    """The book's version and, where git knows them, the commit and its date; else today's date."""
    version = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))["version"]
    known = git(root, "log", "-1", "--format=%h · %cs")
    if known is None:
        return f"Version {version} · built {datetime.date.today().isoformat()}"
    name, _, date = known.partition(" · ")
    changed = " + changes" if git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"Version {version} · commit {name}{changed} · {date}"


def git(root: Path, *arguments: str) -> str | None:
    """What git says of the folder; nothing without git, or in a copy without its history."""
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def write_footer(app: Sphinx) -> None:
    # The theme has read its options by now, and looks here.
    app.config.html_theme_options["extra_footer"] = f"<p>{escape(stamp(ROOT))}</p>"


def setup(app: Sphinx) -> dict:
    app.add_directive("chapter-status", ChapterStatus)
    app.add_directive("record-status", RecordStatus)
    app.connect("config-inited", lambda app, config: write_footer(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
