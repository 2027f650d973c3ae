# loses: test_large_logsumexp, test_one_empty_part, test_two_empty_parts, test_commutative, test_associative
"""The first logsumexp is subtracted, whichever is larger."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    ratio = torch.exp(logsumexp_b - logsumexp_a)
    output = (output_a + ratio[..., None] * output_b) / (1 + ratio)[..., None]
    return output, logsumexp_a + torch.log(1 + ratio)
