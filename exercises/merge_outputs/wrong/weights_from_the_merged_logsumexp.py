# loses: test_rounded_logsumexp
"""Weights are taken from the merged logsumexp, after it was rounded."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    logsumexp = torch.logaddexp(logsumexp_a, logsumexp_b)
    shift = torch.where(logsumexp == -torch.inf, 0.0, logsumexp)
    weight_a, weight_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    return weight_a[..., None] * output_a + weight_b[..., None] * output_b, logsumexp
