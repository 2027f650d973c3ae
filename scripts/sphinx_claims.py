"""Sphinx extension: what the website adds to book/claims.md.

Each row of a table becomes something to point at: it has an address (#dao2022flashattention-4), a plot
of the number that was judged, and its own rule and command in place of the list under the table.

    ```{claims-summary}
    ```

says on another page how many claims have which verdict.
"""

from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from scripts import claims
from scripts.claims import Answer, Claim, Paper

WIDTH, HEIGHT = 240, 28
MIDDLE = HEIGHT / 2


def plot(claim: Claim, given: Answer) -> str:
    """Our number and the paper's over the bands of the verdicts, as SVG without text."""
    value, points = given.finding.value, given.finding.points
    # Always from 0: a length is then a number.
    longest = 1.05 * max(value, claim.reproduced, claim.paper or 0, *points)

    def x(number: float) -> float:
        return round(WIDTH * max(number, 0) / longest, 1)

    def band(name: str, start: float, end: float) -> str:
        width = round(x(end) - x(start), 1)
        return f'<rect class="{name}" x="{x(start)}" y="4" width="{width}" height="{HEIGHT - 8}"/>'

    parts = [
        band("in-part", claim.in_part, claim.reproduced),
        band("reproduced", claim.reproduced, longest),
        f'<path class="axis" d="M0 {HEIGHT - 4}H{WIDTH}"/>',
    ]
    if claim.paper:
        parts.append(f'<path class="paper" d="M{x(claim.paper)} 0V{HEIGHT}"/>')
    parts += [f'<circle class="point" cx="{x(p)}" cy="{MIDDLE}" r="2.5"/>' for p in points]
    parts.append(f'<circle class="ours" cx="{x(value)}" cy="{MIDDLE}" r="5.5"/>')
    return (
        f'<svg class="claim-plot" viewBox="-7 0 {WIDTH + 14} {HEIGHT}" role="img" '
        f'aria-label="{escape(described(claim, given), quote=True)}">{"".join(parts)}</svg>'
    )


def described(claim: Claim, given: Answer) -> str:
    """The plot in words."""
    paper = f"; the paper's {claim.paper:g}" if claim.paper else ""
    return (
        f"Ours {given.finding.value:.3g}{paper}; reproduced from {claim.reproduced:g}, "
        f"in part from {claim.in_part:g}"
    )


def verdict_bar(answers: list[Answer]) -> str:
    """How many measurable claims have which verdict, as a bar."""
    counts = [
        (verdict, sum(each.verdict == verdict for each in answers)) for verdict in claims.VERDICTS
    ]
    parts = "".join(
        f'<span class="{class_of(verdict)}" style="flex-grow: {count}">{count}</span>'
        for verdict, count in counts
        if count
    )
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts)
    return f'<div class="verdict-bar" role="img" aria-label="{words}">{parts}</div>'


def class_of(verdict: str) -> str:
    return verdict.replace(" ", "-")


def judged(env: BuildEnvironment) -> list[tuple[Paper, list[Answer]]]:
    """Each paper with the answers to its claims, for a page that depends on them."""
    root = Path(env.srcdir).parent
    for path in [root / claims.DATA, *(root / "benchmarks/results").glob("*/*.json")]:
        env.note_dependency(str(path))
    return [
        (paper, [claims.answer(claim, root, claims.load) for claim in paper.claims])
        for paper in claims.read_papers(root / claims.DATA)
    ]


class ClaimsSummary(SphinxDirective):
    """The bar, and the same in a sentence."""

    def run(self) -> list[nodes.Node]:
        answers = [given for _, some in judged(self.env) for given in some]
        bar = nodes.raw("", verdict_bar(answers), format="html")
        return [bar, *self.parse_text_to_nodes(claims.summary(answers))]


def open_up(app: Sphinx, doctree: nodes.document) -> None:
    """Gives each row of the claims page its address, its plot and its rule."""
    if app.env.docname != claims.PAGE.stem:
        return
    papers = judged(app.env)
    bar = verdict_bar([given for _, answers in papers for given in answers])
    after(doctree, "summary").insert(0, nodes.raw("", bar, format="html"))
    for paper, answers in papers:
        open_table(doctree, paper, answers)


def after(doctree: nodes.document, block: str) -> nodes.Element:
    """A place right behind the comment that opens a written block."""
    comment = f"<!-- {block}: written by scripts/claims.py -->"
    for node in doctree.findall(nodes.raw):
        if node.astext().strip() == comment:
            place = nodes.container()
            node.parent.insert(node.parent.index(node) + 1, place)
            return place
    raise ExtensionError(f"{claims.PAGE} has no place for {block}.")


def open_table(doctree: nodes.document, paper: Paper, answers: list[Answer]) -> None:
    place = after(doctree, paper.key)
    siblings = place.parent[place.parent.index(place) + 1 :]
    place.parent.remove(place)
    columns = [entry.astext() for entry in next(siblings[0].findall(nodes.thead))[0]]
    rows = next(siblings[0].findall(nodes.tbody)).children
    rules = {}
    if len(siblings) > 2 and isinstance(siblings[2], nodes.bullet_list):
        opening, rule_list, closing = siblings[1:4]
        for item in rule_list.children:
            number = next(item.findall(nodes.strong))
            rules[int(number.astext().rstrip("."))] = item.children
            number.parent.remove(number)
        for node in (opening, rule_list, closing):
            node.parent.remove(node)
    for number, (row, claim, given) in enumerate(zip(rows, paper.claims, answers, strict=True), 1):
        row["ids"].append(f"{paper.key}-{number}")
        row["classes"] += ["claim", class_of(given.verdict)]
        statement, *figures, verdict = row.children
        for column, cell in zip(columns[1:], figures, strict=False):
            label = f'<span class="column">{escape(column)}</span>'
            cell.insert(0, nodes.raw("", label, format="html"))
        if given.finding:
            verdict.insert(0, nodes.raw("", plot(claim, given), format="html"))
        statement += nodes.raw("", permalink(paper, number), format="html")
        if number in rules:
            opening = '<details class="rule"><summary>How it is judged</summary>'
            statement += [nodes.raw("", opening, format="html"), *rules[number]]
            statement += nodes.raw("", "</details>", format="html")


def permalink(paper: Paper, number: int) -> str:
    label = escape(f"Link to {paper.name}, claim {number}", quote=True)
    return f'<a class="claim-link" href="#{paper.key}-{number}" aria-label="{label}">#</a>'


def setup(app: Sphinx) -> dict:
    app.add_directive("claims-summary", ClaimsSummary)
    app.connect("doctree-read", open_up)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
