"""Sums: the file to write your solution in."""

import torch


def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum of two float32 vectors."""
    raise NotImplementedError("add is not written yet")
