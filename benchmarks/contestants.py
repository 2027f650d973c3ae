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
PEERS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "fa2": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Name to PyTorch backend: several kernels with S and P in memory; xFormers' memory-efficient
kernel;
FlashAttention-2; NVIDIA's cuDNN."""


def kernel(name: str) -> Callable:
    """``kernels.<name>.attention`` with the contestants' signature."""
    module = importlib.import_module(f"kernels.{name}")

    def attention(query, key, value, causal):
        return module.attention(query, key, value, causal=causal)

    return attention


def peer(name: str) -> Callable:
    """PyTorch's ``scaled_dot_product_attention`` held to one backend."""

    def attention(backend, query, key, value, causal):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, is_causal=causal)

    return functools.partial(attention, PEERS[name])


def random_inputs(dtype: str, batch: int, heads: int, seq: int, head_dim: int):
    """Query, key and value from N(0, 1) on the GPU, the same at every call."""
    torch.manual_seed(0)
    shape = (batch, heads, seq, head_dim)
    return tuple(torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))
