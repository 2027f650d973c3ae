"""The oracle: attention in float64, and the error that a kernel is allowed.

Every kernel of the book is compared with :func:`attention` here. How far it may be off is not a number
picked by hand: :func:`error_budget` measures the error of a careful PyTorch computation on the same
inputs, and a kernel may have twice that.

Shapes throughout: ``query`` is ``(batch, heads, seq_query, head_dim)``; ``key`` and ``value`` are
``(batch, kv_heads, seq_key, head_dim)``, where ``heads`` is a multiple of ``kv_heads`` (grouped-query
attention: query head ``h`` reads key head ``h // (heads // kv_heads)``).
"""

import math
from dataclasses import dataclass

import torch


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    return_logsumexp: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in float64, the definition written out.

    Args:
        causal: hide the keys after each query. When the lengths differ the mask is aligned at the bottom
            right, so that the last query sees every key, as FlashAttention does since version 2.1;
            PyTorch's ``scaled_dot_product_attention`` aligns it at the top left.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        mask: boolean, broadcastable to ``(batch, heads, seq_query, seq_key)``; True means visible.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in float64, and with ``return_logsumexp`` also the natural
        logarithm of each row's sum of exponentials, ``(batch, heads, seq_query)``. A query that sees no
        key gets a row of zeros and a logsumexp of minus infinity.

    Differentiable: the tests hand it to ``torch.autograd.gradcheck``.
    """
    scores, visible = _scores(query.double(), key.double(), causal, scale, mask)
    probabilities, logsumexp = _safe_softmax(scores, visible)
    output = probabilities @ _repeat_heads(value.double(), query.shape[1])
    return (output, logsumexp) if return_logsumexp else output


def attention_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_output: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``sum(grad_output * attention(query, key, value))``, written out, in float64.

    With S the scaled scores, P = softmax(S) and O = P V::

        dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - rowsum(dO ∘ O))
        dQ = scale · dS K               dK = scale · dSᵀ Q

    Query heads that share a key head add up their parts of ``dK`` and ``dV``.

    Returns:
        ``(grad_query, grad_key, grad_value)`` in float64, each shaped as its tensor.
    """
    query, key, value, grad_output = (x.double() for x in (query, key, value, grad_output))
    heads, kv_heads = query.shape[1], key.shape[1]
    factor = _scale(scale, query)
    scores, visible = _scores(query, key, causal, scale, mask)
    probabilities, _ = _safe_softmax(scores, visible)
    key, value = _repeat_heads(key, heads), _repeat_heads(value, heads)

    grad_value = probabilities.mT @ grad_output
    grad_probabilities = grad_output @ value.mT
    # rowsum(dO ∘ O) equals rowsum(dP ∘ P), and needs O only.
    delta = (grad_output * (probabilities @ value)).sum(-1, keepdim=True)
    grad_scores = probabilities * (grad_probabilities - delta)
    grad_query = factor * grad_scores @ key
    grad_key = factor * grad_scores.mT @ query
    return grad_query, _sum_heads(grad_key, kv_heads), _sum_heads(grad_value, kv_heads)


@dataclass(frozen=True)
class Errors:
    """Distance from the oracle: the largest and the root mean square over all elements."""

    maximum: float
    root_mean_square: float

    def within(self, budget: "Errors") -> bool:
        """Whether both stay inside the budget; NaN does not."""
        return self.maximum <= budget.maximum and self.root_mean_square <= budget.root_mean_square

    def __str__(self) -> str:
        return f"max {self.maximum:.3e}, rms {self.root_mean_square:.3e}"


def errors(result: torch.Tensor, expected: torch.Tensor) -> Errors:
    """Errors of a result against the oracle's; equal infinities count as no error."""
    difference = (result.double() - expected).abs()
    difference = torch.where(result.double() == expected, 0.0, difference)
    if difference.numel() == 0:
        return Errors(0.0, 0.0)
    return Errors(difference.max().item(), difference.square().mean().sqrt().item())


def error_budget(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    rounded_scores: bool = False,
) -> Errors:
    """The error a kernel may have on these inputs.

    Twice the error of PyTorch with float32 scores and softmax in which only the probabilities and the
    output are rounded to the inputs' dtype, plus four units in the last place of float32 at the largest
    value, for sums taken in another order. The largest error counts as at least one rounding of the largest
    element, half a unit in its last place: among few elements PyTorch's may all be rounded by less.

    Args:
        rounded_scores: also round the scores to the inputs' dtype, for a kernel that stores them so. Large
            scores lose much there, so a test that allows this must also pass inputs whose scores are
            exact in the dtype, under the strict budget.
    """
    expected = attention(query, key, value, causal=causal, scale=scale, mask=mask)
    careful, _ = careful_attention(
        query, key, value, causal=causal, scale=scale, mask=mask, rounded_scores=rounded_scores
    )
    error = errors(careful, expected)
    largest = expected.abs().max().item() if expected.numel() else 0.0
    one_rounding = torch.finfo(query.dtype).eps / 2 * largest
    at_least = Errors(max(error.maximum, one_rounding), error.root_mean_square)
    return _doubled(at_least, value)


def logsumexp_budget(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    rounded_scores: bool = False,
) -> Errors:
    """The same for the logsumexp: twice PyTorch's float32 error, and four units in the last place.

    These are of the largest score as a sum of magnitudes: a float32 product of a query and a key is no more
    exact than that, even where its terms cancel.
    """
    options = {"causal": causal, "scale": scale, "mask": mask}
    _, expected = attention(query, key, value, return_logsumexp=True, **options)
    _, careful = careful_attention(
        query, key, value, causal=causal, scale=scale, mask=mask, rounded_scores=rounded_scores
    )
    magnitudes, _ = _scores(query.abs().double(), key.abs().double(), False, scale, None)
    return _doubled(errors(careful, expected), magnitudes)


def careful_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    rounded_scores: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The yardstick of the budget: float32 inside, rounded to the inputs' dtype only where P is.

    Returns:
        The output in the inputs' dtype and the logsumexp in float32.
    """
    dtype = query.dtype
    scores, visible = _scores(query.float(), key.float(), causal, scale, mask)
    if rounded_scores:
        scores = scores.to(dtype).float()
    probabilities, logsumexp = _safe_softmax(scores, visible)
    values = _repeat_heads(value.float(), query.shape[1])
    return (probabilities.to(dtype).float() @ values).to(dtype), logsumexp


def _doubled(error: Errors, magnitudes: torch.Tensor) -> Errors:
    largest = magnitudes.abs().max().item() if magnitudes.numel() else 0.0
    few_ulps = 4 * torch.finfo(torch.float32).eps * largest
    return Errors(2 * error.maximum + few_ulps, 2 * error.root_mean_square + few_ulps)


def _scores(query, key, causal, scale, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled scores with minus infinity where hidden, and which are visible."""
    scores = _scale(scale, query) * (query @ _repeat_heads(key, query.shape[1]).mT)
    seq_query, seq_key = scores.shape[-2:]
    visible = torch.ones(seq_query, seq_key, dtype=torch.bool, device=query.device)
    if causal:
        visible = visible.tril(seq_key - seq_query)
    if mask is not None:
        visible = visible & mask
    return scores.masked_fill(~visible, -math.inf), visible


def _safe_softmax(scores, visible) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the last dimension and its logsumexp; a row with nothing visible becomes zeros."""
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -math.inf)
    row_max = scores.detach().amax(-1, keepdim=True)
    row_max = torch.where(row_max == -math.inf, 0.0, row_max)
    exponentials = torch.where(visible, (scores - row_max).exp(), 0.0)
    row_sum = exponentials.sum(-1, keepdim=True)
    probabilities = exponentials / torch.where(row_sum == 0, 1.0, row_sum)
    return probabilities, (row_sum.log() + row_max).squeeze(-1)


def _scale(scale: float | None, query: torch.Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _repeat_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, kv_heads, seq, head_dim) to (batch, heads, seq, head_dim), each head repeated in place."""
    kv_heads = tensor.shape[1]
    return tensor.repeat_interleave(heads // kv_heads, dim=1) if heads != kv_heads else tensor


def _sum_heads(gradient: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The reverse of :func:`_repeat_heads` for gradients."""
    batch, heads, seq, head_dim = gradient.shape
    return gradient.view(batch, kv_heads, heads // kv_heads, seq, head_dim).sum(2)
