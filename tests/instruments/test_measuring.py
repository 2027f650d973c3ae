"""Timing arithmetic, records, the roofline and display. No test here depends on speed."""

import functools
import json
import time

import pytest
import torch

from instruments import display, records
from instruments.roofline import Ceilings, measure_ceilings
from instruments.timing import Timing, time_interleaved
from kernels import naive


def test_speedup_is_the_median_of_ratios_within_rounds():
    # The clock halves after the first round: ratios within a round do not notice.
    fast, slow = Timing((1.0, 2.0, 2.0)), Timing((3.0, 6.0, 6.0))
    assert fast.speedup_over(slow) == 3.0
    assert slow.speedup_over(fast) == pytest.approx(1 / 3)
    assert Timing((4.0, 1.0, 2.0)).median == 2.0


def test_spread_is_half_the_interquartile_range_over_the_median():
    assert Timing((5.0, 5.0, 5.0)).spread == 0.0
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1.5 / 3)
    assert Timing((1.0,)).spread == 0.0


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = time_interleaved(functions, rounds=4, milliseconds_a_round=1e-9)
    assert {name: len(timing.rounds) for name, timing in taken.items()} == {"a": 4, "b": 4}
    # After warming up: in each round both have a turn of three calls, not always in the same order.
    timed = calls[-24:]
    turns = [tuple(timed[at : at + 6 : 3]) for at in range(0, 24, 6)]
    assert timed == [name for turn in turns for name in turn for _ in range(3)]
    assert set(turns) == {("a", "b"), ("b", "a")}


def test_a_sleep_is_timed_in_milliseconds():
    function = functools.partial(time.sleep, 0.01)
    if torch.cuda.is_available():
        pytest.skip("the GPU's events do not see the host sleep")
    assert time_interleaved({"sleep": function}, rounds=1)["sleep"].median >= 10.0


def test_a_record_is_read_back_as_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_BOOK_COMMIT", "abc123")
    monkeypatch.setenv("ATTENTION_BOOK_DIRTY", "0")
    rows = [{"n": 1, "ms": 0.5}, {"n": 2, "ms": None}]
    path = records.save("trial", rows, tmp_path)
    record = records.load("trial", gpu=path.parent.name, results=tmp_path)
    assert record.rows == rows
    assert record.one(n=2) == rows[1] and record.where(n=3) == []
    assert (record.environment["commit"], record.environment["dirty"]) == ("abc123", False)
    assert set(record.environment) == {
        "gpu",
        "driver",
        "torch",
        "triton",
        "cuda",
        "python",
        "commit",
        "dirty",
        "date",
        "command",
    }
    assert [p.name for p in path.parent.iterdir()] == ["trial.json"]


def test_a_failed_save_leaves_the_old_record(tmp_path):
    path = records.save("trial", [{"n": 1}], tmp_path)
    with pytest.raises(TypeError):
        records.save("trial", [{"n": object()}], tmp_path)
    assert json.loads(path.read_text())["rows"] == [{"n": 1}]


def test_a_missing_record_lists_those_there_are(tmp_path):
    records.save("trial", [], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no record 'other' .* there are: .*trial\.json"):
        records.load("other", results=tmp_path)


def test_one_refuses_none_and_many():
    record = records.Record({}, [{"n": 1}, {"n": 1}])
    for n in (1, 2):
        with pytest.raises(LookupError, match="expected exactly 1"):
            record.one(n=n)


def test_gpu_names_become_folder_names():
    assert records.slug("NVIDIA H200") == "nvidia-h200"
    assert records.slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"


def test_every_record_in_the_repository_is_whole():
    paths = list(records.RESULTS.rglob("*.json"))
    assert paths
    for path in paths:
        record = records.Record(**json.loads(path.read_text()))
        assert records.slug(record.environment["gpu"]) == path.parent.name
        assert record.environment["commit"] != "unknown" and record.rows, path


def test_the_roof_is_the_lower_of_memory_and_arithmetic():
    ceilings = Ceilings(copy_tbs=4.0, tflops={"float16": 800.0})
    assert ceilings.ridge("float16") == 200.0
    assert ceilings.attainable_tflops(50, "float16") == 200.0
    assert ceilings.attainable_tflops(500, "float16") == 800.0
    # 4 GB at 4 TB/s is a millisecond; 1.6 TFLOP at 800 TFLOP/s is two.
    assert ceilings.milliseconds(flops=0, bytes_moved=4e9, dtype="float16") == pytest.approx(1.0)
    assert ceilings.milliseconds(1.6e12, 4e9, "float16") == pytest.approx(2.0)


def test_ceilings_need_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="measured on a CUDA GPU"):
        measure_ceilings()


def test_tables_align_numbers_and_keep_text():
    rows = [{"name": "naive", "ms": 1.25}, {"name": "fa2", "ms": 0.5}]
    shown = display.table(rows, {"kernel": "name", "time, ms": lambda r: f"{r['ms']:.2f}"})
    assert shown.data.splitlines() == [
        "| kernel | time, ms |",
        "|:---|---:|",
        "| naive | 1.25 |",
        "| fa2 | 0.50 |",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 B"), (2048, "2.05 kB"), (2_150_000_000, "2.15 GB"), (1.5e12, "1.5 TB")],
)
def test_bytes_are_decimal(count, text):
    assert display.si_bytes(count) == text


def test_source_is_the_module_s_own():
    shown = display.source(naive.softmax_kernel, naive.softmax).data
    assert shown.startswith("```python\n@triton.jit\ndef softmax_kernel(")
    assert "def softmax(scores: torch.Tensor)" in shown and shown.endswith("\n```")


def test_say_shows_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    display.say("**2** bytes")
    assert [item.data for item in shown] == ["**2** bytes"]
