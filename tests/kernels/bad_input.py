"""Arguments that every attention function must refuse, and ones that it must take."""

import pytest
import torch

import kernels


def _tensor(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=kernels.device())


GOOD_ATTENTION_INPUTS = {
    "query": _tensor(2, 4, 3, 16),
    "key": _tensor(2, 2, 5, 16),
    "value": _tensor(2, 2, 5, 16),
}
_BAD = [
    ("query is a list", {"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
    ("rank 3", {"key": _tensor(2, 5, 16)}, ValueError, "key must have 4 dimensions"),
    (
        "float64",
        {"query": _tensor(2, 4, 3, 16, dtype=torch.float64)},
        TypeError,
        "float64; accepted",
    ),
    (
        "mixed dtypes",
        {"value": _tensor(2, 2, 5, 16, dtype=torch.float16)},
        TypeError,
        "value has dtype torch.float16, but query has torch.float32",
    ),
    (
        "mixed devices",
        {"key": GOOD_ATTENTION_INPUTS["key"].to("meta")},
        ValueError,
        "key is on meta, but query",
    ),
    ("batch", {"key": _tensor(3, 2, 5, 16)}, ValueError, "key has shape"),
    ("head_dim differs", {"key": _tensor(2, 2, 5, 32)}, ValueError, "key has shape"),
    ("value length", {"value": _tensor(2, 2, 6, 16)}, ValueError, "value has shape"),
    (
        "head count",
        {"key": _tensor(2, 3, 5, 16), "value": _tensor(2, 3, 5, 16)},
        ValueError,
        "4 heads, which is not a multiple of key's 3",
    ),
    (
        "head_dim 8",
        {name: _tensor(2, 2, 5, 8) for name in GOOD_ATTENTION_INPUTS},
        ValueError,
        "head_dim 8; accepted: 16 to 256",
    ),
    ("scale NaN", {"scale": float("nan")}, ValueError, "scale must be finite"),
    ("scale 0", {"scale": 0.0}, ValueError, "scale must be finite and greater than 0, got 0.0"),
    ("scale infinite", {"scale": float("inf")}, ValueError, "scale must be finite"),
    ("scale text", {"scale": "1"}, TypeError, "scale must be a number or None, got str"),
]

BAD_ATTENTION_INPUTS = [pytest.param(*case, id=name) for name, *case in _BAD]
