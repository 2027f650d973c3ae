"""Writes the tables of book/claims.md from book/claims.toml and the records.

python -m scripts.claims            writes them
python -m scripts.claims --check    says whether they are what the records say, and changes nothing
"""

import argparse
import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instruments import records
from instruments.claims import EXPERIMENTS, Finding, Load

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = Path("book/claims.md"), Path("book/claims.toml")
VERDICTS = ("reproduced", "in part", "not reproduced", "not yet")
# A proof is no measurement, and stands outside the count.
CHECKED, NOT_MEASURABLE = "formula checked by test", "not measurable"
OUR_GPU = records.REFERENCE_GPU.rpartition("-")[2].upper()
TOO_LITTLE = "less than the paper's"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper; claims.toml explains the fields."""

    place: str
    statement: str
    figure: str
    chapter: int
    experiment: str | None = None
    quantity: str | None = None
    reproduced: float | None = None
    in_part: float | None = None
    paper: float | None = None
    limit: str | None = None
    tests: Sequence[str] = ()
    measurable: bool = True
    why: str | None = None


@dataclass(frozen=True)
class Paper:
    """A paper's claims."""

    key: str
    name: str
    gpu: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Answer:
    """What the book says to a claim: our figure, the verdict and its reason, and how it was judged."""

    ours: str
    verdict: str
    reason: str | None = None
    rule: str | None = None
    finding: Finding | None = None
    ratio: str = "–"


def read_papers(path: Path) -> list[Paper]:
    """The papers of claims.toml."""
    papers = tomllib.loads(path.read_text("utf-8"))["paper"]
    return [
        Paper(**paper | {"claims": tuple(Claim(**claim) for claim in paper.pop("claim"))})
        for paper in papers
    ]


def answer(claim: Claim, root: Path, load: Load) -> Answer:
    """Judge a claim by its tests or its experiment; without either, or without its record: not yet."""
    if claim.tests:
        return Answer("predicted = counted", CHECKED, rule=checked(claim.tests, root))
    if not claim.measurable:
        return Answer("–", NOT_MEASURABLE, f"argued in chapter {claim.chapter}")
    if not claim.experiment:
        return Answer("–", "not yet")
    commands = {}

    def noted(name: str) -> records.Record:
        commands[name] = None
        record = load(name)
        commands[name] = record.environment.get("command")
        return record

    try:
        finding = EXPERIMENTS[claim.experiment](noted)
    except FileNotFoundError:
        finding = None
    rule = (
        f"{claim.quantity[0].upper()}{claim.quantity[1:]}: reproduced from {claim.reproduced:g}, "
        f"in part from {claim.in_part:g}"
    )
    rule += f"; in part at most ({claim.limit})" if claim.limit else ""
    names = "; ".join(
        f"`{name}`, by `{command}`" if command else f"`{name}`"
        for name, command in commands.items()
    )
    rule += f". Record{'s' if len(commands) > 1 else ''} {names}."
    if finding is None:
        return Answer("not measured yet", "not yet", rule=rule)
    ratio = f"{finding.value / claim.paper:.2f}×" if claim.paper else "–"
    return Answer(finding.shown, *judge(claim, finding), rule, finding, ratio)


def judge(claim: Claim, finding: Finding) -> tuple[str, str | None]:
    """The verdict and, unless the claim is reproduced, its reason."""
    if finding.value < claim.in_part:
        return "not reproduced", claim.why or TOO_LITTLE
    if finding.value < claim.reproduced:
        return "in part", "; ".join(filter(None, [claim.why or TOO_LITTLE, claim.limit]))
    return ("in part", claim.limit) if claim.limit else ("reproduced", None)


def checked(tests: Sequence[str], root: Path) -> str:
    """What the tests assert; each of them has to be there."""
    for test in tests:
        if not has_test(root, test):
            raise SystemExit(f"{DATA} names {test}, and there is no such test.")
    names = " and ".join(f"`{test.partition('::')[2]}`" for test in tests)
    return (
        f"{names} assert{'s' if len(tests) == 1 else ''} that the kernels request what the book's "
        "own formula predicts, to the byte. That it grows as claimed is argued in the chapter."
    )


def has_test(root: Path, name: str) -> bool:
    """Whether the test ``path::function`` is there."""
    path, _, function = name.partition("::")
    if not (root / path).is_file():
        return False
    tree = ast.parse((root / path).read_text("utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


def chapters(root: Path) -> dict[int, str]:
    """The notebooks that the table of contents names, by chapter number."""
    names = re.findall(r"file: ((\d\d)_\w+\.ipynb)", (root / "_toc.yml").read_text("utf-8"))
    return {int(number): name for name, number in names}


def table(paper: Paper, answers: list[Answer], linked: dict[int, str]) -> str:
    """A paper's claims as a Markdown table, and under it how each was judged."""
    lines = [
        f"| claim | paper, {paper.gpu} | ours, {OUR_GPU} | ours / paper | verdict |",
        "|:--|:--|:--|:--|:--|",
    ]
    rules = []
    for number, (claim, given) in enumerate(zip(paper.claims, answers, strict=True), start=1):
        chapter = f"chapter\N{NO-BREAK SPACE}{claim.chapter}" if claim.chapter else "primer"
        if claim.chapter in linked:
            chapter = f"[{chapter}]({linked[claim.chapter]})"
        verdict = given.verdict if given.verdict == "not yet" else f"**{given.verdict}**"
        verdict += f": {given.reason}" if given.reason else ""
        statement = f"{number} · *{claim.place}.* {claim.statement} · {chapter}"
        cells = (statement, claim.figure, given.ours, given.ratio, verdict)
        lines.append(f"| {' | '.join(cells)} |")
        if given.rule:
            rules.append(f"* **{number}.** {given.rule}")
    if rules:
        summary = "<details>\n<summary>How these are judged, and the commands</summary>"
        lines += ["", summary, "", *rules, "", "</details>"]
    return "\n".join(lines)


def summary(answers: list[Answer]) -> str:
    """How many claims have which verdict."""
    counts = Counter(given.verdict for given in answers)
    measurable = sum(counts[verdict] for verdict in VERDICTS)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS[1:])
    return (
        f"**{counts['reproduced']} of {measurable} measurable claims are reproduced**; {parts}. "
        f"Proofs stand apart: {counts[CHECKED]} with a {CHECKED}, {counts[NOT_MEASURABLE]} "
        f"{NOT_MEASURABLE}."
    )


def written(text: str, root: Path, load: Load) -> str:
    """The page with its tables as the records have them now."""
    papers = read_papers(root / DATA)
    answers = {paper.key: [answer(c, root, load) for c in paper.claims] for paper in papers}
    blocks = {paper.key: table(paper, answers[paper.key], chapters(root)) for paper in papers}
    blocks["summary"] = summary([given for some in answers.values() for given in some])
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by scripts/claims.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{PAGE} has no place for {name}: it needs {begin!r} and {end!r}.")
        text = f"{before}{begin}\n\n{block}\n\n{end}{after}"
    return text


def load(name: str) -> records.Record:
    """A record of the GPU that the book speaks of, or one that needed none."""
    try:
        return records.load(name, gpu=records.REFERENCE_GPU)
    except FileNotFoundError:
        return records.load(name, gpu="cpu")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the tables of the claims page.")
    parser.add_argument("--check", action="store_true", help="change nothing")
    chosen = parser.parse_args()
    page = ROOT / PAGE
    old = page.read_text("utf-8")
    new = written(old, ROOT, load)
    if chosen.check:
        if new != old:
            sys.exit(f"{PAGE} is not what the records say: run `python -m scripts.claims`.")
        return
    page.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
