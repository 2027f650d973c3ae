"""The maximum and the sum of a row's two parts become those of the row."""

import torch


def merge(
    max_a: torch.Tensor, sum_a: torch.Tensor, max_b: torch.Tensor, sum_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the softmax statistics of two parts of a row, elementwise for many rows.

    Args:
        max_a, max_b: the largest score of each part; -inf for an empty part.
        sum_a, sum_b: the sum of exp(score - maximum) over the same part; 0 for an empty part.

    Returns:
        The maximum and the sum of both parts together.
    """
    ### BEGIN SOLUTION
    ### the maximum of the whole is the larger one; make both sums relative to it, and add them.
    merged_max = torch.maximum(max_a, max_b)
    # Two empty parts have maximum -inf, and -inf - -inf is NaN: subtract 0 there.
    shift = merged_max.masked_fill(merged_max == -torch.inf, 0.0)
    merged_sum = sum_a * torch.exp(max_a - shift) + sum_b * torch.exp(max_b - shift)
    return merged_max, merged_sum
    ### END SOLUTION
