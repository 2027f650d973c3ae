"""Sphinx extension: says under each chapter's title where and when its outputs were recorded."""

import json
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

from scripts.recordings import dependencies, why_stale

STATUS = "status"


def sentence(notebook: dict, root: Path) -> str:
    """The recording in one line, for the reader of the page."""
    recording = notebook["metadata"].get("recording")
    if recording is None:
        return "Not recorded on a GPU yet."
    torch = recording["torch"].split("+")[0]
    facts = [
        f"Recorded on {recording['gpu']}",
        f"torch {torch}",
        f"Triton {recording['triton']}",
        recording["date"][:10],
    ]
    if why_stale(notebook, root):
        facts.append("the code has changed since")
    return " · ".join(facts)


def add_line(app: Sphinx, docname: str, text: list[str]) -> None:
    """Put the sentence right under the first heading of a notebook, before it is parsed."""
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    notebook = json.loads(text[0])
    root = Path(app.srcdir).parent
    title = notebook["cells"][0]
    heading, newline, rest = "".join(title["source"]).partition("\n")
    said = escape(sentence(notebook, root))
    if STATUS in app.env.found_docs:
        page = app.builder.get_relative_uri(docname, STATUS)
        said += f' · <a href="{page}">what ran where</a>'
    line = f'<p class="recording">{said}</p>'
    title["source"] = f"{heading}\n\n{line}\n\n{rest}" if newline else f"{heading}\n\n{line}"
    text[0] = json.dumps(notebook)
    # An incremental build must read the page again when what the sentence depends on changes.
    for path in dependencies(notebook, root):
        app.env.note_dependency(str(root / path))


def setup(app: Sphinx) -> dict:
    app.connect("source-read", add_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
