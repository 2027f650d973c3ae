# loses: test_distant_maxima, test_commutative, test_associative
"""The second part is taken to be the one with the smaller maximum."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    shift = torch.where(merged_max == -torch.inf, 0.0, merged_max)
    return merged_max, sum_a + sum_b * torch.exp(max_b - shift)
