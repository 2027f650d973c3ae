"""What a chapter shows besides plots: sentences, tables and the kernels' own source.

All of it is Markdown, which JupyterLab, Colab and the site show alike.
"""

import inspect
from collections.abc import Callable

from IPython.display import Markdown, display


def say(text: str) -> None:
    """Show a sentence whose numbers were computed, as part of the text."""
    display(Markdown(text))


def source(*functions) -> Markdown:
    """The code of functions or kernels, read from the module that the tests test."""
    # A kernel wraps the function it was made from.
    code = [inspect.getsource(getattr(function, "fn", function)) for function in functions]
    return Markdown("```python\n" + "\n\n".join(code) + "```")


def table(rows: list[dict], columns: dict[str, str | Callable[[dict], str]]) -> Markdown:
    """Rows as a Markdown table.

    Args:
        columns: heading to the field it shows, or to a function of the row that returns text. Numbers
            are aligned to the right.
    """

    def cell(row: dict, source) -> str:
        return source(row) if callable(source) else str(row[source])

    body = [[cell(row, source) for source in columns.values()] for row in rows]
    numeric = [all(_is_number(line[i]) for line in body) for i in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---:" if right else ":---" for right in numeric) + "|")
    lines += ["| " + " | ".join(line) + " |" for line in body]
    return Markdown("\n".join(lines))


def _is_number(text: str) -> bool:
    return text.lstrip("*")[:1].isdigit() or text in ("", "-", "–", "out of memory")


def si_bytes(count: float) -> str:
    """Bytes in decimal units, three significant digits: ``"2.15 GB"``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
