"""The test of `hadamard_rows` that a learner does not see: random rows and signs, new in every grading.

The error allowed is that of the public tests.
"""

import math

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random rows and signs in every dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_rows(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows, steps, stride = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((1, 60), (4, 9), (1, 3))
    )
    d = 2**steps
    sizes = torch.randint(-3, 4, (rows, 1), generator=generator).double().exp()
    matrix = (torch.randn(rows, stride * d, generator=generator) * sizes).to(dtype)
    signs = 1.0 - 2.0 * torch.randint(2, (d,), generator=generator)
    matrix, signs = matrix.to(kernels.device())[:, ::stride], signs.to(kernels.device())

    hadamard = torch.ones(1, 1, dtype=torch.float64, device=kernels.device())
    while len(hadamard) < d:
        upper, lower = (torch.cat([hadamard, sign * hadamard], 1) for sign in (1, -1))
        hadamard = torch.cat([upper, lower])
    flipped = matrix.double() * signs
    exact = flipped @ hadamard / math.sqrt(d)
    largest = flipped.abs().sum(1, keepdim=True) / math.sqrt(d)
    single, own = (torch.finfo(each).eps / 2 for each in (torch.float32, dtype))
    allowed = (math.log2(d) + 2) * single * largest + own * exact.abs()
    compare(student.hadamard_rows(matrix, signs), exact, allowed, dtype=dtype)
