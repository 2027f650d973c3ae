# loses: test_distant_maxima, test_one_empty_part, test_two_empty_parts, test_commutative, test_associative
"""The sum is made relative to the first maximum, and only then to the larger one."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    merged_max = torch.maximum(max_a, max_b)
    relative_to_a = sum_a + sum_b * torch.exp(max_b - max_a)
    return merged_max, relative_to_a * torch.exp(max_a - merged_max)
