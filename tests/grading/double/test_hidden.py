"""The hidden tests of `double`."""

import pytest
import torch


@pytest.mark.points(3, visibility="hidden", title="any numbers")
def test_any_numbers(student, seed, compare):
    values = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
    compare(student.double(values), 2 * values, 0.0)
