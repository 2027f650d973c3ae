"""Numbers that chapters type: none is a measurement of ours, and each says where it comes from.

What the book has measured is printed from a record. A sentence that has a number with a unit all the same,
in the text or in what a cell prints, cites its source, or ``book/numbers.toml`` names it.
"""

import ast
import math
import re
import tomllib

import pytest

from scripts.environment import ROOT

CHAPTERS = sorted((ROOT / "book").glob("[0-9][0-9]_*.md"))
SOURCES = tomllib.loads((ROOT / "book/numbers.toml").read_text("utf-8"))["number"]
UNITS = (
    "[TGP]FLOP/s|[TG]B/s|ms|µs|ns|seconds|milliseconds|microseconds|%|percent|times|×|GB|MB|"
    "tokens a second"
)
# Not within a name or a formula: 4 × 256 and 10 % 3 are arithmetic.
MEASURE = re.compile(rf"(?<![\w.$])\d[\d\s.,]*\s?(?:{UNITS}|(?<=\s)s)(?![\w/(=])(?!\s*[\dN=])")
CELL = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)
OTHER_CODE = re.compile(r"^```.*?^```|<!--.*?-->|`[^`\n]*`", re.M | re.S)
SENTENCE_END = re.compile(r"(?<=[.:;!?])\s+(?=\S)")


def sentences(text: str) -> list[str]:
    """The sentences of a chapter's prose and of what its cells print."""
    pieces = [OTHER_CODE.sub("", CELL.sub("", text))]
    pieces += [string for cell in CELL.findall(text) for string in strings(cell)]
    return [
        " ".join(sentence.split())
        for piece in pieces
        for paragraph in piece.split("\n\n")
        for sentence in SENTENCE_END.split(paragraph)
    ]


def strings(cell: str) -> list[str]:
    """The string literals of a cell; what is computed within one is a gap."""
    found, inside = [], set()
    tree = ast.parse(cell)
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec:
            inside |= {id(part) for part in [node.format_spec, *node.format_spec.values]}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            found.append(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def typed(text: str) -> list[str]:
    """Sentences with a typed number that has a unit, and without a citation."""
    return [
        sentence
        for sentence in sentences(text)
        if MEASURE.search(sentence) and "{cite" not in sentence
    ]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_typed_number_has_a_source(chapter):
    known = [source["text"] for source in SOURCES if source["chapter"] == int(chapter.stem[:2])]
    missing = [
        sentence
        for sentence in typed(chapter.read_text("utf-8"))
        if not any(text in sentence for text in known)
    ]
    assert not missing


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source["text"])
def test_a_source_is_one_and_speaks_of_a_sentence_that_is_there(source):
    (chapter,) = (path for path in CHAPTERS if int(path.stem[:2]) == source["chapter"])
    found = [s for s in typed(chapter.read_text("utf-8")) if source["text"] in s]
    assert found, "no such sentence any more"
    (kind,) = source.keys() - {"chapter", "text", "gives"}
    if kind == "arithmetic":
        check_arithmetic(source)
    elif kind == "paper":
        keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text("utf-8"), re.M)
        assert source[kind].split(",")[0] in keys
    else:
        assert kind in ("definition", "example") and source[kind]


def check_arithmetic(source: dict) -> None:
    """The typed number is what the expression gives, rounded to as many digits as are typed."""
    typed_number = str(source["gives"])
    assert typed_number in source["text"].replace("\N{NO-BREAK SPACE}", " ")
    value = eval(source["arithmetic"], {"__builtins__": {}}, vars(math))
    digits = len(typed_number.partition(".")[2])
    assert f"{value:.{digits}f}" == typed_number.replace(" ", ""), value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It took 12 ms.", ["It took 12 ms."]),
        ("It took 12 ms {cite:p}`x`.", []),
        ("Tiles of 64 rows, 4 × 256 bytes.", []),
        ("```python\nsay(f'{x:5.1%} and 3.5 times')\n```\n", ["… and 3.5 times"]),
        ("```python\nx = 3  # 12 ms\n```\n", []),
    ],
)
def test_typed_numbers_are_found(text, expected):
    assert typed(text) == expected


if __name__ == "__main__":
    for chapter in CHAPTERS:
        for sentence in typed(chapter.read_text("utf-8")):
            print(chapter.stem[:2], sentence)
