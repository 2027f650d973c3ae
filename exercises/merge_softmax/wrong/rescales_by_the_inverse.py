# loses: test_two_parts, test_distant_maxima
"""Sums are multiplied by exp(merged maximum - own maximum)."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    rescale_a = torch.where(sum_a == 0, 0.0, torch.exp(merged_max - max_a))
    rescale_b = torch.where(sum_b == 0, 0.0, torch.exp(merged_max - max_b))
    return merged_max, sum_a * rescale_a + sum_b * rescale_b
