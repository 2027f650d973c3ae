"""FP8 attention in PyTorch: the arithmetic of the kernels, on any device, each idea with a switch.

Values are rounded through ``torch.float8_e4m3fn`` and multiplied in float32, where the product of two e4m3
numbers is exact. So what is left of a tensor core is how it adds. Hopper's adds 32 products at a time, and
keeps about 14 bits of a sum, cutting off the rest (measured and described in DeepSeek-AI, *DeepSeek-V3
Technical Report*, 2024, section 3.5.2); with ``accumulator`` that is modelled as cutting off each sum after
32 products more. The kernel for Hopper is followed in the order of its steps too, so that without the model
its results, and these, differ by float32's rounding only.

Source: Shah et al., *FlashAttention-3* (2024), section 3.3.
"""

import torch

from kernels.fp8_preparation import LEAST_VALUE_SCALE
from kernels.hadamard import random_signs
from kernels.online_softmax import LOG2_E
from kernels.quantization_reference import Quantized, quantize

ACCUMULATORS = ("float32", "two levels", "one level")
PRODUCTS_A_SUM = 32
"""How many products a tensor core adds before the sum is cut off."""
BITS_OF_A_SUM = 14
"""How many leading bits are left of it."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    seed: int | None = 0,
    per: str = "block",
    query_block: int = 64,
    key_block: int = 128,
    weight_bits: int = 8,
    accumulator: str = "float32",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`kernels.fp8.attention`, with switches; holds one tile of keys' scores for all queries.

    Args:
        per: who shares a scale: ``"block"``, ``"head"`` or ``"tensor"``.
        query_block, key_block: rows of a block; ``key_block`` is also the tile of the softmax.
        weight_bits: the largest weight of a row is 2 to this power before it is rounded.
        accumulator: ``"float32"``; ``"one level"``, all products with V in one sum as Hopper adds them;
            ``"two levels"``, a tile's products so, and their sums in float32.

    Raises:
        ValueError: ``accumulator`` or ``per`` is none of these.
    """
    if accumulator not in ACCUMULATORS:
        raise ValueError(f"accumulator must be one of {ACCUMULATORS}, got {accumulator!r}")
    head_dim, group = query.shape[-1], query.shape[1] // max(1, key.shape[1])
    scale = head_dim**-0.5 if scale is None else scale
    if seed is not None:
        signs = random_signs(head_dim, seed).to(query.device)
        rotated_query, rotated_key = rotate(query, signs), rotate(key, signs)
    else:
        rotated_query, rotated_key = query, key
    query_values, query_scale = _scaled_rows(quantize(rotated_query, per, query_block), query_block)
    key_values, key_scale = _scaled_rows(quantize(rotated_key, per, key_block), key_block)
    value_values, value_scale = _scaled_rows(quantize_value(value, per, key_block), key_block)
    key_values, key_scale, value_values, value_scale = (
        x.repeat_interleave(group, 1) for x in (key_values, key_scale, value_values, value_scale)
    )
    rows_scale = query_scale * (scale * LOG2_E)
    seq_query, seq_key = query.shape[2], key.shape[2]
    last_seen = torch.arange(seq_query, device=query.device)[:, None] + (seq_key - seq_query)

    running_max = query_scale.new_full(query.shape[:-1], float("-inf"))
    running_sum = torch.zeros_like(running_max)
    total = torch.zeros_like(query_values)
    for start in reversed(range(0, seq_key, key_block)):
        tile = slice(start, start + key_block)
        scores = product(query_values, key_values[:, :, tile].mT, None, accumulator != "float32")
        if causal:
            hidden = torch.arange(start, start + scores.shape[-1], device=query.device) > last_seen
            scores = scores.masked_fill(hidden, float("-inf"))
        tile_scale = (rows_scale * key_scale[:, :, start, None]).clamp(min=2.0**-126)
        exponent = value_scale[:, :, start, 0, None].log2()  # (batch, heads, 1)
        scaled = scores.double() * tile_scale.double()
        tile_max = (scaled.amax(-1) + exponent).float()
        new_max = torch.maximum(running_max, tile_max)
        shift = torch.where(new_max == float("-inf"), 0.0, new_max)
        raised = (weight_bits + exponent) - shift
        exponentials = (scaled + raised[..., None]).float().exp2()
        rescale = (running_max - shift).exp2()
        running_sum = running_sum * rescale + exponentials.sum(-1) * (-exponent).exp2()
        weights = exponentials.clamp(max=448.0).to(torch.float8_e4m3fn).float()
        total = total * rescale[..., None]
        if accumulator == "one level":
            total = product(weights, value_values[:, :, tile], total, True)
        else:
            cut = accumulator != "float32"
            total = total + product(weights, value_values[:, :, tile], None, cut)
        running_max = new_max
    divisor = torch.where(running_sum == 0, 1.0, running_sum)
    output = (total * (1.0 / divisor)[..., None]).to(query.dtype)
    logsumexp = (running_max + (divisor.log2() - weight_bits)) / LOG2_E
    return (output, logsumexp) if return_logsumexp else output


def rotate(tensor: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """What :func:`kernels.hadamard.transform` computes, in float32: the same sums in the same order."""
    rotated = tensor.float() * signs
    size = rotated.shape[-1]
    distance = 1
    while distance < size:
        first, second = rotated.unflatten(-1, (-1, 2, distance)).unbind(-2)
        rotated = torch.stack([first + second, first - second], -2).flatten(-3)
        distance *= 2
    return rotated * size**-0.5


def quantize_value(value: torch.Tensor, per: str, block: int) -> Quantized:
    """As :func:`kernels.fp8_preparation.quantize_value`, but not transposed, and per any of the three."""
    values, scale = quantize(value, per, block)
    # The largest value is 448, unless it was too small; or all are zero, which has a scale of 1.
    ones = torch.where(values.float() == 0, 0.0, 1.0)
    some = quantize(ones, per, block).scale < 1
    small = ~some | (scale < LEAST_VALUE_SCALE)
    # Multiplied with a power of two, which rounds nothing.
    rounded = (value.float() * (1 / LEAST_VALUE_SCALE)).clamp(-448, 448).to(torch.float8_e4m3fn)
    values = torch.where(_rows(small, block, value.shape[2]), rounded.float(), values.float())
    return Quantized(values.to(torch.float8_e4m3fn), scale.masked_fill(small, LEAST_VALUE_SCALE))


def product(
    left: torch.Tensor, right: torch.Tensor, accumulated: torch.Tensor | None, cut: bool
) -> torch.Tensor:
    """``accumulated + left @ right`` in float32, or added as the tensor cores do.

    Args:
        left: ``(..., rows, inner)``; right: ``(..., inner, columns)``; numbers that e4m3 has.
        accumulated: what is added to; None for nothing.
        cut: keep the leading :data:`BITS_OF_A_SUM` bits of each sum.
    """
    if not cut:
        total = left @ right
        return total if accumulated is None else accumulated + total
    total = 0.0 if accumulated is None else accumulated
    for start in range(0, left.shape[-1], PRODUCTS_A_SUM):
        few = slice(start, start + PRODUCTS_A_SUM)
        total = cut_off(total + left[..., few] @ right[..., few, :])
    return total


def cut_off(numbers: torch.Tensor) -> torch.Tensor:
    """Float32 numbers with only their leading :data:`BITS_OF_A_SUM` bits, the others set to zero."""
    # A float32 number has 24, of which the first is not stored.
    return (numbers.view(torch.int32) & -(2 ** (24 - BITS_OF_A_SUM))).view(torch.float32)


def _scaled_rows(quantized: Quantized, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in float32, and a scale for each row, ``(batch, heads, seq, 1)``."""
    return quantized.values.float(), _rows(
        quantized.scale, block, quantized.values.shape[2]
    ).expand(*quantized.values.shape[:3], 1)


def _rows(of_blocks: torch.Tensor, block: int, seq: int) -> torch.Tensor:
    """What is known of blocks, for each row: ``(batch, heads, seq, 1)``; what is shared keeps size 1."""
    if of_blocks.shape[2] > 1:
        of_blocks = of_blocks.repeat_interleave(block, 2)[:, :, :seq]
    return of_blocks[..., None]
