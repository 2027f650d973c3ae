"""The errors of FP8 at toy size: what is drawn, what a switch changes, and what is in a row."""

import json

import pytest
import torch

from benchmarks import fp8_error
from kernels import fp8_reference, hadamard, reference


@pytest.fixture(autouse=True)
def toy_size(monkeypatch):
    monkeypatch.setattr(fp8_error, "HEADS", 2)
    monkeypatch.setattr(fp8_error, "QUERIES", 64)
    monkeypatch.setattr(fp8_error, "SEEDS", (0, 1))


@pytest.mark.parametrize("distribution", fp8_error.DISTRIBUTIONS)
def test_what_is_drawn_is_the_same_again_and_makes_scores_of_a_like_size(distribution):
    drawn = fp8_error.draw(distribution, 3, 600, 64)
    again = fp8_error.draw(distribution, 3, 600, 64)
    other = fp8_error.draw(distribution, 4, 600, 64)
    for tensor, same, different in zip(drawn, again, other, strict=True):
        assert tensor.dtype == torch.float16 and tensor.shape[0] == 1
        assert torch.equal(tensor, same) and not torch.equal(tensor, different)
    assert [x.shape[2] for x in drawn] == [64, 600, 600]
    query, key, _ = (x.double() for x in drawn)
    scores = query @ key.mT / 8
    # Of N(0, 1) a standard deviation of 1; three times that for t's products, before they are cut off.
    assert 0.8 < (scores - scores.mean()).std() < 4


def test_channels_are_large_where_they_should_be():
    query, key, _ = (x.float().std((0, 1, 2)) for x in fp8_error.draw("channels", 0, 600, 64))
    assert (query > 4 * query.median()).sum() == fp8_error.CHANNELS
    assert torch.equal(query > 4 * query.median(), key > 4 * key.median())
    query, key, _ = (x.float().std((0, 1, 2)) for x in fp8_error.draw("other_channels", 0, 600, 64))
    assert (query > 4 * query.median()).sum() == (key > 4 * key.median()).sum() == 4
    assert not ((query > 4 * query.median()) & (key > 4 * key.median())).any()


def test_adversarial_rows_become_outliers_when_they_are_rotated():
    query, _, _ = fp8_error.draw("adversarial", 0, 600, 64)
    rotated = fp8_reference.rotate(query, hadamard.random_signs(64, 0).to(query.device))
    assert query.abs().max() < 7 < rotated[..., 0].abs().mean()


def test_ideas_take_off_what_they_are_for():
    rows = fp8_error.measure("outliers", 600, 64, ("eager", *fp8_error.SWITCHES))
    rmse = {row["contestant"]: row["rmse"] for row in rows}
    assert rmse["eager"] < rmse["fp8"] < rmse["no_rotation"] and rmse["fp8"] < rmse["per_tensor"]
    for row in rows:
        assert (row["n"], row["d"], row["queries"], row["heads"]) == (600, 64, 64, 2)
        assert len(row["rmse_of_a_seed"]) == row["seeds"] == len(set(row["rmse_of_a_seed"])) == 2
        assert min(row["rmse_of_a_seed"]) <= row["rmse"] <= max(row["rmse_of_a_seed"])
        assert row["rmse"] < row["max_error"]
    json.dumps(rows)


def test_every_switch_switches_something():
    inputs = fp8_error.draw("outliers", 0, 600, 64)
    outputs = [fp8_error.contestant(name)(*inputs) for name in fp8_error.SWITCHES]
    for index, output in enumerate(outputs):
        assert not any(torch.equal(output, other) for other in outputs[:index])


def test_errors_are_those_of_what_a_contestant_returns(monkeypatch):
    monkeypatch.setattr(
        fp8_error, "contestant", lambda name: lambda *inputs: reference.attention(*inputs) + 0.25
    )
    (row,) = fp8_error.measure("gaussian", 100, 64, ("fp8",))
    assert row["rmse"] == pytest.approx(0.25, rel=1e-12)
    assert row["max_error"] == pytest.approx(0.25, rel=1e-12)
