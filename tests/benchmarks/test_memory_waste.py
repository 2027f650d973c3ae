"""The count of wasted memory at small size, and what the record must say."""

import json
import subprocess
import sys

import IPython.display
import pytest

from benchmarks import memory_waste
from instruments import records, serving_plots


def test_the_slots_are_the_papers():
    assert memory_waste.SLOT_BYTES == 800 * 1024
    assert memory_waste.SLOTS == 15728


@pytest.fixture(scope="module")
def rows():
    return {
        system: memory_waste.count_waste("sharegpt", system, 60) for system in memory_waste.SYSTEMS
    }


def test_shares_are_of_all_slots(rows):
    for row in rows.values():
        kinds = ("tokens", "reserved", "internal", "rounding", "free")
        assert sum(row[kind] for kind in kinds) == pytest.approx(1, abs=5 * 0.00005)
        assert row["external"] == pytest.approx(row["rounding"] + row["free"], abs=0.00011)
        json.dumps(row)


def test_pieces_of_2048_fit_seven_times(rows):
    row = rows["max"]
    assert row["running"] == 7
    assert (row["rounding"], row["free"]) == (0, round(1 - 7 * 2048 / 15728, 4))


def test_the_order_is_the_papers(rows):
    shares = [rows[system]["tokens"] for system in ("max", "pow2", "oracle", "paged")]
    assert shares == sorted(shares) and shares[-1] > 0.9
    assert rows["oracle"]["internal"] == rows["paged"]["rounding"] == 0


def test_the_count_is_the_same_again(rows):
    assert memory_waste.count_waste("sharegpt", "oracle", 60) == rows["oracle"]


@pytest.mark.parametrize("workload", ["sharegpt", "alpaca"])
def test_the_plot_says_the_records_numbers(monkeypatch, workload):
    record = records.load("memory_waste", gpu="cpu")
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    serving_plots.plot_memory_waste(record, workload)
    (plot,) = shown
    for row in record.where(workload=workload):
        assert f"{100 * row['tokens']:.1f} %" in plot.alt
        assert f"{100 * row['tokens']:.1f}" in plot.svg
    for name in serving_plots.SYSTEM_NAMES.values():
        assert name in plot.alt and name in plot.svg


def test_bad_arguments_are_named():
    command = [sys.executable, "-m", "benchmarks.memory_waste"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the following arguments are required: --experiment" in done.stderr
