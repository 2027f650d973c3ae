"""The plot of a claim, and the bar of all verdicts."""

import re

import pytest

from instruments.claims import Finding
from scripts.claims import DATA, Answer, Claim, answer, load, read_papers
from scripts.environment import ROOT
from scripts.sphinx_claims import described, plot, verdict_bar

CLAIMS = [claim for paper in read_papers(ROOT / DATA) for claim in paper.claims]
RULE = {"experiment": "gpt2_time", "quantity": "a ratio", "reproduced": 4.0, "in_part": 1.0}


def found(value, *points):
    return Answer("shown", "in part", finding=Finding(value, "shown", points))


def numbers(svg, shape, attribute):
    return [
        float(number)
        for number in re.findall(rf'<\w+ class="{shape}"[^>]* {attribute}="M?([\d.]+)', svg)
    ]


def test_what_is_drawn_lies_where_its_number_is():
    claim = Claim("Fig. 1", "Faster", "5×", 3, paper=5.0, **RULE)
    svg = plot(claim, found(2.0, 2.0, 1.0, 8.0))
    scale = 240 / (1.05 * 8)
    assert numbers(svg, "ours", "cx") == [pytest.approx(2 * scale, abs=0.1)]
    assert numbers(svg, "paper", "d") == [pytest.approx(5 * scale, abs=0.1)]
    assert numbers(svg, "point", "cx") == pytest.approx([2 * scale, scale, 8 * scale], abs=0.1)
    assert numbers(svg, "in-part", "x") == [pytest.approx(scale, abs=0.1)]
    assert numbers(svg, "reproduced", "x") == [pytest.approx(4 * scale, abs=0.1)]
    assert 'aria-label="Ours 2; the paper&#x27;s 5; reproduced from 4, in part from 1"' in svg


def test_without_a_number_of_the_paper_there_is_no_mark_of_it():
    claim = Claim("Fig. 1", "Faster", "faster", 3, **RULE)
    svg = plot(claim, found(2.0))
    assert numbers(svg, "paper", "d") == [] and numbers(svg, "ours", "cx") != []
    assert described(claim, found(2.0)) == "Ours 2; reproduced from 4, in part from 1"


def test_the_bar_counts_measurable_claims():
    given = [Answer("", v) for v in ["reproduced", "not measurable", "reproduced", "not yet"]]
    bar = verdict_bar(given)
    assert re.findall(r'class="([\w-]+)" style="flex-grow: (\d)">(\d)<', bar) == [
        ("reproduced", "2", "2"),
        ("not-yet", "1", "1"),
    ]
    assert 'aria-label="2 reproduced, 0 in part, 0 not reproduced, 1 not yet"' in bar


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.experiment], ids=lambda c: c.statement)
def test_a_judged_number_is_among_its_points_and_beside_the_papers(claim):
    given = answer(claim, ROOT, load)
    if given.finding is None:
        assert given.ratio == "–"
        return
    points = given.finding.points
    assert not points or min(points) <= given.finding.value <= max(points)
    if claim.paper:
        assert given.ratio == f"{given.finding.value / claim.paper:.2f}×"
        # A rule asks for no more than the paper found.
        assert claim.reproduced <= claim.paper
