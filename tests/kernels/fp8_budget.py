"""The error that FP8 attention may have: what follows from e4m3's 3 bits of mantissa, element by element.

Rounding x to e4m3 moves it by at most half a step. A step is 2⁻³ of the power of two below x, so the error
is spread over less than |x| / 8, with a standard deviation of at most |x| / 8 / √12; for numbers below 2⁻⁶
the step is 2⁻⁹, times the scale. To first order, and with independent roundings, the variances add up::

    score     s = q k               var s = Σ_d (k_d² var q_d + q_d² var k_d)
    weight    p = exp(s - lse)      rounded again: p² / 768, and at least one step of 2⁻⁹ / 2⁸
    output    o = Σ p v             var o = Σ_j (v_j² var p_j + p_j² var v_j + p_j² (v_j - o)² var s_j)

The last term has v_j - o, because a score's error moves the sum of the weights too; a weight's own rounding
does not, since they are summed before it. The error of the logsumexp is the mean of the scores' errors. All
scores of a row have those of its query in them, so there these are taken together.
"""

import math

import torch

from kernels import reference
from kernels.fp8_reference import rotate
from kernels.hadamard import random_signs
from kernels.quantization_reference import quantize

STANDARD_DEVIATIONS = 6
"""No sum of independent bounded errors goes further in these tests: a normal one does once in 5e8."""
NORMAL_STEP = 2.0**-3
LEAST_STEP = 2.0**-9


def error_budget(
    query, key, value, *, causal=False, scale=None, seed=0, query_block=64, key_block=128
):
    """Standard deviations to expect of each element of the output, and of the logsumexp; float64.

    They have in them what rounding the output to the inputs' dtype adds.
    """
    dtype, group = query.dtype, query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    _, logsumexp = reference.attention(
        query, key, value, causal=causal, scale=scale, return_logsumexp=True
    )
    output = reference.attention(query, key, value, causal=causal, scale=scale)
    if seed is not None:
        signs = random_signs(query.shape[-1], seed)
        query, key = rotate(query, signs), rotate(key, signs)
    blocks = query_block, key_block, key_block
    (query, query_variance), (key, key_variance), (value, value_variance) = (
        (x.double(), _variance(x, block))
        for x, block in zip((query, key, value), blocks, strict=True)
    )
    key, key_variance, value, value_variance = (
        x.repeat_interleave(group, 1) for x in (key, key_variance, value, value_variance)
    )
    scores = scale * query @ key.mT
    if causal:
        hidden = torch.ones_like(scores).triu(1 + key.shape[2] - query.shape[2]).bool()
        scores = scores.masked_fill(hidden, -math.inf)
    score_variance = scale**2 * (
        query_variance @ key.square().mT + query.square() @ key_variance.mT
    )
    sees = logsumexp[..., None] > -math.inf
    weights = torch.where(sees, (scores - logsumexp[..., None]).exp(), 0.0)
    # In units of a row's weights: the largest is 2⁸ before it is rounded.
    step = LEAST_STEP / 2**8 * weights.amax(-1, keepdim=True)
    weight_variance = torch.maximum(NORMAL_STEP * weights, step).square() / 12
    moved = weights.square() * score_variance
    variance = (
        weight_variance @ value.square()
        + weights.square() @ value_variance
        + moved @ value.square()
        - 2 * output * (moved @ value)
        + output.square() * moved.sum(-1, keepdim=True)
    )
    mean_key = weights @ key
    logsumexp_variance = scale**2 * (
        (query_variance * mean_key.square()).sum(-1)
        + (weights.square() * (query.square() @ key_variance.mT)).sum(-1)
    )
    of_the_output = torch.finfo(dtype).eps / 2 * output.abs()
    return variance.clamp(min=0).sqrt() + of_the_output, logsumexp_variance.sqrt()


def _variance(tensor: torch.Tensor, block: int) -> torch.Tensor:
    """Of what rounding adds to each element."""
    scale = quantize(tensor, "block", block).scale.double()
    scale = scale.repeat_interleave(block, 2)[:, :, : tensor.shape[2], None]
    return torch.maximum(NORMAL_STEP * tensor.double().abs(), LEAST_STEP * scale).square() / 12
