# loses: test_distant_maxima
"""The maxima are not subtracted before the exponential."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    unshifted = sum_a * torch.exp(max_a) + sum_b * torch.exp(max_b)
    return merged_max, torch.where(unshifted == 0, 0.0, unshifted / torch.exp(merged_max))
