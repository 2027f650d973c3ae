"""The test of `key_value_gradients` that a learner does not see: random shapes, new in every grading.

The error allowed is that of the public tests: twice that of PyTorch with float32 inside, and a few units in
the last place of float32, of the sums of magnitudes and of the scores.
"""

import math

import pytest
import torch

import kernels

EPSILON = torch.finfo(torch.float32).eps


@pytest.mark.points(3, visibility="hidden", title="random lengths and scales in every dtype")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_shapes(student, seed, compare, dtype, causal):
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return torch.randint(low, high + 1, (), generator=generator).item()

    seq_query, seq_key, head_dim = whole(1, 90), whole(1, 90), 2 ** whole(4, 6)
    scale = whole(1, 20) / 10 / math.sqrt(head_dim)
    query, key, value, grad_output = (
        torch.randn(rows, head_dim, generator=generator).to(kernels.device(), dtype)
        for rows in (seq_query, seq_key, seq_key, seq_query)
    )
    last = torch.arange(seq_query)[:, None] + (seq_key - seq_query)
    visible = ((torch.arange(seq_key) <= last) | (not causal)).to(kernels.device())
    scores = scale * (query.double() @ key.double().T)
    logsumexp = scores.masked_fill(~visible, -torch.inf).logsumexp(1).float()
    delta = torch.randn(seq_query, generator=generator).to(kernels.device())

    def gradients(inside: torch.dtype, sizes: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Both gradients, or the sums of the magnitudes of what they add up."""

        def rounded(matrix: torch.Tensor) -> torch.Tensor:
            return matrix if inside == torch.float64 else matrix.to(dtype).to(inside)

        left, right = query.to(inside), key.to(inside)
        exponentials = (scale * (left @ right.T) - logsumexp.to(inside)[:, None]).exp()
        probabilities = torch.where(visible, exponentials, 0.0)
        grad, values, minus = grad_output.to(inside), value.to(inside), -delta.to(inside)
        if sizes:
            left, grad, values, minus = left.abs(), grad.abs(), values.abs(), minus.abs()
        grad_scores = probabilities * (grad @ values.T + minus[:, None])
        return scale * (rounded(grad_scores).T @ left), rounded(probabilities).T @ grad

    given = (query, key, value, grad_output, logsumexp, delta)
    result = student.key_value_gradients(*given, scale, causal)
    assert isinstance(result, tuple | list) and len(result) == 2, "Two tensors must be returned."
    exact, careful = gradients(torch.float64), gradients(torch.float32)
    units = 4 * EPSILON * (1 + scores.abs().max())
    for name, came, right, close, size in zip(
        ("grad_key", "grad_value"),
        result,
        exact,
        careful,
        gradients(torch.float64, sizes=True),
        strict=True,
    ):
        allowed = 2 * (close.to(dtype) - right).abs().max() + units * size.max()
        compare(came, right, allowed, dtype=dtype, name=name)
