"""What of the race sanitizer's run needs no GPU."""

import importlib
import sys

import pytest
import torch

import kernels
from benchmarks import race_sanitizer
from instruments import simulated_flash3
from instruments.gluon_simulator import SimulationError
from kernels import reference


@pytest.fixture
def changed(monkeypatch):
    """The kernel with changes, in no other test."""

    def change(*changes):
        for module in ("changed_flash3_pipeline", "changed_flash3_kernel"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        kernel = race_sanitizer.changed_kernel(*changes)
        monkeypatch.setattr(simulated_flash3, "flash3_kernel", kernel)

    monkeypatch.setattr(sys, "path", list(sys.path))
    return change


def attend(seed):
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, 2, n, 128).half() for n in (200, 600, 600))
    output = simulated_flash3.attention(query, key, value, causal=True, seed=seed)
    exact = reference.attention(query, key, value, causal=True)
    budget = reference.error_budget(query, key, value, causal=True)
    assert reference.errors(output, exact).within(budget)


def test_what_the_sanitizer_runs_is_attention(changed):
    changed(*race_sanitizer.COUNTED)
    attend(0)


@pytest.mark.parametrize("mistake", race_sanitizer.MISTAKES)
def test_a_mistake_is_one(changed, mistake):
    changed(*race_sanitizer.COUNTED, race_sanitizer.MISTAKES[mistake])
    with pytest.raises((SimulationError, AssertionError)):
        for seed in range(5):
            attend(seed)


def test_a_text_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="once in flash3_kernel.py: 'no such text'"):
        race_sanitizer.changed_kernel(("flash3_kernel", "no such text", ""))


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["race_sanitizer", "--experiment", "x"])
    with pytest.raises(SystemExit, match="^the sanitizer needs a Hopper GPU, and PyTorch sees no"):
        race_sanitizer.main()
