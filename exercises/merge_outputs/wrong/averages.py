# loses: test_unequal_parts, test_one_empty_part, test_associative
"""Both outputs have the same weight."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    return (output_a + output_b) / 2, torch.logaddexp(logsumexp_a, logsumexp_b)
