"""What a comparison says: what is wrong, in the order one would look, and why it may be so."""

import pytest
import torch

from grading.feedback import compare
from grading.inside.plain import opaque

RIGHT = torch.arange(1.0, 13.0).reshape(3, 4)
SQUARE = torch.arange(1.0, 10.0).reshape(3, 3)


def said(got, expected=RIGHT, allowed=1e-3, **options) -> str:
    with pytest.raises(AssertionError) as error:
        compare(got, expected, allowed, **options)
    return str(error.value)


def changed(*places: tuple, to: float) -> torch.Tensor:
    made = RIGHT.clone()
    for place in places:
        made[place] = to
    return made


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (None, "The result must be a tensor, and is None (NoneType)."),
        (opaque("ndarray"), "The result must be a tensor, and is a ndarray."),
        (RIGHT.half(), "The result must be torch.float32, and is torch.float16."),
        (RIGHT.double().T, "The result must be torch.float32, and is torch.float64."),
        (RIGHT.T, "The result must have the shape (3, 4), and has (4, 3)."),
        (RIGHT.to("meta"), "The result must be on cpu, and is on meta."),
    ],
    ids=["none", "opaque", "dtype", "dtype before shape", "shape", "device"],
)
def test_kind_dtype_shape_and_device_come_first(got, message):
    assert said(got) == message


def test_nan_comes_before_numbers():
    message = said(changed((0, 0), to=99.0).masked_fill(RIGHT == 7, torch.nan))
    assert message.startswith("The result[1, 2] is NaN and must be 7; 8% of the numbers are NaN.")
    assert "never written" in message
    assert said(changed((2, 0), to=torch.inf)).startswith(
        "The result[2, 0] is infinite and must be 9;"
    )


def test_the_worst_number_is_told_with_its_place():
    got = changed((0, 1), to=2.5)
    got[2, 3] = 20.0
    assert said(got, hint="Look there.") == (
        "The result[2, 3] is 20 and must be 12 (off by 8.0e+00, allowed 1.0e-03); 17% of the numbers are "
        "wrong. Look there."
    )


@pytest.mark.parametrize(
    ("got", "expected", "reason"),
    [
        (changed((1, 0), (1, 2), to=0.0), RIGHT, "All wrong numbers are 0"),
        (SQUARE.T.contiguous(), SQUARE, "It is the transpose"),
        (RIGHT * 4, RIGHT, "All wrong numbers are 4 times too large"),
        (changed((slice(None), slice(2, 4)), to=-3.0), RIGHT, "Only numbers from index 2 on"),
    ],
    ids=["zeros", "transpose", "factor", "end"],
)
def test_a_pattern_suggests_a_reason(got, expected, reason):
    assert reason in said(got, expected)


def test_what_is_allowed_passes():
    compare(RIGHT + 1e-4, RIGHT, 1e-3)
    compare(RIGHT.half(), RIGHT.double(), 0.0, dtype=torch.float16)
    compare(torch.empty(0, 3), torch.empty(0, 3), 0.0)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf])
    compare(special.clone(), special, 0.0)
    assert "must be -inf" in said(torch.tensor([1.0]), torch.tensor([-torch.inf]))
