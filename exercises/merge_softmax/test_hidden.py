"""The test of `merge` that a learner does not see: random parts, new in every grading."""

import math

import pytest
import torch

import kernels


@pytest.mark.points(2, visibility="hidden", title="merging many random parts")
def test_many_parts(student, seed, compare):
    generator = torch.Generator().manual_seed(seed)
    parts, rows = 6, 40
    scores = 30 * torch.randn(parts, rows, 16, generator=generator, dtype=torch.float64)
    scores[torch.rand(parts, rows, generator=generator) < 0.3] = -math.inf
    maxima = scores.amax(2).float()
    shift = maxima.masked_fill(maxima == -math.inf, 0.0)
    sums = (scores - shift[..., None].double()).exp().sum(2).float()
    maxima, sums = maxima.to(kernels.device()), sums.to(kernels.device())
    merged = (maxima[0], sums[0])
    for part in range(1, parts):
        result = student.merge(*merged, maxima[part].clone(), sums[part].clone())
        assert isinstance(result, tuple | list) and len(result) == 2, (
            "Two tensors must be returned."
        )
        merged = tuple(result)
    whole = maxima.amax(0)
    shift = whole.masked_fill(whole == -math.inf, 0.0).double()
    exact = (sums.double() * (maxima.double() - shift).exp()).sum(0)
    compare(merged[0], whole, 0.0, name="The maximum")
    # Of one merge 8 units in the last place of float32, as in the public tests.
    allowed = (parts - 1) * 8 * torch.finfo(torch.float32).eps * exact
    compare(merged[1], exact, allowed, dtype=torch.float32, name="The sum")
