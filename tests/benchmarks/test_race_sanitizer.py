"""What of the race sanitizer's run needs no GPU."""

import sys

import pytest

import kernels
from benchmarks import race_sanitizer
from kernels import flash3_kernel


@pytest.mark.parametrize("mistake", race_sanitizer.MISTAKES)
def test_a_mistake_is_one_change_of_the_kernel(mistake):
    module = race_sanitizer.with_mistake(*race_sanitizer.MISTAKES[mistake])
    assert module.flash3_kernel is not flash3_kernel.flash3_kernel
    with pytest.raises(ValueError, match="once in the kernel"):
        race_sanitizer.with_mistake("no such text", "")


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["race_sanitizer", "--experiment", "x"])
    with pytest.raises(SystemExit, match="^the sanitizer needs a Hopper GPU, and PyTorch sees no"):
        race_sanitizer.main()
