# loses: test_logsumexp, test_large_logsumexp, test_associative
"""The larger logsumexp is returned, as if it were a maximum."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    shift = torch.where(largest == -torch.inf, 0.0, largest)
    sum_a, sum_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    total = sum_a + sum_b
    divisor = torch.where(total == 0, 1.0, total)
    weight_a, weight_b = (sum_a / divisor)[..., None], (sum_b / divisor)[..., None]
    return weight_a * output_a + weight_b * output_b, largest
