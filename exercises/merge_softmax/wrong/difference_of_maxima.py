# loses: test_two_empty_parts
"""One exponential serves both parts, and is NaN when both are empty."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    rescale = torch.exp(-torch.abs(max_a - max_b))
    a_is_larger = (max_a >= max_b).float()
    larger = a_is_larger * sum_a + (1 - a_is_larger) * sum_b
    smaller = sum_a + sum_b - larger
    return merged_max, larger + rescale * smaller
