"""With two parts, softmax of the weights is the sigmoid of a difference."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    both_empty = (logsumexp_a == -torch.inf) & (logsumexp_b == -torch.inf)
    difference = (logsumexp_a - logsumexp_b).masked_fill(both_empty, 0.0)
    weight_a, weight_b = torch.sigmoid(difference), torch.sigmoid(-difference)
    output = torch.einsum("...,...d->...d", weight_a, output_a)
    output = output + torch.einsum("...,...d->...d", weight_b, output_b)
    return output, torch.logaddexp(logsumexp_a, logsumexp_b)
