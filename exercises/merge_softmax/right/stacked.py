"""The parts become one more dimension, and exponentials are powers of two in float64."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    maxima, sums = torch.stack((max_a, max_b)), torch.stack((sum_a, sum_b))
    largest = maxima.max(dim=0).values
    differences = (maxima.double() - largest).nan_to_num(nan=0.0)
    merged = (sums * torch.exp2(differences / 0.6931471805599453)).sum(dim=0)
    return [largest, merged.float()]
