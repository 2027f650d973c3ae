"""The test of `merge_outputs` that a learner does not see: random parts, new in every grading."""

import math

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="merging many random parts")
def test_many_parts(student, seed, compare):
    generator = torch.Generator().manual_seed(seed)
    parts, rows, d = 6, 40, torch.randint(1, 9, (), generator=generator).item()
    scores = 30 * torch.randn(parts, rows, 16, generator=generator, dtype=torch.float64)
    scores[torch.rand(parts, rows, generator=generator) < 0.3] = -math.inf
    logsumexps = scores.logsumexp(2).float()
    outputs = torch.randn(parts, rows, d, generator=generator)
    outputs = outputs.masked_fill((logsumexps == -math.inf)[..., None], 0.0)
    outputs, logsumexps = outputs.to(kernels.device()), logsumexps.to(kernels.device())
    merged = (outputs[0], logsumexps[0])
    for part in range(1, parts):
        result = student.merge_outputs(*merged, outputs[part].clone(), logsumexps[part].clone())
        assert isinstance(result, tuple | list) and len(result) == 2, (
            "Two tensors must be returned."
        )
        merged = tuple(result)
    weights = logsumexps.double().softmax(0).nan_to_num()
    exact = logsumexps.double().logsumexp(0)
    # As in the public tests for each merge, and a unit of its own last place for each logsumexp that
    # became a weight of the next.
    largest = logsumexps.double().masked_fill(logsumexps == -math.inf, 0.0).abs().amax(0)
    rounding = (parts - 1) * torch.finfo(torch.float32).eps
    compare(merged[1], exact, rounding * (8 + largest), dtype=torch.float32, name="The logsumexp")
    allowed = (rounding * (8 + 2 * largest))[..., None] * outputs.abs().amax(0)
    exact = (weights[..., None] * outputs.double()).sum(0)
    compare(merged[0], exact, allowed, dtype=torch.float32, name="The output")
