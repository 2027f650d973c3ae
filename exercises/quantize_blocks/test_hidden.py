"""The test of `quantize_blocks` that a learner does not see: random matrices, new in every grading.

The error allowed is that of the public tests.
"""

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random matrices of every dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_matrices(student, seed, compare, dtype):
    if not kernels.INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8: set TRITON_INTERPRET=1 before Python starts")
    generator = torch.Generator().manual_seed(seed)
    rows, columns, step, power = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((1, 90), (1, 150), (1, 3), (1, 6))
    )
    block = 2**power
    sizes = torch.randint(-3, 4, (rows, 1), generator=generator).double().exp()
    matrix = torch.randn(rows, step * columns, generator=generator) * sizes
    matrix[:block] = 0
    matrix = matrix.to(kernels.device(), dtype)[:, ::step]

    amax = torch.stack([part.double().abs().amax() for part in matrix.split(block)])
    scale = torch.where(amax == 0, 1.0, amax / 448)
    exact = matrix.double() / scale.repeat_interleave(block)[:rows, None]
    power_below = exact.abs().clamp(min=2.0**-6).log2().floor().exp2()
    rounding = 4 * torch.finfo(torch.float32).eps
    values, came = student.quantize_blocks(matrix, block)
    compare(came, scale, rounding * scale, dtype=torch.float32, name="The scale")
    allowed = power_below / 16 + rounding * exact.abs()
    compare(values.float(), exact, allowed, dtype=torch.float32, name="The values")
