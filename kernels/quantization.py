"""Quantization to FP8 (e4m3): a tensor as 8-bit values, and what to multiply them with.

FP8 halves the bytes of float16 and doubles the products a tensor core does in a second. What it costs is
precision, and how much depends on who shares a scale. One large element makes the scale large for all, and
what is much smaller falls onto few numbers, or to zero. With a scale per block of rows it harms its own
block only, and the block's amax, scale and values come from one pass: the tile is loaded once.

Per tensor and per head amax must be known before the first element can be rounded: two passes.

The product of two FP8 tiles on Hopper wants both factors contiguous along the dimension that is summed. For
the weights times V this is the keys, so V is stored transposed, on the way through the same tile.

:mod:`kernels.quantization_reference` has the arithmetic and its corner cases in PyTorch; a kernel's result
is the same to the bit.

Source: Shah et al., *FlashAttention-3* (2024), section 3.3.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

import kernels
from kernels.checks import check_device, launch_device
from kernels.configurations import ARCHITECTURES, POINTER_TYPES, Configuration, strides
from kernels.quantization_reference import (
    E4M3_MAX,
    LARGEST_BLOCK,
    LEAST_AMAX,
    ROWS_OF_PADDING,
    Quantized,
    check_arguments,
    dequantize,
    scale_shape,
)
from kernels.tiles import load_tile, store_tile, tile_pointers

__all__ = ["Quantized", "configurations", "dequantize", "quantize"]

FP8_ARCHITECTURES = tuple(each for each in ARCHITECTURES if each >= 89)
E4M3_MAX_CONSTANT = tl.constexpr(E4M3_MAX)
LEAST_AMAX_CONSTANT = tl.constexpr(LEAST_AMAX)


@triton.jit
def load_block(
    tensor_ptr,
    tensor_strides,
    heads,
    seq,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """This program's rows of one head, and where they are from.

    Programs are numbered by batch, head and block, as the scales of blocks are.

    Returns:
        The tile [BLOCK, BLOCK_D] in float32, zeros outside of the head; ``batch_head`` in 64 bits; the
        ``rows`` [BLOCK] and ``dims`` [BLOCK_D] of the tile.
    """
    blocks = tl.cdiv(seq, BLOCK)
    batch_head = tl.cast(tl.program_id(0) // blocks, tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK
    offsets, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    head_ptr = (
        tensor_ptr
        + batch_head // heads * tensor_strides[0]
        + batch_head % heads * tensor_strides[1]
    )
    tile = load_tile(head_ptr, start, offsets, dims, tensor_strides, seq, HEAD_DIM)
    return tile.to(tl.float32), batch_head, start + offsets, dims


@triton.jit
def finite_amax(tile):
    """The largest finite magnitude of a tile [ROWS, COLUMNS]; 0 if it has none."""
    ROWS: tl.constexpr = tile.shape[0]
    COLUMNS: tl.constexpr = tile.shape[1]
    magnitudes = tl.abs(tile)
    # Also false for NaN.
    magnitudes = tl.where(magnitudes < float("inf"), magnitudes, 0.0)
    # Neighbours first, which one thread has: without this the compiler holds a second copy of a rotated
    # tile, distributed over the threads in another way, and at head_dim 256 it spills.
    left, right = tl.split(tl.reshape(magnitudes, [ROWS, COLUMNS // 2, 2]))
    return tl.max(tl.max(tl.maximum(left, right), axis=0), axis=0)


@triton.jit
def quantize_tile(tile, amax):
    """Values of a float32 tile in e4m3, and their scale.

    Divided with IEEE rounding, which Triton's ``/`` does not promise. The conversion rounds to nearest and
    saturates.
    """
    amax = tl.where(amax == 0.0, E4M3_MAX_CONSTANT, tl.maximum(amax, LEAST_AMAX_CONSTANT))
    scale = tl.div_rn(amax, tl.full([], E4M3_MAX_CONSTANT, tl.float32))
    inverse = tl.div_rn(tl.full([], E4M3_MAX_CONSTANT, tl.float32), amax)
    return (tile * inverse).to(tl.float8e4nv), scale


@triton.jit
def amax_kernel(
    tensor_ptr,
    amax_ptr,
    tensor_strides,
    heads,
    seq,
    sharing,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Take the amax of BLOCK rows into that of all ``sharing`` programs, in whatever order they come."""
    tile, _, _, _ = load_block(tensor_ptr, tensor_strides, heads, seq, HEAD_DIM, BLOCK, BLOCK_D)
    tl.atomic_max(amax_ptr + tl.program_id(0) // sharing, finite_amax(tile), sem="relaxed")


@triton.jit
def quantize_kernel(
    tensor_ptr,
    amax_ptr,
    values_ptr,
    scale_ptr,
    tensor_strides,
    heads,
    seq,
    seq_padded,
    sharing,
    HEAD_DIM: tl.constexpr,
    OWN_AMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK rows of one head. OWN_AMAX: they have a scale of their own; otherwise ``sharing`` programs
    have one, whose amax is known."""
    tile, batch_head, rows, dims = load_block(
        tensor_ptr, tensor_strides, heads, seq, HEAD_DIM, BLOCK, BLOCK_D
    )
    group = tl.program_id(0) // sharing
    amax = finite_amax(tile) if OWN_AMAX else tl.load(amax_ptr + group)
    values, scale = quantize_tile(tile, amax)
    tl.store(scale_ptr + group, scale, mask=tl.program_id(0) % sharing == 0)
    if TRANSPOSED:
        # Rows up to seq_padded were loaded as zeros.
        tl.store(
            tile_pointers(
                values_ptr + batch_head * HEAD_DIM * seq_padded, dims, rows, seq_padded, 1
            ),
            tl.trans(values),
            mask=(dims[:, None] < HEAD_DIM) & (rows[None, :] < seq_padded),
        )
    else:
        store_tile(values_ptr + batch_head * seq * HEAD_DIM, rows, dims, values, seq, HEAD_DIM)


def quantize(
    tensor: torch.Tensor, per: str = "tensor", block: int = 128, transposed: bool = False
) -> Quantized:
    """Round a tensor to e4m3, scaled so that the largest element becomes 448.

    Arguments, result and corner cases (infinities, NaN, zeros) are those of
    :func:`kernels.quantization_reference.quantize`, whose result this is to the bit.

    Args:
        tensor: ``(batch, heads, seq, head_dim)``; float16, bfloat16 or float32; any strides.
        per: who shares a scale: ``"tensor"``, ``"head"`` or ``"block"``. Per block the tensor is read once,
            otherwise twice.
        block: rows that share a scale, a power of two from 16 to 128; only ``per="block"`` uses it.
        transposed: store a head as ``(head_dim, seq_padded)``.

    Returns:
        :class:`Quantized`: values in ``torch.float8_e4m3fn``, and a float32 scale to multiply them with.

    Raises:
        TypeError, ValueError: as :func:`kernels.quantization_reference.check_arguments` says, or the
            tensor is where kernels do not run.
        RuntimeError: the GPU has no FP8 (compute capability below 8.9).
    """
    check_arguments(tensor, per, block)
    check_device("tensor", tensor)
    check_fp8(tensor)
    batch, heads, seq, head_dim = tensor.shape
    seq_padded = seq + -seq % ROWS_OF_PADDING
    shape = (batch, heads, head_dim, seq_padded) if transposed else tensor.shape
    values = tensor.new_empty(shape, dtype=torch.float8_e4m3fn)
    own_amax = per == "block"
    scale = tensor.new_empty(scale_shape(tensor, per, block), dtype=torch.float32)
    if tensor.numel() == 0:
        return Quantized(values, scale.fill_(1.0))
    constants, options = tile_sizes(block if own_amax else LARGEST_BLOCK, head_dim)
    programs = batch * heads * triton.cdiv(seq, constants["BLOCK"])
    sharing = programs // scale.numel()
    amax = None if own_amax else torch.zeros_like(scale)
    with launch_device(tensor):
        if not own_amax:
            amax_kernel[(programs,)](
                tensor, amax, tensor.stride(), heads, seq, sharing, **constants, **options
            )
        quantize_kernel[(programs,)](
            tensor,
            amax,
            values,
            scale,
            tensor.stride(),
            heads,
            seq,
            seq_padded,
            sharing,
            OWN_AMAX=own_amax,
            TRANSPOSED=transposed,
            **constants,
            **options,
        )
    return Quantized(values, scale)


def check_fp8(tensor: torch.Tensor) -> None:
    """Check that a tensor's GPU converts to FP8; the interpreter always does.

    Raises:
        RuntimeError: its compute capability is below 8.9. The message names the emulation.
    """
    if kernels.INTERPRETED:
        return
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < (8, 9):
        raise RuntimeError(
            f"{torch.cuda.get_device_name(tensor.device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and FP8 needs at least 8.9: "
            "kernels.quantization_reference.quantize gives the same result with PyTorch"
        )


def tile_sizes(block: int, head_dim: int) -> tuple[dict, dict]:
    """Constants and options of a kernel that holds ``block`` rows in registers.

    64 elements a thread: with float32 numbers and their addresses no form spills. Read off the compiler's
    report, not timed.
    """
    block_d = triton.next_power_of_2(head_dim)
    warps = max(1, block * block_d // (32 * 64))
    return {"HEAD_DIM": head_dim, "BLOCK": block, "BLOCK_D": block_d}, {"num_warps": warps}


def widths() -> Iterator[tuple[torch.dtype, int, str]]:
    """The dtypes and head dimensions to compile for, with a label: float32 at the widest only.

    bfloat16 is left out: it compiles to what float16 does.
    """
    for dtype, head_dims in ((torch.float16, (64, 128, 256)), (torch.float32, (256,))):
        for head_dim in head_dims:
            yield dtype, head_dim, f"{str(dtype).removeprefix('torch.')}, head_dim {head_dim}"


def configurations() -> Iterator[Configuration]:
    """Both kernels at several widths; the second in all its forms."""
    for dtype, head_dim, label in widths():
        constants, options = tile_sizes(LARGEST_BLOCK, head_dim)
        shared = {
            "tensor_ptr": POINTER_TYPES[dtype],
            "amax_ptr": "*fp32",
            "tensor_strides": strides(4),
            **dict.fromkeys(("heads", "sharing"), "i32"),
            "seq": "i32x16",
        }
        yield Configuration(label, amax_kernel, shared, constants, options, FP8_ARCHITECTURES)
        shared |= {"values_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "seq_padded": "i32x16"}
        for own_amax in (False, True):
            for transposed in (False, True):
                switches = {"OWN_AMAX": own_amax, "TRANSPOSED": transposed}
                if own_amax:
                    switches["amax_ptr"] = None
                yield Configuration(
                    label + ", own amax" * own_amax + ", transposed" * transposed,
                    quantize_kernel,
                    shared,
                    constants | switches,
                    options,
                    FP8_ARCHITECTURES,
                )
