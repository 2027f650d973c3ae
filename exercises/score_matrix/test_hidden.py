"""The test of `score_matrix` that a learner does not see: random inputs, new in every grading.

The error allowed is that of the public tests. Nothing lies behind the inputs.
"""

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random lengths, dims, dtypes and masks")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_scores(student, seed, compare, dtype, causal):
    generator = torch.Generator().manual_seed(seed)
    seq_query, seq_key, d, step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((40, 100), (40, 100), (33, 120), (1, 3))
    )
    scale = torch.rand((), generator=generator).item() + 0.1
    query = torch.randn(step * (seq_query - 1) + 1, d, generator=generator)
    key = torch.randn(d, seq_key, generator=generator)
    query = query.to(kernels.device(), dtype)[::step]
    key = key.to(kernels.device(), dtype).T
    sizes = scale * (query.double().abs() @ key.double().abs().T)
    exact = scale * (query.double() @ key.double().T)
    row = torch.arange(seq_query, device=query.device)[:, None]
    column = torch.arange(seq_key, device=query.device)
    if causal:
        exact = exact.masked_fill(column > row + seq_key - seq_query, -torch.inf)
    allowed = (d + 2) * torch.finfo(torch.float32).eps / 2 * sizes
    result = student.score_matrix(query, key, scale, causal)
    compare(result, exact, allowed, dtype=torch.float32, name="The matrix of scores")
