"""The test of `tiled_attention` that a learner does not see: random shapes, new in every grading.

The error allowed is that of the public tests.
"""

import math

import pytest
import torch

import kernels


@pytest.mark.points(
    3, visibility="hidden", title="random lengths, scales and strides in every dtype"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_shapes(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return torch.randint(low, high + 1, (), generator=generator).item()

    d, step = 2 ** whole(4, 7), whole(1, 2)
    seq_query, seq_key, scale = whole(1, 150), whole(1, 150), whole(1, 40) / 10 / math.sqrt(d)
    query, key, value = (
        torch.randn(rows, step * d, generator=generator).to(kernels.device(), dtype)[:, ::step]
        for rows in (seq_query, seq_key, seq_key)
    )

    def attention(inside: torch.dtype) -> torch.Tensor:
        weights = (scale * (query.to(inside) @ key.to(inside).T)).softmax(1)
        weights = weights if inside == torch.float64 else weights.to(dtype).to(inside)
        return weights @ value.to(inside)

    exact, careful = attention(torch.float64), attention(torch.float32).to(dtype)
    largest_score = scale * (query.double() @ key.double().T).abs().max()
    rounding = 4 * torch.finfo(torch.float32).eps * (1 + largest_score) * value.double().abs().max()
    allowed = 2 * (careful - exact).abs().max() + rounding
    compare(student.tiled_attention(query, key, value, scale), exact, allowed, dtype=dtype)
