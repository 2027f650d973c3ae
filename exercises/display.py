"""An exercise in a notebook: its statement, and its solution for those who ask for it."""

from IPython.display import Markdown, display

from exercises.catalogue import find
from exercises.stubs import without_marks


def show(name: str) -> None:
    """Show what an exercise asks for."""
    display(Markdown(find(name).read("statement.md")))


def solution(name: str) -> None:
    """Show a solution, folded away until the reader opens it."""
    code = without_marks(find(name).read("solution.py"))
    summary = "<details>\n<summary>A solution</summary>"
    display(Markdown(f"{summary}\n\n```python\n{code}```\n\n</details>"))
