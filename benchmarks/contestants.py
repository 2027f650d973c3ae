"""The attention functions that are compared: the book's kernels, and PyTorch's backends as peers.

All take ``(query, key, value, causal)`` in the layout ``(batch, heads, seq, head_dim)``.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = ("naive",)
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "fa2": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Backends of PyTorch's ``scaled_dot_product_attention``: several kernels with S and P in memory, in
float32 inside; the memory-efficient kernel from xFormers; FlashAttention-2; NVIDIA's cuDNN."""

PEERS = ("eager", *BACKENDS)
"""What a kernel can be compared with; ``eager`` is the definition in three lines of PyTorch."""


def kernel(name: str) -> Callable:
    """``kernels.<name>.attention`` with the contestants' signature."""
    module = importlib.import_module(f"kernels.{name}")

    def attention(query, key, value, causal):
        return module.attention(query, key, value, causal=causal)

    return attention


def peer(name: str) -> Callable:
    """Three lines of PyTorch, or its ``scaled_dot_product_attention`` held to one backend."""
    if name == "eager":
        return _eager

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


def random_inputs(dtype: str, batch: int, heads: int, seq: int, head_dim: int):
    """Query, key and value from N(0, 1) on the GPU, the same at every call."""
    torch.manual_seed(0)
    shape = (batch, heads, seq, head_dim)
    return tuple(torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))
