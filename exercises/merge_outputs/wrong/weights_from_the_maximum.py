# loses: test_equal_outputs, test_unequal_parts, test_large_logsumexp, test_rounded_logsumexp, test_associative
"""Weights are relative to the larger logsumexp, and do not sum to 1."""

# ruff: noqa: E501

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    shift = torch.where(largest == -torch.inf, 0.0, largest)
    sum_a, sum_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    output = sum_a[..., None] * output_a + sum_b[..., None] * output_b
    return output, shift + torch.log(sum_a + sum_b)
