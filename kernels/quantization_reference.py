"""Quantization to FP8 in PyTorch: what :mod:`kernels.quantization` computes, to the bit, on any device.

An e4m3 number has 1 bit of sign, 4 of exponent and 3 of mantissa: steps of 6 to 12 % from one to the
next, none above 448, and no infinity. So a tensor is first divided by a scale that makes its largest 448::

    amax = largest finite |x| among those that share the scale
    scale = amax / 448        values = e4m3(x * (448 / amax))        x ≈ values * scale

This is also what takes the kernel's place on a GPU without FP8 arithmetic (before compute capability 8.9).

Source: Shah et al., *FlashAttention-3* (2024), section 3.3: a scale per block in place of one per tensor.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from kernels.checks import MAX_HEAD_DIM, MIN_HEAD_DIM, check_block_size, check_tensor

E4M3_MAX = 448.0
LEAST_AMAX = E4M3_MAX * 2.0**-126
"""What a smaller amax counts as: neither the scale nor its inverse leaves float32's normal range."""

SHARERS = ("tensor", "head", "block")
LARGEST_BLOCK = 128
ROWS_OF_PADDING = 16
"""Transposed values have a multiple of so many rows: 16 bytes, which every copy in hardware can take."""


class Quantized(NamedTuple):
    """A tensor in FP8.

    Attributes:
        values: ``(batch, heads, seq, head_dim)`` in ``torch.float8_e4m3fn``, contiguous. Transposed it is
            ``(batch, heads, head_dim, seq_padded)``: seq rounded up to a multiple of 16, with zeros.
        scale: float32, what values must be multiplied with: ``(batch, heads, blocks)``, of which those that
            are shared have size 1: ``(1, 1, 1)`` per tensor, ``(batch, heads, 1)`` per head.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantize(
    tensor: torch.Tensor, per: str = "tensor", block: int = 128, transposed: bool = False
) -> Quantized:
    """Round a tensor to e4m3, scaled so that the largest element becomes 448.

    Args:
        tensor: ``(batch, heads, seq, head_dim)``; float16, bfloat16 or float32; any strides, any device.
        per: who shares a scale: all of the ``"tensor"``, a ``"head"`` of one sequence, or a ``"block"``
            of rows of one head.
        block: rows that share a scale, a power of two from 16 to 128; only ``per="block"`` uses it.
        transposed: store a head as ``(head_dim, seq)``, as the second factor of an FP8 product needs it.

    Returns:
        :class:`Quantized`. Values are rounded to nearest, ties to even; e4m3's subnormal numbers are kept,
        and so is the sign of zero. Where all that share a scale is zero, the scale is 1.

    An infinity or a NaN has no part in amax: it must not decide the scale of its neighbours. Infinities
    become ±448, NaN stays NaN. An amax below 448 · 2⁻¹²⁶ counts as this number, because 448 / amax would
    overflow: a scale is at least 2⁻¹²⁶.

    Raises:
        TypeError, ValueError: as :func:`check_arguments` says.
    """
    check_arguments(tensor, per, block)
    seq = tensor.shape[2]
    numbers = tensor.float()
    amax = _shared_amax(torch.where(numbers.isfinite(), numbers.abs(), 0.0), per, block)
    amax = torch.where(amax == 0, E4M3_MAX, amax.clamp(min=LEAST_AMAX))
    # Division by a Python number may multiply with its reciprocal, which rounds twice.
    largest = torch.full_like(amax, E4M3_MAX)
    scaled = (numbers * _a_row_each(largest / amax, block, seq)).clamp(-E4M3_MAX, E4M3_MAX)
    # Of the two NaNs, which differ in their sign, the hardware's conversion gives one.
    scaled = torch.where(scaled.isnan(), torch.nan, scaled)
    if transposed:
        scaled = functional.pad(scaled, (0, 0, 0, -seq % ROWS_OF_PADDING)).transpose(2, 3)
    values = scaled.to(torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    return Quantized(values, amax / largest)


def dequantize(quantized: Quantized, block: int = 128, transposed: bool = False) -> torch.Tensor:
    """The numbers that a quantized tensor stands for: values times scale, in float32.

    Args:
        quantized: what ``quantize`` returned.
        block, transposed: what ``quantize`` was given.

    Returns:
        ``(batch, heads, seq, head_dim)``; of transposed values, with the rows of zeros at the end.
    """
    values = quantized.values.float()
    if transposed:
        values = values.transpose(2, 3)
    return values * _a_row_each(quantized.scale, block, values.shape[2])


def check_arguments(tensor: torch.Tensor, per: str, block: int) -> None:
    """Check what ``quantize`` is given, on any device.

    Raises:
        TypeError: ``tensor`` is no tensor, or its dtype is not float16, bfloat16 or float32.
        ValueError: its shape, ``per`` or ``block`` is not accepted; the message says what is.
    """
    check_tensor("tensor", tensor, ("batch", "heads", "seq", "head_dim"))
    if not MIN_HEAD_DIM <= tensor.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(
            f"tensor has head_dim {tensor.shape[3]}; accepted: {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    if per not in SHARERS:
        accepted = ", ".join(f'"{sharer}"' for sharer in SHARERS)
        raise ValueError(f"per must be one of {accepted}, got {per!r}")
    check_block_size("block", block)
    if block > LARGEST_BLOCK:
        raise ValueError(f"block must be at most {LARGEST_BLOCK}, got {block}")


def scale_shape(tensor: torch.Tensor, per: str, block: int) -> tuple[int, int, int]:
    """Shape of the scales of a tensor."""
    batch, heads, seq, _ = tensor.shape
    blocks = -(-seq // block)
    return {"tensor": (1, 1, 1), "head": (batch, heads, 1), "block": (batch, heads, blocks)}[per]


def _shared_amax(magnitudes: torch.Tensor, per: str, block: int) -> torch.Tensor:
    """The largest number of all that share a scale, in the scales' shape; 0 where there is none."""
    shape = scale_shape(magnitudes, per, block)
    if per == "block":
        rows_to_whole_blocks = -magnitudes.shape[2] % block
        magnitudes = functional.pad(magnitudes, (0, 0, 0, rows_to_whole_blocks))
        return magnitudes.reshape(*shape, block * magnitudes.shape[3]).amax(3)
    groups = magnitudes.reshape(shape[0] * shape[1], -1 if magnitudes.numel() else 0)
    # One more zero, because the maximum of nothing is not defined.
    return functional.pad(groups, (0, 1)).amax(1).reshape(shape)


def _a_row_each(scale: torch.Tensor, block: int, seq: int) -> torch.Tensor:
    """Scales of blocks as scales of rows, ``(batch, heads, seq, 1)``; shared ones keep their size of 1."""
    if scale.shape[2] > 1:
        scale = scale.repeat_interleave(block, dim=2)[:, :, :seq]
    return scale[..., None]
