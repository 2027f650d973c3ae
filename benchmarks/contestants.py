"""The attention functions that are compared: the book's kernels, and PyTorch's backends as peers.

All take ``(query, key, value, causal)`` in the layout ``(batch, heads, seq, head_dim)``.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import flash_attention_3

KERNELS = {
    "naive": "naive:attention",
    "flash1_printed": "flash1:printed_attention",
    "flash1": "flash1:attention",
    "flash2": "flash2:attention",
    "flash3": "flash3:attention",
    "fp8": "fp8:attention",
}
"""The book's kernels: name to ``module:function``."""

BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "fa2": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Backends of PyTorch's ``scaled_dot_product_attention``: several kernels with S and P in memory, in
float32 inside; the memory-efficient kernel from xFormers; FlashAttention-2; NVIDIA's cuDNN."""

PEERS = ("eager", *BACKENDS, "flex", "fa3", "fa3_fp8", "fp8_prepared")
"""What a kernel can be compared with; ``eager`` is the definition in three lines of PyTorch, ``flex`` its
FlexAttention, compiled; ``fa3`` the library of :mod:`benchmarks.flash_attention_3`, ``fa3_fp8`` the same
with inputs that are in e4m3 already; ``fp8_prepared`` the book's FP8 kernel without what it does first."""


def kernel(name: str, **keywords: object) -> Callable:
    """One of the book's kernels with the contestants' signature, and more keywords if it takes them."""
    module, function = KERNELS[name].split(":")
    function = getattr(importlib.import_module(f"kernels.{module}"), function)

    def attention(query, key, value, causal):
        return function(query, key, value, causal=causal, **keywords)

    return attention


def peer(name: str) -> Callable:
    """Three lines of PyTorch, or its ``scaled_dot_product_attention`` held to one backend."""
    if name == "eager":
        return _eager
    if name == "flex":
        return _flex
    if name in ("fa3", "fa3_fp8"):
        return flash_attention_3.attention
    if name == "fp8_prepared":
        return _fp8_prepared

    def attention(backend, query, key, value, causal):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, is_causal=causal)

    return functools.partial(attention, BACKENDS[name])


def _eager(query, key, value, causal):
    """S and P in memory in the inputs' dtype, through cuBLAS and PyTorch's softmax: chapter 1's lines."""
    scores = query.shape[-1] ** -0.5 * query @ key.mT
    if causal:
        seq = scores.shape[-1]
        hidden = torch.ones(seq, seq, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ value


def _fp8_prepared(query, key, value, causal):
    """The kernel for Hopper alone, for what :func:`kernels.fp8.prepare_for_hopper` gave."""
    from kernels import fp8_hopper

    shape = query.values.shape
    output = torch.empty(shape, dtype=torch.float16, device=query.values.device)
    logsumexp = torch.empty(shape[:-1], device=query.values.device)
    prepared, design = fp8_hopper.Prepared(query, key, value), fp8_hopper.shipped_design(shape[-1])
    fp8_hopper.forward(prepared, output, logsumexp, causal, shape[-1] ** -0.5, design)
    return output


def _flex(query, key, value, causal):
    block_mask = _causal_block_mask(query.shape[2]) if causal else None
    return compiled_flex_attention()(query, key, value, block_mask=block_mask)


@functools.cache
def compiled_flex_attention() -> Callable:
    """FlexAttention as its authors say to use it: through ``torch.compile``, here for fixed shapes."""
    # Every shape of a sweep is compiled for itself.
    torch._dynamo.config.recompile_limit = 64
    # The backward pass is timed again and again over one forward pass, whose buffers must stay.
    torch._functorch.config.donated_buffer = False
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=1)
def _causal_block_mask(seq: int):
    return create_block_mask(lambda b, h, q, k: q >= k, None, None, seq, seq, device="cuda")


def random_inputs(dtype: str, batch: int, heads: int, seq: int, head_dim: int):
    """Query, key and value from N(0, 1) on the GPU, the same at every call."""
    torch.manual_seed(0)
    shape = (batch, heads, seq, head_dim)
    return tuple(torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))


def laid_out(name: str, inputs: tuple) -> tuple:
    """The inputs as a contestant is made for them.

    ``fa3`` wants all heads of a row together in memory, ``fa3_fp8`` also in e4m3, here without a scale; and
    ``fp8_prepared`` rotated, and quantized by blocks.
    """
    if name == "fp8_prepared":
        from kernels import fp8, fp8_hopper

        design = fp8_hopper.shipped_design(inputs[0].shape[-1])
        return fp8.prepare_for_hopper(*inputs, fp8.rotation_signs(inputs[0], 0), design)
    if name not in ("fa3", "fa3_fp8"):
        return inputs
    if name == "fa3_fp8":
        inputs = tuple(x.to(torch.float8_e4m3fn) for x in inputs)
    return tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
