"""FlashAttention-2: attention that trains, on any NVIDIA GPU from Ampere on.

The public face of :mod:`kernels.flash2_forward` and :mod:`kernels.flash2_backward`: checks, and the
registration with PyTorch. Both launchers are custom operators. So ``torch.autograd`` knows the gradient,
``torch.compile`` takes a call as one node of its graph without looking inside, and a CUDA graph can hold
it.

Source: Dao, *FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning* (2023).
"""

import math
from collections.abc import Iterator
from numbers import Real

import torch
import triton

from kernels import flash2_backward, flash2_forward
from kernels.checks import check_attention_inputs
from kernels.configurations import Configuration

Tensor = torch.Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    return_logsumexp: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention, differentiable in query, key and value.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16, bfloat16 or float32; any strides. Under
            ``torch.autocast`` all three are cast to its dtype.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is 16 to 256; the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        window: hide keys more than so many positions before a query or, without ``causal``, after it.
        softcap: bound the scaled scores s smoothly by ``softcap * tanh(s / softcap)``.
        dropout: the probability of dropping a weight; the others are divided by ``1 - dropout``.
        seed: for dropout: one int64 number, on query's device; ``None`` draws one from PyTorch's
            generator. The same seed drops the same weights.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32, differentiable too; dropout
        does not change it. A query that sees no key gets zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or for an option out
            of its range; before any launch.
    """
    query, key, value = _autocast(query, key, value)
    scale = check_attention_inputs(query, key, value, scale)
    _check_options(window, softcap, dropout)
    before, after = _reach(query, key, causal, window)
    if dropout == 0.0:
        seed = None
    elif seed is None:
        seed = torch.randint(2**62, (), device=query.device)
    else:
        _check_seed(seed, query)
    output, logsumexp = _forward(
        query, key, value, seed, scale, before, after, float(softcap or 0.0), float(dropout)
    )
    return (output, logsumexp) if return_logsumexp else output


def split_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    splits: int | None = None,
    return_logsumexp: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with the keys divided between programs too, for few queries and many keys; forward only.

    Args:
        splits: into how many runs of keys, at least 1; ``None`` means as many as fill the GPU.

    The other arguments, returns, raises: as :func:`attention`.
    """
    scale = check_attention_inputs(query, key, value, scale)
    if splits is None:
        splits = _splits_to_fill(query, key)
    elif isinstance(splits, bool) or not isinstance(splits, int) or splits < 1:
        raise ValueError(f"splits must be an integer of at least 1, got {splits!r}")
    before, after = _reach(query, key, causal, None)
    with torch.no_grad():
        output, logsumexp = flash2_forward.forward(
            query, key, value, None, scale, before, after, 0.0, 0.0, splits
        )
    return (output, logsumexp) if return_logsumexp else output


@torch.library.custom_op("attention_book::flash2_forward", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor | None,
    scale: float,
    before: int,
    after: int,
    softcap: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    return flash2_forward.forward(query, key, value, seed, scale, before, after, softcap, dropout)


@_forward.register_fake
def _(query, key, value, seed, scale, before, after, softcap, dropout):
    return query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("attention_book::flash2_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    seed: Tensor | None,
    scale: float,
    before: int,
    after: int,
    softcap: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return flash2_backward.backward(
        grad_output,
        grad_logsumexp.contiguous(),
        query,
        key,
        value,
        output,
        logsumexp,
        seed,
        scale,
        before,
        after,
        softcap,
        dropout,
    )


@_backward.register_fake
def _(grad_output, grad_logsumexp, query, key, value, *others):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save_for_backward(ctx, inputs, output) -> None:
    query, key, value, seed, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, seed)


def _gradients(ctx, grad_output, grad_logsumexp):
    gradients = _backward(grad_output, grad_logsumexp, *ctx.saved_tensors, *ctx.options)
    return *gradients, *[None] * (1 + len(ctx.options))


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _autocast(*tensors):
    """As a product of matrices does under ``torch.autocast``: in its dtype."""
    if not all(isinstance(x, Tensor) for x in tensors):
        return tensors  # the check that follows names it
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _reach(query: Tensor, key: Tensor, causal: bool, window: int | None) -> tuple[int, int]:
    """How many keys before and after its own position a query sees."""
    everything = query.shape[2] + key.shape[2]
    window = everything if window is None else min(window, everything)
    return window, 0 if causal else window


def _splits_to_fill(query: Tensor, key: Tensor) -> int:
    """So many splits that programs fill all SMs at once, of at least 256 keys each.

    Two programs fit on an SM up to head dimension 64, one above.
    """
    batch, heads, seq_query, head_dim = query.shape
    programs = max(1, batch * heads * triton.cdiv(seq_query, 128))
    sms = 2
    if query.is_cuda:
        sms = torch.cuda.get_device_properties(query.device).multi_processor_count
    places = sms * (2 if head_dim <= 64 else 1)
    return max(1, min(places // programs, key.shape[2] // 256))


def _check_options(window, softcap, dropout) -> None:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise TypeError(f"window must be an integer or None, got {type(window).__name__}")
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    if softcap is not None:
        _check_real("softcap", softcap)
        if not (math.isfinite(softcap) and softcap > 0):
            raise ValueError(f"softcap must be finite and greater than 0, or None, got {softcap}")
    _check_real("dropout", dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")


def _check_real(name: str, number) -> None:
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}")


def _check_seed(seed, query: Tensor) -> None:
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        came = tuple(seed.shape) if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(
            f"seed must be a tensor with one int64 number, got {getattr(seed, 'dtype', '')} {came}"
        )
    if seed.device != query.device:
        raise ValueError(f"seed is on {seed.device}, but query is on {query.device}")


def configurations() -> Iterator[Configuration]:
    """Every form the launchers use at head dimensions 64, 128 and 256, forward and backward."""
    yield from flash2_forward.configurations()
    yield from flash2_backward.configurations()
