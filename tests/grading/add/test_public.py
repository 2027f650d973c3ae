"""The public tests of `add`."""

import torch


def assert_right(student, length):
    left, right = torch.arange(float(length)), torch.ones(length)
    result = student.add(left, right)
    assert torch.equal(result, left + right), "The sum is wrong."


def test_sums(student):
    assert_right(student, 128)


def test_any_length(student):
    assert_right(student, 100)
