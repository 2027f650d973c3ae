"""The public tests of `double`."""

import pytest
import torch


def call(student, values):
    result = student.double(values)
    assert isinstance(result, torch.Tensor), f"A tensor is wanted, not a {type(result).__name__}."
    assert result.shape == values.shape, "The shape is wrong."
    assert result.device == values.device, "The device is wrong."
    return result


@pytest.mark.points(2, title="small numbers")
@pytest.mark.parametrize("count", [2, 5])
def test_values(student, count):
    values = torch.arange(float(count))
    result = call(student, values)
    assert torch.equal(result, 2 * values), "Each number must be twice what it was."


def test_inputs_unchanged(student):
    values = torch.ones(3)
    result = call(student, values)
    assert torch.equal(values, torch.ones(3)), "The function changed its argument."
    assert torch.equal(result, 2 * values), "Each number must be twice what it was."
