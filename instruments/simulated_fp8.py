"""FP8 attention for Hopper on the CPU: :mod:`kernels.fp8_hopper`'s own kernel, run by the Gluon simulator.

:func:`attention` takes what :func:`kernels.fp8.attention` takes, refuses what that refuses, and gives what
it would give on a Hopper GPU, at toy sizes, but for one thing: the simulator adds products in float32,
where Hopper's accumulator has fewer bits. What is done before the products is done by the same kernels,
on a GPU if there is one, and through Triton's interpreter if not.
"""

import torch

import kernels
from instruments.gluon_simulator import simulate
from kernels import fp8, fp8_hopper
from kernels.fp8_hopper import fp8_kernel
from kernels.fp8_preparation import Prepared
from kernels.quantization_reference import Quantized

SMS = 132  # of an H100 and an H200: so many programs has a launch there


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    seed: int | None = 0,
    design: fp8_hopper.Design | None = None,
    programs: int = SMS,
    timing: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`kernels.fp8.attention`, on the CPU; tensors on a GPU are copied from it, and results to it.

    Args:
        programs: how many the launch has.
        timing: seed of the random times that things take.

    Raises:
        TypeError, ValueError: as :func:`kernels.fp8.attention`.
        gluon_simulator.SimulationError: the kernel did what the hardware does not allow.
    """
    scale = fp8.check_inputs(query, key, value, scale)
    inputs = [tensor.to(kernels.device()) for tensor in (query, key, value)]
    signs = fp8.rotation_signs(inputs[0], seed)
    design = design or fp8_hopper.shipped_design(query.shape[-1])
    output = query.new_empty(query.shape, device="cpu")
    logsumexp = output.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
    else:
        prepared = fp8.prepare_for_hopper(*inputs, signs, design)
        prepared = Prepared(*(Quantized(*(part.cpu() for part in each)) for each in prepared))
        grid, arguments, constants = fp8_hopper.launch(
            prepared, output, logsumexp, causal, scale, design, programs
        )
        simulate(fp8_kernel, grid, *arguments, **constants, num_warps=4, seed=timing)
    output, logsumexp = output.to(query.device), logsumexp.to(query.device)
    return (output, logsumexp) if return_logsumexp else output
