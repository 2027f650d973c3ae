# loses: test_two_parts, test_distant_maxima
"""The sums are added as if they had the same maximum."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    return torch.maximum(max_a, max_b), sum_a + sum_b
