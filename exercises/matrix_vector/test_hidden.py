"""The test of `matrix_vector` that a learner does not see: random inputs, new in every grading.

The error allowed is that of the public tests. Nothing lies behind the inputs.
"""

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random matrices of every dtype and stride")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_matrices(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows, columns, step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((20, 90), (70, 400), (1, 4))
    )
    matrix = torch.randn(columns, step * (rows - 1) + 1, generator=generator)
    vector = torch.randn(step * (columns - 1) + 1, generator=generator)
    matrix = matrix.to(kernels.device(), dtype).T[::step]
    vector = vector.to(kernels.device(), dtype)[::step]
    products = matrix.double() * vector.double()
    exact = products.sum(1)
    allowed = columns * torch.finfo(torch.float32).eps / 2 * products.abs().sum(1)
    compare(student.matrix_vector(matrix, vector), exact, allowed, dtype=torch.float32)
