"""What FP8 attention does to Q, K and V before it multiplies: rotate, quantize, and lay V out anew.

Q and K are rotated alike, which leaves their scores as they are, and rounded with a scale for each block of
rows: one kernel each, of :mod:`kernels.hadamard`. V is not: its rows could be rotated, and the output back,
but that gains nothing. It is only quantized; and in the same pass transposed, because Hopper's FP8 products
want both factors contiguous along what is summed, which for the weights times V is the keys.

A second change of V's order saves the attention kernel all its shuffles. The scores come out of one product
in registers, and go into the next as weights. Of 16 columns of scores a thread of four holds two pairs of
neighbours, 2t, 2t + 1 and 8 + 2t, 8 + 2t + 1; but of 16 weights in FP8 it must hold four neighbours, 4t to
4t + 3. A sum does not care about the order of its terms, as long as both factors have the same: so V's
keys are stored in the order in which the scores lie in the threads.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels import hadamard, quantization
from kernels.checks import launch_device
from kernels.configurations import Configuration, strides
from kernels.quantization import FP8_ARCHITECTURES, finite_amax, quantize_tile, tile_sizes
from kernels.quantization_reference import E4M3_MAX, ROWS_OF_PADDING, Quantized
from kernels.tiles import load_tile

LEAST_VALUE_SCALE = 2.0**-100
"""The attention kernels divide by V's scales. Sums of these inverses stay within float32."""

LEAST_VALUE_AMAX = tl.constexpr(E4M3_MAX * LEAST_VALUE_SCALE)


class Prepared(NamedTuple):
    """What the kernels of FP8 attention read; V's values are transposed, see :func:`quantize_value`."""

    query: Quantized
    key: Quantized
    value: Quantized


def prepare(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    signs: torch.Tensor | None,
    query_block: int,
    key_block: int,
    interleaved: bool,
) -> Prepared:
    """Rotate Q and K, unless ``signs`` is None, and quantize all three with a scale for each block.

    Args:
        query_block, key_block: rows that share a scale; of V as of K.
        interleaved: as of :func:`quantize_value`.
    """

    def rotated_and_quantized(tensor, block):
        if signs is None:
            return quantization.quantize(tensor, "block", block)
        return hadamard.transform_and_quantize(tensor, signs, "block", block)

    return Prepared(
        rotated_and_quantized(query, query_block),
        rotated_and_quantized(key, key_block),
        quantize_value(value, key_block, interleaved),
    )


@triton.jit
def interleave(places):
    """Which key lies at each of these places, if keys lie as the threads hold their scores.

    Place 4t + 2h + i of 16 has key 8h + 2t + i: thread t's i-th of its h-th pair.
    """
    thread, half, which = places // 4 % 4, places // 2 % 2, places % 2
    return places // 16 * 16 + 8 * half + 2 * thread + which


@triton.jit
def value_kernel(
    value_ptr,
    values_ptr,
    scale_ptr,
    value_strides,
    heads,
    seq,
    seq_padded,
    HEAD_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Quantize BLOCK rows of V of one head, with a scale of their own, and store them as columns."""
    blocks = tl.cdiv(seq, BLOCK)
    batch_head = tl.cast(tl.program_id(0) // blocks, tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK
    places, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    # Rows are loaded in the order in which they will lie. Each is loaded whole, so it costs nothing.
    keys = interleave(places) if INTERLEAVED else places
    head_ptr = (
        value_ptr + batch_head // heads * value_strides[0] + batch_head % heads * value_strides[1]
    )
    tile = load_tile(head_ptr, start, keys, dims, value_strides, seq, HEAD_DIM).to(tl.float32)
    amax = tl.maximum(finite_amax(tile), LEAST_VALUE_AMAX)
    values, scale = quantize_tile(tile, amax)
    tl.store(scale_ptr + tl.program_id(0), scale)
    # [BLOCK_D, BLOCK] of a matrix with a row for each dimension; keys past the last were loaded as zeros.
    head_out = values_ptr + batch_head * HEAD_DIM * seq_padded
    pointers = head_out + dims[:, None].to(tl.int64) * seq_padded + (start + places)[None, :]
    mask = (dims[:, None] < HEAD_DIM) & ((start + places)[None, :] < seq_padded)
    tl.store(pointers, tl.trans(values), mask=mask)


def quantize_value(value: torch.Tensor, block: int, interleaved: bool) -> Quantized:
    """Quantize V with a scale for each block of rows, and transpose it.

    A scale is at least :data:`LEAST_VALUE_SCALE`, also where all is zero: unlike a scale of 1, which would
    be more than that of other blocks, it takes nothing from the range of the weights.

    Args:
        interleaved: store the keys of each 16 in the order of :func:`interleave`.

    Returns:
        :class:`kernels.quantization.Quantized`: values ``(batch, kv_heads, head_dim, seq_padded)``, where
        seq is rounded up to a multiple of 16, with zeros; scale ``(batch, kv_heads, blocks)``.
    """
    batch, heads, seq, head_dim = value.shape
    seq_padded = seq + -seq % ROWS_OF_PADDING
    values = value.new_empty((batch, heads, head_dim, seq_padded), dtype=torch.float8_e4m3fn)
    blocks = triton.cdiv(seq, block)
    scale = value.new_empty((batch, heads, blocks), dtype=torch.float32)
    constants, options = tile_sizes(block, head_dim)
    if values.numel():
        with launch_device(value):
            value_kernel[(batch * heads * blocks,)](
                value,
                values,
                scale,
                value.stride(),
                heads,
                seq,
                seq_padded,
                INTERLEAVED=interleaved,
                **constants,
                **options,
            )
    return Quantized(values, scale)


def configurations() -> Iterator[Configuration]:
    """V's kernel as the kernel for Hopper wants it, and as the plain one, which runs on the others.

    Q's and K's is in :mod:`kernels.hadamard`.
    """
    for head_dim in (64, 128, 256):
        for block, interleaved, architectures in (
            (128, True, (90,)),
            (64 if head_dim <= 128 else 32, False, tuple(a for a in FP8_ARCHITECTURES if a != 90)),
        ):
            constants, options = tile_sizes(block, head_dim)
            yield Configuration(
                f"head_dim {head_dim}, block {block}" + ", interleaved" * interleaved,
                value_kernel,
                {
                    "value_ptr": "*fp16",
                    "values_ptr": "*fp8e4nv",
                    "scale_ptr": "*fp32",
                    "value_strides": strides(4),
                    "heads": "i32",
                    "seq": "i32x16",
                    "seq_padded": "i32x16",
                },
                constants | {"INTERLEAVED": interleaved},
                options,
                architectures,
            )
