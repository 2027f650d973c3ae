# loses: test_one_empty_part, test_two_empty_parts
"""The logsumexp of an empty part counts as 0, and so as one key."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    logsumexp_a = logsumexp_a.nan_to_num(neginf=0.0)
    logsumexp_b = logsumexp_b.nan_to_num(neginf=0.0)
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    shift = torch.where(largest == -torch.inf, 0.0, largest)
    sum_a, sum_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    total = sum_a + sum_b
    divisor = torch.where(total == 0, 1.0, total)
    weight_a, weight_b = (sum_a / divisor)[..., None], (sum_b / divisor)[..., None]
    return weight_a * output_a + weight_b * output_b, shift + torch.log(total)
