"""What a kernel module declares so that it can be compiled, and inspected, with no GPU."""

from dataclasses import dataclass, field
from typing import Any

import torch

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities of the GPUs that the book compiles for: Ampere to Blackwell."""

SHARED_BYTES = dict.fromkeys((86, 89, 120), 99 * 1024) | {
    80: 163 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
}
"""The most shared memory that one program may have, in bytes, by compute capability."""

POINTER_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Configuration:
    """One compiled form of a kernel, exactly as its launcher would ask for it.

    Attributes:
        label: what sets this form apart, for a reader: ``"float16, head_dim 128"``.
        kernel: the ``@triton.jit`` function.
        arguments: Triton type of each run-time argument, in Triton's notation: ``"*fp16"`` for a
            pointer, ``"i32"``, ``"fp32"``; a tuple of these for a tuple of strides. ``"unit"`` stands
            for an integer known to be 1, which Triton compiles in, and ``"i32x16"`` for one known to be
            a multiple of 16, as pointers and strides are taken to be.
        constants: the ``tl.constexpr`` arguments.
        options: launch options: ``num_warps``, ``num_stages``.
        architectures: the compute capabilities it is meant for.
    """

    label: str
    kernel: Any
    arguments: dict[str, str | tuple[str, ...]]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)
    architectures: tuple[int, ...] = ARCHITECTURES


def strides(rank: int) -> tuple[str, ...]:
    """Types of the strides of a tensor whose last dimension is contiguous."""
    return ("i32",) * (rank - 1) + ("unit",)


def shared_bytes(tensor: torch.Tensor) -> int:
    """The most shared memory that one program may have on a tensor's device; on the CPU, the H200's."""
    if not tensor.is_cuda:
        return SHARED_BYTES[90]
    return torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin


def alike_architectures(blocks, dtype: torch.dtype, head_dim: int) -> list[tuple[int, ...]]:
    """The architectures, those for which ``blocks`` chooses the same together."""
    groups: dict[str, list[int]] = {}
    for architecture in ARCHITECTURES:
        chosen = blocks(dtype, head_dim, SHARED_BYTES[architecture])
        groups.setdefault(str(chosen), []).append(architecture)
    return [tuple(group) for group in groups.values()]
