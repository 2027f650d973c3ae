# loses: test_unequal_parts, test_one_empty_part, test_associative
"""Each part has the other's weight."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    shift = torch.where(largest == -torch.inf, 0.0, largest)
    sum_a, sum_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    total = sum_a + sum_b
    divisor = torch.where(total == 0, 1.0, total)
    weight_a, weight_b = (sum_a / divisor)[..., None], (sum_b / divisor)[..., None]
    output = weight_b * output_a + weight_a * output_b
    return output, shift + torch.log(total)
