"""The test of `merge_splits` that a learner does not see: random splits, new in every grading."""

import math

import pytest
import torch

import kernels


@pytest.mark.points(3, visibility="hidden", title="random splits, some of them empty")
def test_random_splits(student, seed, compare):
    generator = torch.Generator().manual_seed(seed)
    splits, rows, head_dim, step = (
        torch.randint(low, high, (), generator=generator).item()
        for low, high in ((1, 20), (1, 50), (1, 100), (1, 3))
    )
    outputs = torch.randn(splits, step * rows, head_dim, generator=generator)
    logsumexps = 20 * torch.randn(splits, step * rows, generator=generator)
    empty = torch.rand(splits, step * rows, generator=generator) < 0.4
    empty[:, 0] = True
    outputs = outputs.masked_fill(empty[..., None], 0.0).to(kernels.device())[:, ::step]
    logsumexps = logsumexps.masked_fill(empty, -math.inf).to(kernels.device())[:, ::step]
    result = student.merge_splits(outputs, logsumexps)
    assert isinstance(result, tuple | list) and len(result) == 2, "Two tensors must be returned."
    weights = logsumexps.double().softmax(0).nan_to_num()
    exact = logsumexps.double().logsumexp(0)
    # As in the public tests.
    rounding = 8 * splits * torch.finfo(torch.float32).eps
    allowed = (rounding * (1 + exact.abs())).nan_to_num(posinf=0.0)
    compare(result[1], exact, allowed, dtype=torch.float32, name="The logsumexp")
    exact = (weights[..., None] * outputs.double()).sum(0)
    allowed = rounding * outputs.double().abs().amax(0).amax(1, keepdim=True)
    compare(result[0], exact, allowed, dtype=torch.float32, name="The output")
