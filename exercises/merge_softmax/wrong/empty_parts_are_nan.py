# loses: test_two_empty_parts
"""Minus infinity is subtracted from minus infinity."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    return merged_max, sum_a * torch.exp(max_a - merged_max) + sum_b * torch.exp(max_b - merged_max)
