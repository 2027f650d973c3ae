# loses: test_two_empty_parts
"""Minus infinity is subtracted from minus infinity."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    sum_a, sum_b = torch.exp(logsumexp_a - largest), torch.exp(logsumexp_b - largest)
    total = sum_a + sum_b
    output = (sum_a / total)[..., None] * output_a + (sum_b / total)[..., None] * output_b
    return output, largest + torch.log(total)
