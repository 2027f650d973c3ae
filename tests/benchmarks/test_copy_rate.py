"""The kernel that only copies: on the simulator it copies all, and as fast as the clock's copy engine."""

import sys

import pytest
import torch

import kernels
from benchmarks import copy_rate
from instruments.gluon_simulator import HopperClock, simulate
from instruments.gluon_simulator.clocks import COPIES
from tests.instruments.test_gluon_simulator import descriptor


def simulated(monkeypatch, tiles, there, **options):
    monkeypatch.setattr(copy_rate, "clock", lambda: 0)  # a GPU's own
    source = torch.zeros(there * copy_rate.TILE, copy_rate.TILE, dtype=torch.float16)
    cycles = torch.full((2,), -1)
    box = descriptor(source, (copy_rate.TILE, copy_rate.TILE))
    arguments = (box, cycles, tiles, 1, there)
    run = simulate(copy_rate.copy_kernel, (2,), *arguments, STAGES=copy_rate.STAGES, **options)
    assert cycles.tolist() == [0, 0]
    return run


@pytest.mark.parametrize("tiles", [copy_rate.STAGES, 11])
def test_every_tile_is_copied_and_none_too_early(monkeypatch, tiles):
    for seed in range(3):
        run = simulated(monkeypatch, tiles, 3, seed=seed)
        assert len([span for span in run.trace if span.name == "fill"]) == 2 * tiles


def test_copies_are_all_it_waits_for(monkeypatch):
    clock = HopperClock()
    tiles = 50
    run = simulated(monkeypatch, tiles, 3, clock=clock, sms=2)
    at_least = tiles * clock.cycles(COPIES, copy_rate.TILE_BYTES)
    assert at_least <= run.cycles < 1.1 * at_least


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["copy_rate", "--experiment", "x"])
    with pytest.raises(SystemExit, match="^copies are timed on a Hopper GPU, and PyTorch sees no"):
        copy_rate.main()
