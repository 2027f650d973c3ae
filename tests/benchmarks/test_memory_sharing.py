"""The count of shared blocks at small size."""

import json

import IPython.display
import pytest

from benchmarks import memory_sharing
from benchmarks.memory_waste import WORKLOADS
from instruments import records, serving_plots
from serving.traces import Lengths, Workload


def test_what_samples_share_is_the_full_blocks_of_the_prompt(monkeypatch):
    """Prompts of 8 tokens and outputs of 5 in blocks of 4: of 4 x 3 blocks, 3 x 2 are saved."""

    class Always(Lengths):
        def draw(self, random, count):
            return random.integers(self.mean, self.mean + 1, count)

    always = Workload(Always(8, 1.0, 100), Always(5, 1.0, 100))
    monkeypatch.setitem(WORKLOADS, "alpaca", always)
    row = memory_sharing.count_sharing("alpaca", "sampling", 4, requests=1, block_size=4)
    # The step of the prompt has one table of 2 blocks; each of four more has four of 3.
    assert row["saved"] == round(1 - (2 + 4 * 6) / (2 + 4 * 12), 4)


@pytest.mark.parametrize("parallel", memory_sharing.PARALLEL)
def test_beams_share_more_than_samples(parallel):
    rows = [
        memory_sharing.count_sharing("alpaca", method, parallel, 20)
        for method in ("sampling", "beam")
    ]
    assert 0 < rows[0]["saved"] < rows[1]["saved"] < 1 - 1 / parallel
    json.dumps(rows)


def test_the_plot_says_the_records_numbers(monkeypatch):
    record = records.load("memory_sharing", gpu="cpu")
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    serving_plots.plot_memory_sharing(record)
    (plot,) = shown
    for row in record.rows:
        if row["parallel"] != 4:
            assert f"{100 * row['saved']:.1f}" in plot.alt
    assert ">beam search</text>" in plot.svg and ">sharegpt</text>" in plot.svg
