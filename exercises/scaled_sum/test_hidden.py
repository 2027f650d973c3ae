"""The test of `scaled_sum` that a learner does not see: random vectors, new in every grading.

The error allowed is that of the public tests. Nothing lies behind the vectors.
"""

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random vectors of every dtype and stride")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_vectors(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    length, x_step, y_step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((300, 3000), (1, 4), (1, 4))
    )
    factor = 10 * torch.rand((), generator=generator).item() - 5
    x, y = (
        torch.randn(step * (length - 1) + 1, generator=generator).to(kernels.device(), dtype)[
            ::step
        ]
        for step in (x_step, y_step)
    )
    product, addend = factor * x.double(), y.double()
    exact = product + addend
    allowed = 1.5 * torch.finfo(torch.float32).eps * (product.abs() + addend.abs())
    if dtype != torch.float32:
        allowed += torch.finfo(dtype).eps / 2 * exact.abs()
    compare(student.scaled_sum(x, y, factor), exact, allowed, dtype=dtype)
