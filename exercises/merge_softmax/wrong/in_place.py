# loses: test_inputs_unchanged
"""The sums are rescaled where they lie."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    shift = torch.where(merged_max == -torch.inf, 0.0, merged_max)
    sum_a *= torch.exp(max_a - shift)
    sum_b *= torch.exp(max_b - shift)
    return merged_max, sum_a + sum_b
