"""Twice the number: the file to write your solution in."""

import torch


def double(values: torch.Tensor) -> torch.Tensor:
    """Twice the values, in a tensor of its own."""
    raise NotImplementedError("double is not written yet")
