"""The oracle with the options of FlashAttention-2, and the error that its gradients are allowed.

:mod:`kernels.reference` has the definition without options. Here attention is written once more, in any
precision, with a window, a soft cap and dropout; its gradients are PyTorch's. Shapes as there.
"""

import math
from dataclasses import dataclass

import torch

from kernels.reference import Errors, errors


@dataclass(frozen=True)
class Options:
    """What :func:`kernels.flash2.attention` takes; ``kept`` is the dropout mask itself.

    Attributes:
        kept: boolean, ``(batch, heads, seq_query, seq_key)``, or None without dropout.
    """

    causal: bool = False
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    kept: torch.Tensor | None = None


def visible(seq_query: int, seq_key: int, options: Options, device=None) -> torch.Tensor:
    """Which keys a query sees: boolean, ``(seq_query, seq_key)``."""
    rows = torch.arange(seq_query, device=device)[:, None]
    later = torch.arange(seq_key, device=device)[None, :] - (rows + seq_key - seq_query)
    seen = torch.ones_like(later, dtype=torch.bool)
    if options.causal:
        seen &= later <= 0
    if options.window is not None:
        seen &= later.abs() <= options.window
    return seen


def attention(query, key, value, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and logsumexp in float64, differentiable; a query that sees no key gets 0 and -inf."""
    scores, _ = _scores(query.double(), key.double(), options)
    probabilities, logsumexp = _softmax(scores)
    return _dropped(probabilities, options) @ _repeated(value.double(), query), logsumexp


def gradients(
    query, key, value, grad_output, options: Options, grad_logsumexp=None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``sum(grad_output * output) + sum(grad_logsumexp * logsumexp)``, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (query, key, value)]
    output, logsumexp = attention(*leaves, options)
    objective = (output * grad_output.double()).sum()
    if grad_logsumexp is not None:
        seen = logsumexp > -math.inf
        objective = objective + (logsumexp * grad_logsumexp.double())[seen].sum()
    return torch.autograd.grad(objective, leaves)


def error_budget(query, key, value, options: Options) -> tuple[Errors, Errors]:
    """The error that output and logsumexp may have, as :func:`kernels.reference.error_budget` counts it."""
    expected, expected_logsumexp = attention(query, key, value, options)
    scores, _ = _scores(query.float(), key.float(), options)
    probabilities, logsumexp = _softmax(scores)
    weights = _dropped(probabilities.to(query.dtype).float(), options)
    careful = (weights @ _repeated(value.float(), query)).to(query.dtype)
    largest = _largest(value) / (1 - options.dropout)
    return (
        _doubled(errors(careful, expected), largest),
        _doubled(errors(logsumexp, expected_logsumexp), _largest_score(query, key, options)),
    )


def gradient_budget(
    query, key, value, grad_output, options: Options, grad_logsumexp=None
) -> list[Errors]:
    """The error that the gradients of query, key and value may have.

    Twice that of PyTorch following Algorithm 2 of FlashAttention-2: float32 scores, P made again from the
    float32 logsumexp, and only what enters a product rounded to the inputs' dtype: P, dS and the output
    in delta; and four units in the last place of float32 at the largest sum of magnitudes, for sums taken
    in another order.
    """
    expected = gradients(query, key, value, grad_output, options, grad_logsumexp)
    dtype, grad_output = query.dtype, grad_output.float()
    wide = [x.float() for x in (query, key, value)]
    scores, slope = _scores(*wide[:2], options)
    _, logsumexp = _softmax(scores)
    shift = torch.where(logsumexp == -math.inf, math.inf, logsumexp)
    probabilities = (scores - shift[..., None]).exp()
    key_wide, value_wide = (_repeated(x, query) for x in wide[1:])
    weights = _dropped(probabilities.to(dtype).float(), options)
    grad_probabilities = _dropped(grad_output @ value_wide.mT, options)
    factor = _scale(query, options)
    kv_heads = key.shape[1]
    # Sums of magnitudes bound what rounding in another order can do. A score that is off by some part of
    # its own sum of magnitudes puts P off by as much, relative to P.
    sizes = probabilities * (1 + factor * wide[0].abs() @ key_wide.abs().mT)
    grad_probability_sizes = _dropped(grad_output.abs() @ value_wide.abs().mT, options)

    budgets = [Errors(0.0, 0.0)] * 3
    for output in _careful_outputs(probabilities, value_wide, dtype, options):
        delta = (grad_output * output).sum(-1)
        if grad_logsumexp is not None:
            delta = delta - grad_logsumexp
        grad_scores = probabilities * (grad_probabilities - delta[..., None]) * slope
        rounded = grad_scores.to(dtype).float()
        careful = (
            factor * rounded @ key_wide,
            _summed(factor * rounded.mT @ wide[0], kv_heads),
            _summed(weights.mT @ grad_output, kv_heads),
        )
        delta_sizes = (grad_output * output).abs().sum(-1, keepdim=True)
        score_sizes = sizes * (grad_probability_sizes + delta_sizes)
        magnitudes = (
            factor * score_sizes @ key_wide.abs(),
            _summed(factor * score_sizes.mT @ wide[0].abs(), kv_heads),
            _summed(_dropped(sizes, options).mT @ grad_output.abs(), kv_heads),
        )
        found = (
            _doubled(_at_least_one_rounding(errors(c.to(dtype), e), e, dtype), _largest(m))
            for c, e, m in zip(careful, expected, magnitudes, strict=True)
        )
        budgets = [_larger(*pair) for pair in zip(budgets, found, strict=True)]
    return budgets


def _careful_outputs(probabilities, value, dtype, options: Options):
    """The output with P rounded after it was normalised, and before: both are usual.

    A gradient depends on the output's rounding through delta. Where few rows see few keys, one of the
    two may be right by luck.
    """
    largest = probabilities.amax(-1, keepdim=True) if probabilities.shape[-1] else 1.0
    divisor = torch.where(largest == 0, 1.0, largest) if probabilities.shape[-1] else 1.0
    for unit in (1.0, divisor):
        weights = _dropped((probabilities / unit).to(dtype).float(), options)
        yield (unit * (weights @ value)).to(dtype).float()


def _at_least_one_rounding(error: Errors, expected, dtype) -> Errors:
    """Not less than half a unit in the last place of the largest element: a tie may fall either way."""
    return Errors(
        max(error.maximum, torch.finfo(dtype).eps / 2 * _largest(expected)), error.root_mean_square
    )


def _largest(tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _larger(one: Errors, other: Errors) -> Errors:
    return Errors(
        max(one.maximum, other.maximum), max(one.root_mean_square, other.root_mean_square)
    )


def _doubled(error: Errors, magnitude: float) -> Errors:
    few_ulps = 4 * torch.finfo(torch.float32).eps * magnitude
    return Errors(2 * error.maximum + few_ulps, 2 * error.root_mean_square + few_ulps)


def _largest_score(query, key, options: Options) -> float:
    magnitudes = _scale(query, options) * (
        query.abs().double() @ _repeated(key.abs().double(), query).mT
    )
    # tanh is computed to a few units in the last place of 1, so a capped score to some of the cap.
    return _largest(magnitudes) + (options.softcap or 0.0)


def _scores(query, key, options: Options) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Scaled and capped scores, minus infinity where hidden, and the slope of the cap."""
    scores = _scale(query, options) * (query @ _repeated(key, query).mT)
    slope = 1.0
    if options.softcap is not None:
        bent = (scores / options.softcap).tanh()
        scores, slope = options.softcap * bent, 1 - bent.square()
    seen = visible(*scores.shape[-2:], options, scores.device)
    return scores.masked_fill(~seen, -math.inf), slope


def _softmax(scores) -> tuple[torch.Tensor, torch.Tensor]:
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -math.inf)
    row_max = scores.detach().amax(-1, keepdim=True)
    exponentials = (
        scores - row_max.clamp(min=-1e300 if scores.dtype == torch.float64 else -3e38)
    ).exp()
    row_sum = exponentials.sum(-1, keepdim=True)
    probabilities = exponentials / torch.where(row_sum == 0, 1.0, row_sum)
    logsumexp = torch.where(
        row_sum == 0, -math.inf, torch.where(row_sum == 0, 1.0, row_sum).log() + row_max
    )
    return probabilities, logsumexp.squeeze(-1)


def _dropped(weights, options: Options):
    if options.kept is None:
        return weights
    return weights * options.kept / (1 - options.dropout)


def _scale(query, options: Options) -> float:
    return query.shape[-1] ** -0.5 if options.scale is None else options.scale


def _repeated(tensor, query):
    return tensor.repeat_interleave(query.shape[1] // max(1, tensor.shape[1]), dim=1)


def _summed(gradient, kv_heads: int):
    batch, heads, seq, head_dim = gradient.shape
    return gradient.view(batch, kv_heads, heads // max(1, kv_heads), seq, head_dim).sum(2)
