"""FlashAttention-3 on the CPU: the same arguments, the same refusals, and a run to look at."""

import inspect
import os
import subprocess
import sys

import pytest
import torch

import kernels
from instruments import simulated_flash3
from instruments.gluon_simulator import HopperClock
from kernels import flash3
from kernels.flash3 import Design
from tests.kernels.grid import assert_matches_oracle


def tensors(seq_query=200, seq_key=150, head_dim=64):
    torch.manual_seed(0)
    return tuple(
        torch.randn(1, 2, n, head_dim, device=kernels.device()).half()
        for n in (seq_query, seq_key, seq_key)
    )


def test_it_takes_what_the_kernel_takes():
    simulated = inspect.signature(simulated_flash3.attention).parameters
    for name, parameter in inspect.signature(flash3.attention).parameters.items():
        assert simulated[name] == parameter


def test_the_same_results_as_a_run_and_as_an_attention_function():
    inputs = tensors()
    assert_matches_oracle(simulated_flash3.attention, *inputs, causal=True)
    done = simulated_flash3.run(*inputs, causal=True)
    output, logsumexp = simulated_flash3.attention(*inputs, causal=True, return_logsumexp=True)
    assert torch.equal(done.output, output) and torch.equal(done.logsumexp, logsumexp)
    assert done.output.device == inputs[0].device
    assert done.run.trace and done.run.traffic.total > 0


def test_tensors_on_the_cpu_are_simulated_where_kernels_are_compiled_too():
    code = (
        "import torch; from instruments import simulated_flash3; import kernels;"
        "assert not kernels.INTERPRETED; tensor = torch.zeros(1, 1, 3, 64).half();"
        "print(simulated_flash3.attention(tensor, tensor, tensor).shape)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout == "torch.Size([1, 1, 3, 64])\n", ended.stderr


def test_a_seed_decides_the_times_and_nothing_else():
    inputs = tensors()
    once, again, other = (simulated_flash3.run(*inputs, seed=seed) for seed in (1, 1, 2))
    assert once.run == again.run and once.run.trace != other.run.trace
    assert torch.equal(once.output, other.output)


def test_a_clock_gives_a_schedule_and_a_design_changes_it():
    inputs = tensors(128, 512)
    plain = Design(128, stages=1, specialized=False, overlap="none")
    alone, shipped = (
        simulated_flash3.run(*inputs, design=design, clock=HopperClock()).run.cycles
        for design in (plain, Design(128))
    )
    assert 0 < shipped < alone


def test_programs_share_the_tiles_of_a_persistent_launch():
    inputs = tensors(300, 100)
    for programs, launched in ((1, 1), (3, 3), (132, 6)):  # two heads of three tiles of 128
        trace = simulated_flash3.run(*inputs, design=Design(64), programs=programs).run.trace
        assert {span.program for span in trace} == set(range(launched))


def test_empty_inputs_launch_nothing():
    done = simulated_flash3.run(*tensors(0, 10))
    assert done.output.shape == (1, 2, 0, 64) and done.run.trace == () and done.run.cycles == 0


@pytest.mark.parametrize("programs", [0, -1, 2.0, True])
def test_a_number_of_programs_that_is_none_is_refused(programs):
    with pytest.raises(ValueError, match="programs must be an integer of at least 1, got"):
        simulated_flash3.attention(*tensors(), programs=programs)
