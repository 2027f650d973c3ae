"""FlashAttention-3 on the CPU: :mod:`kernels.flash3`'s own kernel, run by the Gluon simulator.

What a reader without a Hopper GPU calls. :func:`attention` takes what :func:`kernels.flash3.attention`
takes, refuses what that refuses, and gives the same results, at toy sizes; :func:`run` also gives what the
kernel did on the way.
"""

from dataclasses import dataclass

import torch

from instruments.gluon_simulator import HopperClock, Run, simulate
from instruments.traffic import Traffic
from kernels import flash3
from kernels.flash3_kernel import flash3_kernel

SMS = 132  # of an H100 and an H200: so many programs has a persistent launch there


@dataclass(frozen=True)
class Simulated:
    """The results of a simulated launch, and what it did; nothing if the inputs were empty."""

    output: torch.Tensor
    logsumexp: torch.Tensor
    run: Run


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    design: flash3.Design | None = None,
    programs: int = SMS,
    seed: int = 0,
    clock: HopperClock | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`kernels.flash3.attention`, on the CPU; further arguments as :func:`run`."""
    done = run(
        query,
        key,
        value,
        causal=causal,
        scale=scale,
        design=design,
        programs=programs,
        seed=seed,
        clock=clock,
    )
    return (done.output, done.logsumexp) if return_logsumexp else done.output


def run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    design: flash3.Design | None = None,
    programs: int = SMS,
    seed: int = 0,
    clock: HopperClock | None = None,
) -> Simulated:
    """Simulate a launch, one program after another.

    Args:
        query, key, value, causal, scale, design: as :func:`kernels.flash3.attention`. Tensors on a GPU are
            copied from it, and the results copied there.
        programs: how many a persistent launch has.
        seed: of the random times that things take.
        clock: the times that things take instead, to see a schedule.

    Raises:
        TypeError, ValueError: as :func:`kernels.flash3.attention`, or if ``programs`` is not at least 1.
        gluon_simulator.SimulationError: the kernel did what the hardware does not allow.
    """
    scale = flash3.check_inputs(query, key, value, scale)
    if isinstance(programs, bool) or not isinstance(programs, int) or programs < 1:
        raise ValueError(f"programs must be an integer of at least 1, got {programs!r}")
    device = query.device
    query, key, value = (tensor.cpu() for tensor in (query, key, value))
    design = design or flash3.shipped_design(query.shape[-1])
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
        did = Run(cycles=0.0, trace=(), traffic=Traffic(), shared_bytes=0)
    else:
        grid, arguments, constants = flash3.launch(
            query, key, value, output, logsumexp, causal, scale, design, programs
        )
        did = simulate(
            flash3_kernel,
            grid,
            *arguments,
            **constants,
            num_warps=design.warps,
            seed=seed,
            clock=clock,
        )
    return Simulated(output.to(device), logsumexp.to(device), did)
