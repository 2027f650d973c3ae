"""The tests of `ragged_softmax` that a learner does not see: random matrices, new in every grading.

The error allowed is that of the public tests.
"""

import pytest
import torch

import kernels


def inside(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which elements of each row count."""
    return torch.arange(values.shape[1], device=values.device) < lengths[:, None]


def softmax(values: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    outside = ~inside(values, lengths)
    return values.to(dtype).masked_fill(outside, -torch.inf).softmax(1).masked_fill(outside, 0.0)


@pytest.mark.points(3, visibility="hidden", title="random matrices of every dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_matrices(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows, columns, step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((3, 12), (20, 700), (1, 3))
    )
    lengths = torch.randint(0, columns + 1, (rows,), generator=generator)
    lengths[:3] = torch.tensor([0, 1, columns])
    spread = torch.randint(1, 100, (rows, 1), generator=generator)
    values = spread * torch.randn(rows, step * columns, generator=generator)
    values, lengths = values.to(kernels.device(), dtype)[:, ::step], lengths.to(kernels.device())
    exact = softmax(values, lengths, torch.float64).nan_to_num()
    careful = softmax(values, lengths, torch.float32).nan_to_num().to(dtype)
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * exact.max()
    compare(student.ragged_softmax(values, lengths), exact, allowed, dtype=dtype)
