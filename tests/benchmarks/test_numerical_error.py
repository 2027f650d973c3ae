"""The errors with outliers at toy size: what is drawn, and what is in a row."""

import json
import sys

import pytest
import torch

import kernels
from benchmarks import contestants, flash_attention_3, numerical_error
from kernels import reference


@pytest.fixture
def toy_size(monkeypatch):
    monkeypatch.setattr(numerical_error, "HEADS", 2)
    monkeypatch.setattr(numerical_error, "LENGTH", 128)


def test_one_element_in_a_thousand_gets_a_draw_of_ten_times_the_deviation():
    shape = (4, 256, 512)
    drawn = numerical_error.with_outliers(3, shape)
    for tensor in drawn:
        assert tensor.shape == shape and tensor.dtype == torch.float16
        values = tensor.double()
        # Of N(0, 1) alone, one in 10^8 is beyond 6; of N(0, 101), 55 %. The count is a binomial's.
        expected = 0.55 * 1e-3 * values.numel()
        assert abs((values.abs() > 6).sum().item() - expected) < 5 * expected**0.5
        # A variance of 1 + 0.001 * 100; its own variance is that of the fourth powers, of 3 * 10^4 each.
        error = (3e4 * 1e-3 / values.numel()) ** 0.5
        assert abs(values.square().mean().item() - 1.1) < 5 * error
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    again = numerical_error.with_outliers(3, shape)
    assert all(torch.equal(was, now) for was, now in zip(drawn, again, strict=True))


def test_a_careful_kernel_is_nearer_than_scores_in_float16(toy_size):
    rows = {row["contestant"]: row for row in numerical_error.measure(64, ("eager", "flash2"))}
    assert rows["flash2"]["rmse"] < rows["eager"]["rmse"]
    for row in rows.values():
        assert (row["dtype"], row["n"], row["d"], row["heads"]) == ("float16", 128, 64, 2)
        assert len(row["rmse_of_a_seed"]) == row["seeds"] == len(set(row["rmse_of_a_seed"]))
        assert 0 < min(row["rmse_of_a_seed"]) <= row["rmse"] <= max(row["rmse_of_a_seed"])
        assert row["rmse"] < row["max_error"] < row["output_rms"]
    json.dumps(list(rows.values()))


def test_errors_are_those_of_what_a_contestant_returns(toy_size, monkeypatch):
    def off_by_a_quarter(query, key, value, causal):
        assert not causal
        return reference.attention(query, key, value) + 0.25

    monkeypatch.setattr(contestants, "_eager", off_by_a_quarter)
    monkeypatch.delenv(flash_attention_3.VARIABLE, raising=False)
    (row,) = numerical_error.measure(64, ("fa3", "eager"))
    assert row["contestant"] == "eager"
    assert row["rmse"] == pytest.approx(0.25, rel=1e-12)
    assert row["max_error"] == pytest.approx(0.25, rel=1e-12)


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["numerical_error", "--experiment", "x"])
    with pytest.raises(
        SystemExit, match="^the kernels are compared on a Hopper GPU, and PyTorch sees no GPU here$"
    ):
        numerical_error.main()
