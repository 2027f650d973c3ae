"""The occupancy benchmark at toy size: what is in its rows, and what the schedule predicts."""

import json
import subprocess
import sys

import pytest
import torch

import kernels
from benchmarks import occupancy
from instruments.timing import Timing
from kernels import reference

ON_CPU = kernels.device().type == "cpu"


@pytest.fixture
def a_second_each(monkeypatch):
    """Every call takes a second, and figures are not rounded, so that toy sizes leave some."""

    def pretend(functions, **_):
        return {name: Timing((1000.0, 1000.0)) for name in functions}

    monkeypatch.setattr(occupancy, "time_interleaved", pretend)
    monkeypatch.setattr(occupancy, "round", lambda number, digits: number, raising=False)


def test_heads_are_compared_with_a_program_for_each():
    rows = occupancy.time_heads(batch=2, length=256, head_dim=16, rounds=2)
    assert [row["kernel"] for row in rows] == list(occupancy.KERNELS)
    assert {row["comparison"] for row in rows} == {"heads"}
    assert {(row["batch"], row["heads"], row["n"], row["d"]) for row in rows} == {(2, 1, 256, 16)}
    printed, *others = rows
    assert printed["gain"] == printed["predicted"] == 1.0
    # A head's 2 x 4 tiles and one step more, beside one tile of queries' 4 and one more.
    assert {row["predicted"] for row in others} == {9 / 5}
    json.dumps(rows)


def test_flops_are_those_of_both_products(a_second_each):
    for row in occupancy.time_heads(batch=2, length=256, head_dim=16):
        assert row["tflops"] == pytest.approx(1e-12 * 2 * (2 * 2 * 256 * 256 * 16))


def test_splits_are_compared_with_one_and_the_chosen_one_is_marked(monkeypatch):
    monkeypatch.setattr(occupancy.flash2, "_splits_to_fill", lambda query, key: 3)
    rows = occupancy.time_splits(2, 1, 512, 16, splits=(1, 2, 16), rounds=2)
    assert [row["splits"] for row in rows] == [1, 2, 3, 16]
    assert [row["splits"] for row in rows if row["chosen"]] == [3]
    assert rows[0]["gain"] == rows[0]["predicted"] == 1.0
    # 8 tiles of keys: 8 steps and one more; 4 and two more; 3 and two more; 1 and two more.
    assert [row["predicted"] for row in rows] == [1.0, 1.5, 1.8, 3.0]
    assert all(row["n_query"] == 1 and row["n_key"] == 512 for row in rows)
    assert all(row["ms"] > 0 for row in rows)
    json.dumps(rows)


def test_bytes_are_those_of_keys_and_values_and_of_the_queries_twice(a_second_each):
    for row in occupancy.time_splits(3, 4, 64, 16, splits=(1, 2)):
        assert row["tbs"] == pytest.approx(1e-12 * 2 * 3 * 16 * (2 * 64 + 2 * 4))
        assert row["gain"] == row["over_fa2"] == 1.0


def test_a_causal_mask_is_compared_with_none():
    row = occupancy.time_causal(batch=2, length=256, head_dim=16, rounds=2)
    # Of 2 x 4 tiles each head visits 2 + 4; the longest of the programs ends when it did before.
    assert (row["comparison"], row["predicted"]) == ("causal", 1.0)
    assert row["gain"] > 0 and json.dumps(row)


def test_the_prediction_lies_between_a_full_gpu_and_the_longest_program_more():
    launches = (
        occupancy.launched(64, 2048, 2048, 64),
        occupancy.launched(64, 2048, 2048, 64, causal=True, order="longest"),
    )
    assert [sum(program.tiles for program in launch) for launch in launches] == [
        64 * 16 * 32,
        64 * sum(range(2, 34, 2)),
    ]
    sms = occupancy.SMS_OF_AN_H200
    if not ON_CPU:
        sms = torch.cuda.get_device_properties(0).multi_processor_count
    full, causal = (sum(program.steps for program in launch) / sms for launch in launches)
    longest = 33
    predicted = occupancy.predicted_gain(*launches)
    assert full / (causal + longest) <= predicted <= (full + longest) / causal


def test_a_captured_call_computes_what_the_call_does():
    query, key, value = occupancy.random_inputs(2, 3, 70, 16)
    found = torch.empty_like(query)

    def attend():
        found.copy_(occupancy.flash2.split_attention(query, key, value, splits=2))

    replay = occupancy.captured(attend)
    found.zero_()
    replay()
    errors = reference.errors(found, reference.attention(query, key, value))
    assert errors.within(reference.error_budget(query, key, value))


@pytest.mark.skipif(not ON_CPU, reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so():
    command = [sys.executable, "-m", "benchmarks.occupancy", "--experiment", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "occupancy is that of a CUDA GPU, and PyTorch sees none here\n"
