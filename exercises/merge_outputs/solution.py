"""Attention over two parts of the keys becomes attention over all of them."""

import torch


def merge_outputs(
    output_a: torch.Tensor,
    logsumexp_a: torch.Tensor,
    output_b: torch.Tensor,
    logsumexp_b: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the outputs of attention over two parts of the keys.

    Args:
        output_a, output_b: (..., d), each part's softmax(scores) @ values; zeros for an empty part.
        logsumexp_a, logsumexp_b: (...), the log of each part's sum of exp(score); -inf for an empty part.

    Returns:
        The output and the logsumexp of both parts together.
    """
    ### BEGIN SOLUTION
    ### find each part's share of the sum of exponentials (which may be too large to compute),
    ### average the outputs with these weights, and return the log of the sum as well.
    largest = torch.maximum(logsumexp_a, logsumexp_b)
    # Two empty parts have -inf, and -inf - -inf is NaN: subtract 0 there.
    shift = largest.masked_fill(largest == -torch.inf, 0.0)
    sum_a, sum_b = torch.exp(logsumexp_a - shift), torch.exp(logsumexp_b - shift)
    total = sum_a + sum_b
    divisor = total.masked_fill(total == 0.0, 1.0)
    weight_a, weight_b = sum_a / divisor, sum_b / divisor
    output = weight_a[..., None] * output_a + weight_b[..., None] * output_b
    return output, shift + torch.log(total)
    ### END SOLUTION
