"""Argument checks shared by every launcher: a clear error before any kernel starts."""

import contextlib
import math
from numbers import Real

import torch

import kernels

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256


def check_attention_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> float:
    """Check the arguments of an ``attention`` function and return the scale to use.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
        scale: what scores are multiplied with; ``None`` means ``1 / sqrt(head_dim)``.
        dtypes: what the kernel accepts.

    Raises:
        TypeError: an argument of the wrong type, or a dtype that is not accepted or not shared.
        ValueError: a wrong rank, shape, device or scale. The message names the argument, what came
            and what is accepted.
    """
    scale = check_attention_tensors(query, key, value, scale, dtypes)
    check_device("query", query)
    return scale


def check_attention_tensors(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> float:
    """As :func:`check_attention_inputs`, wherever the tensors are, as long as they are together."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, seq, head_dim), "
                f"got shape {tuple(tensor.shape)}"
            )
        if tensor.dtype not in dtypes:
            accepted = ", ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{name} has dtype {tensor.dtype}; accepted: {accepted}")
    for name in ("key", "value"):
        if tensors[name].dtype != query.dtype:
            raise TypeError(f"{name} has dtype {tensors[name].dtype}, but query has {query.dtype}")
        if tensors[name].device != query.device:
            raise ValueError(f"{name} is on {tensors[name].device}, but query is on {query.device}")
    _check_shapes(query, key, value)
    return _check_scale(scale, query.shape[-1])


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    """Check the matrix that a row-wise kernel is handed.

    Raises:
        TypeError: it is no tensor, or its dtype is not float16, bfloat16 or float32.
        ValueError: it has not two dimensions, or is on a device where kernels do not run.
    """
    check_tensor(name, tensor, ("rows", "columns"))
    check_device(name, tensor)


def check_tensor(name: str, tensor: torch.Tensor, dimensions: tuple[str, ...]) -> None:
    """Check that a tensor has these dimensions, and a dtype that the kernels take; on any device.

    Raises:
        TypeError: it is no tensor, or its dtype is not float16, bfloat16 or float32.
        ValueError: it has more or fewer dimensions.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.ndim != len(dimensions):
        raise ValueError(
            f"{name} must have {len(dimensions)} dimensions ({', '.join(dimensions)}), "
            f"got shape {tuple(tensor.shape)}"
        )
    if tensor.dtype not in DTYPES:
        accepted = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"{name} has dtype {tensor.dtype}; accepted: {accepted}")


def check_block_size(name: str, size: int) -> None:
    """Check a tile size that the caller chose.

    Raises:
        ValueError: it is no power of two from 16, which is the least that a tensor core takes.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size & (size - 1):
        raise ValueError(f"{name} must be a power of two of at least 16, got {size!r}")


def check_device(name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor is where kernels run.

    Raises:
        ValueError: it is not on a CUDA GPU, and kernels are not interpreted.
    """
    if not kernels.INTERPRETED and not tensor.is_cuda:
        raise ValueError(
            f"{name} is on {tensor.device}, but the kernels are compiled for a CUDA GPU: move the "
            "tensors there, or set TRITON_INTERPRET=1 before importing kernels to run on the CPU"
        )


def _check_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    batch, heads, _, head_dim = query.shape
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"query has head_dim {head_dim}; accepted: {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise ValueError(
            f"key has shape {tuple(key.shape)}; with query {tuple(query.shape)} it must be "
            f"({batch}, kv_heads, seq_key, {head_dim})"
        )
    if value.shape != key.shape:
        raise ValueError(
            f"value has shape {tuple(value.shape)}; it must be key's, {tuple(key.shape)}"
        )
    kv_heads = key.shape[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"query has {heads} heads, which is not a multiple of key's {kv_heads} heads"
        )


def _check_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and greater than 0, got {scale}")
    return float(scale)


def launch_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Make the tensor's GPU the current one: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
