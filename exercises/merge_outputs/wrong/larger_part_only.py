# loses: test_unequal_parts, test_associative
"""The part with the larger logsumexp takes all."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    a_is_larger = (logsumexp_a >= logsumexp_b)[..., None]
    output = torch.where(a_is_larger, output_a, output_b)
    return output, torch.logaddexp(logsumexp_a, logsumexp_b)
