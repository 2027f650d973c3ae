"""Importing the kernels decides whether a GPU runs them or the interpreter does."""

import os
import subprocess
import sys

import pytest
import torch

import kernels
from scripts.environment import ROOT


@pytest.mark.parametrize(
    ("capability", "answer"), [(None, False), ((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_a_gpu_runs_them_if_it_is_new_enough(monkeypatch, capability, answer):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert kernels._has_gpu() is answer


def test_a_t4_leaves_them_to_the_interpreter():
    pretend = (
        "import torch; torch.cuda.is_available = lambda: True; "
        "torch.cuda.get_device_capability = lambda: (7, 5); "
        "import kernels; print(kernels.INTERPRETED, kernels.device())"
    )
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", pretend]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.strip() == "True cpu", done.stderr
