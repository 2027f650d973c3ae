"""Plots: one recording for light and dark pages, with a text alternative."""

import re

import IPython.display
import pytest

from instruments import plots


@pytest.fixture
def drawn(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    with plots.figure("Time", alt='grows with N² & is "large"') as axes:
        axes.plot([1, 2], [1, 4], label="naive")
        axes.legend()
    (plot,) = shown
    return plot._repr_mimebundle_()


def test_every_palette_colour_can_be_set_by_the_page(drawn):
    svg = drawn["text/html"].split("</style>", 1)[1]
    outside_variables = re.sub(r"var\(--plot-\w+,#\w+\)", "", svg)
    assert "var(--plot-b4500f,#b4500f)" in svg
    for color in plots._DARK:
        assert color not in outside_variables


def test_the_text_alternative_is_there_and_escaped(drawn):
    assert 'role="img" aria-label="grows with N² &amp; is &quot;large&quot;"' in drawn["text/html"]
    assert drawn["text/plain"] == 'grows with N² & is "large"'


def test_text_stays_text_and_no_rule_reaches_the_page(drawn):
    assert ">naive</text>" in drawn["text/html"]
    assert drawn["text/html"].count("<style") == 1
    assert "*{" not in drawn["text/html"].replace(".plot *{", "")


def test_nothing_is_shown_when_drawing_fails(monkeypatch):
    monkeypatch.setattr(IPython.display, "display", lambda _: pytest.fail("a plot was shown"))
    with pytest.raises(ZeroDivisionError), plots.figure("Time", alt="x"):
        1 / 0  # noqa: B018


def test_no_two_plots_of_a_page_share_a_name_and_every_name_is_used(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    for _ in range(2):
        with plots.figure("Time", alt="x") as axes:
            axes.plot([1, 2], [1, 4], marker="o")
    names = [re.findall(r'\bid="([^"]+)"', plot.svg) for plot in shown]
    assert names[0] and set(names[0]).isdisjoint(names[1])
    for plot, own in zip(shown, names, strict=True):
        assert set(own) == set(re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg))
        assert len(own) == len(set(own))


def test_coordinates_are_as_exact_as_a_screen_and_labels_as_written(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    with plots.figure("0.12345 ms", alt="x") as axes:
        axes.plot([1, 2], [1, 4])
    assert ">0.12345 ms<" in shown[0].svg
    assert re.search(r' d="[^"]*\.\d\d[ "]', shown[0].svg)
    assert not re.search(r' d="[^"]*\.\d{3}', shown[0].svg)
