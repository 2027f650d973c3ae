# loses: test_two_empty_parts
"""A finite number stands in for minus infinity, and comes back as a maximum."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    lowest = torch.finfo(torch.float32).min
    max_a, max_b = max_a.clamp(min=lowest), max_b.clamp(min=lowest)
    merged_max = torch.maximum(max_a, max_b)
    return merged_max, sum_a * torch.exp(max_a - merged_max) + sum_b * torch.exp(max_b - merged_max)
