# loses: test_large_logsumexp, test_rounded_logsumexp
"""The larger logsumexp is not subtracted before the exponential."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    sum_a, sum_b = torch.exp(logsumexp_a), torch.exp(logsumexp_b)
    total = sum_a + sum_b
    divisor = torch.where(total == 0, 1.0, total)
    output = (sum_a / divisor)[..., None] * output_a + (sum_b / divisor)[..., None] * output_b
    return output, torch.log(total)
