"""Plots of a server's latency, and the rate it sustains, on rows that are made up."""

import IPython.display
import pytest

from instruments import serving_plots
from instruments.records import Record


def rows(system, latencies):
    return [
        {"scenario": "sampling", "system": system, "rate": rate, "latency": latency}
        for rate, latency in zip((1.0, 2.0, 4.0), latencies, strict=False)
    ]


def test_the_rate_lies_on_the_line_between_two():
    measured = rows("paged", (0.01, 0.02, 0.1))
    assert serving_plots.sustained_rate(measured, 0.06) == pytest.approx(3.0)
    assert serving_plots.sustained_rate(measured[::-1], 0.015) == pytest.approx(1.5)
    assert serving_plots.sustained_rate(measured, 0.02) == pytest.approx(2.0)


def test_a_latency_that_is_never_reached_gives_the_highest_rate():
    assert serving_plots.sustained_rate(rows("paged", (0.01, 0.02)), 1.0) == 2.0


def test_a_latency_that_is_passed_from_the_start_is_refused():
    with pytest.raises(ValueError, match="at the lowest rate, 1.0, the latency is 0.01 already"):
        serving_plots.sustained_rate(rows("max", (0.01, 0.02)), 0.005)


def test_the_plot_has_a_line_for_each_system_and_says_its_ends(monkeypatch):
    record = Record({}, rows("max", (0.01, 0.9)) + rows("paged", (0.01, 0.011, 0.3)))
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    serving_plots.plot_latency(record, "ShareGPT", scenario="sampling")
    (plot,) = shown
    assert "Max from 10 to 900 ms a token at 2" in plot.alt
    assert "paged from 10 to 300 ms a token at 4" in plot.alt
    assert ">Max</text>" in plot.svg and ">paged</text>" in plot.svg
