"""The two parts become one more dimension, over which PyTorch takes the softmax."""

import torch


def merge_outputs(output_a, logsumexp_a, output_b, logsumexp_b):
    logsumexps = torch.stack((logsumexp_a, logsumexp_b), dim=-1)
    outputs = torch.stack((output_a, output_b), dim=-1)
    weights = logsumexps.softmax(-1).nan_to_num(nan=0.0)
    output = (outputs @ weights[..., None])[..., 0]
    return [output, logsumexps.logsumexp(-1)]
