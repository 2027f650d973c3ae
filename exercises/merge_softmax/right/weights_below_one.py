"""Only the part with the smaller maximum is rescaled, chosen by comparison."""

import torch


def merge(max_a, sum_a, max_b, sum_b):
    a_is_larger = max_a >= max_b
    larger = torch.where(a_is_larger, max_a, max_b)
    smaller = torch.where(a_is_larger, max_b, max_a)
    kept = torch.where(a_is_larger, sum_a, sum_b)
    rescaled = torch.where(a_is_larger, sum_b, sum_a)
    factor = torch.where(smaller == -torch.inf, 0.0, torch.exp(smaller - larger))
    return larger, kept + factor * rescaled
