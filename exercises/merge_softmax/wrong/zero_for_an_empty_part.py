# loses: test_one_empty_part, test_two_empty_parts
"""The maximum of an empty part counts as 0, which may be larger than the other."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    max_a, max_b = max_a.nan_to_num(neginf=0.0), max_b.nan_to_num(neginf=0.0)
    merged_max = torch.maximum(max_a, max_b)
    return merged_max, sum_a * torch.exp(max_a - merged_max) + sum_b * torch.exp(max_b - merged_max)
