"""The test of `two_pass_softmax` that a learner does not see: random rows, new in every grading.

The error allowed is that of the public tests.
"""

import math

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random rows of every dtype, in part hidden")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_rows(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows, columns, step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((3, 6), (20, 3000), (1, 3))
    )
    spread = torch.randint(1, 100, (rows, 1), generator=generator)
    values = spread * torch.randn(rows, step * columns, generator=generator)
    start = torch.randint(0, 2000, (rows, 1), generator=generator)
    start[0] = step * columns
    values = values.masked_fill(torch.arange(step * columns) < start, -math.inf)
    values = values.to(kernels.device(), dtype)[:, ::step]
    exact = values.double().softmax(1).nan_to_num()
    careful = values.float().softmax(1).nan_to_num().to(dtype)
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * exact.max()
    compare(student.two_pass_softmax(values), exact, allowed, dtype=dtype)
