"""Random rotation by a Hadamard matrix: it spreads an outlier over the row, before FP8 rounds it.

Scores do not change if queries and keys are rotated alike: (Q M)(K M)ᵀ = Q M Mᵀ Kᵀ = Q Kᵀ for an orthogonal
M. Here M = D H / √d. H holds ±1 only (Sylvester's construction, H_2d = [[H, H], [H, -H]]) and D has random
signs on its diagonal. Every element of a rotated row is a sum, with signs, of all elements of the row: one
outlier becomes d elements of 1/√d of its size, and a scale need no longer make room for it.

Multiplying with H takes no d² products. Its structure repeats at each power of two, so log2(d) steps of d
additions do (the fast Walsh-Hadamard transform), each a :func:`butterfly` of elements twice as far apart.

H is symmetric and H H = d I, so M's inverse is Mᵀ = H D / √d: the same steps, and the signs afterwards,
``transform(rotated, ones) * signs``.

Source: Shah et al., *FlashAttention-3* (2024), section 3.3 (incoherent processing).
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

import kernels
from kernels.checks import DTYPES, MAX_HEAD_DIM, MIN_HEAD_DIM, check_device, launch_device
from kernels.configurations import (
    POINTER_TYPES,
    SHARED_BYTES,
    Configuration,
    shared_bytes,
    strides,
)
from kernels.quantization import (
    FP8_ARCHITECTURES,
    check_fp8,
    finite_amax,
    load_block,
    quantize,
    quantize_tile,
    tile_sizes,
    widths,
)
from kernels.quantization_reference import (
    LARGEST_BLOCK,
    Quantized,
    check_arguments,
    scale_shape,
)
from kernels.tiles import store_tile


@triton.jit
def butterfly(tile, DISTANCE: tl.constexpr):
    """One step of the transform of each row of a tile [ROWS, D].

    Two elements that lie DISTANCE apart, in the same 2 * DISTANCE, become their sum and their difference.
    """
    ROWS: tl.constexpr = tile.shape[0]
    D: tl.constexpr = tile.shape[1]
    pairs = tl.reshape(tile, [ROWS, D // (2 * DISTANCE), 2, DISTANCE])
    # tl.split and tl.join work on the last dimension.
    first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2))
    return tl.reshape(pairs, [ROWS, D])


@triton.jit
def rotate(tile, signs, STEPS: tl.constexpr):
    """(tile * signs) H / sqrt(D) of a tile [ROWS, D] in float32; signs [D], STEPS = log2(D)."""
    tile = tile * signs[None, :]
    for step in tl.static_range(STEPS):
        tile = butterfly(tile, 2**step)
    return tile * (2.0 ** (-0.5 * STEPS))


@triton.jit
def transform_kernel(
    tensor_ptr,
    signs_ptr,
    rotated_ptr,
    tensor_strides,
    heads,
    seq,
    HEAD_DIM: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rotate BLOCK rows of one head."""
    tile, batch_head, rows, dims = load_block(
        tensor_ptr, tensor_strides, heads, seq, HEAD_DIM, BLOCK, BLOCK_D
    )
    rotated = rotate(tile, tl.load(signs_ptr + dims), STEPS)
    store_tile(rotated_ptr + batch_head * seq * HEAD_DIM, rows, dims, rotated, seq, HEAD_DIM)


@triton.jit
def transform_and_quantize_kernel(
    tensor_ptr,
    signs_ptr,
    values_ptr,
    scale_ptr,
    tensor_strides,
    heads,
    seq,
    HEAD_DIM: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rotate BLOCK rows of one head and quantize them with a scale of their own; all in registers."""
    tile, batch_head, rows, dims = load_block(
        tensor_ptr, tensor_strides, heads, seq, HEAD_DIM, BLOCK, BLOCK_D
    )
    rotated = rotate(tile, tl.load(signs_ptr + dims), STEPS)
    values, scale = quantize_tile(rotated, finite_amax(rotated))
    tl.store(scale_ptr + tl.program_id(0), scale)
    store_tile(values_ptr + batch_head * seq * HEAD_DIM, rows, dims, values, seq, HEAD_DIM)


def random_signs(head_dim: int, seed: int) -> torch.Tensor:
    """Signs of one rotation: ``(head_dim,)`` in float32, +1 or -1 with equal probability.

    The same on every machine for the same seed: drawn on the CPU, then moved to :func:`kernels.device`.

    Raises:
        TypeError, ValueError: ``head_dim`` is no power of two from 16 to 256, or ``seed`` no integer.
    """
    _check_head_dim("head_dim", head_dim)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    bits = torch.randint(2, (head_dim,), generator=torch.Generator().manual_seed(seed))
    return (1.0 - 2.0 * bits).to(kernels.device())


def transform(
    tensor: torch.Tensor, signs: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Rotate each row: ``(tensor * signs) H / sqrt(head_dim)``, computed in float32.

    Args:
        tensor: ``(batch, heads, seq, head_dim)``; float16, bfloat16 or float32; any strides; head_dim a
            power of two from 16 to 256.
        signs: ``(head_dim,)`` in float32, ±1, as of :func:`random_signs`; queries and keys need the same.
        dtype: of the result, one of the three; ``None`` means that of ``tensor``.

    Returns:
        A contiguous tensor of the same shape. Its elements reach sqrt(head_dim) times the largest of
        ``tensor``, and sums inside head_dim times. An infinity or a NaN makes its whole row
        infinities or NaN.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape or device; the message names it,
            what came and what is accepted.
    """
    _check(tensor, signs, per="block", block=LARGEST_BLOCK)
    dtype = tensor.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        accepted = ", ".join(str(each) for each in DTYPES)
        raise TypeError(f"dtype must be one of {accepted}, got {dtype!r}")
    rotated = tensor.new_empty(tensor.shape, dtype=dtype)
    _launch(transform_kernel, tensor, signs, (rotated,), LARGEST_BLOCK)
    return rotated


def transform_and_quantize(
    tensor: torch.Tensor, signs: torch.Tensor, per: str = "block", block: int = 128
) -> Quantized:
    """Rotate each row and round it to e4m3; a scale per block takes one kernel, which reads a tile once.

    The result is ``quantize(transform(tensor, signs, torch.float32), per, block)``, to the bit. Per tensor
    and per head it is computed so, because amax must be known first; and per block where a tile, as
    float32, does not fit into the GPU's shared memory: head_dim 256 with blocks of 128 and 99 KiB.

    Args:
        tensor, signs: as of :func:`transform`.
        per, block: as of :func:`kernels.quantization.quantize`.

    Returns:
        :class:`Quantized`: values in ``torch.float8_e4m3fn``, of ``tensor``'s shape, and their scale.

    Raises:
        TypeError, ValueError: as of :func:`transform` and :func:`kernels.quantization.quantize`.
        RuntimeError: the GPU has no FP8 (compute capability below 8.9).
    """
    _check(tensor, signs, per, block)
    check_fp8(tensor)
    if per != "block" or _tile_bytes(block, tensor.shape[3]) > shared_bytes(tensor):
        return quantize(transform(tensor, signs, torch.float32), per, block)
    values = tensor.new_empty(tensor.shape, dtype=torch.float8_e4m3fn)
    scale = tensor.new_empty(scale_shape(tensor, per, block), dtype=torch.float32)
    _launch(transform_and_quantize_kernel, tensor, signs, (values, scale), block)
    return Quantized(values, scale)


def _launch(kernel, tensor: torch.Tensor, signs: torch.Tensor, outputs: tuple, block: int) -> None:
    batch, heads, seq, head_dim = tensor.shape
    if tensor.numel() == 0:
        return
    constants, options = rotation_sizes(block, head_dim)
    with launch_device(tensor):
        kernel[(batch * heads * triton.cdiv(seq, block),)](
            tensor,
            signs.contiguous(),
            *outputs,
            tensor.stride(),
            heads,
            seq,
            **constants,
            **options,
        )


def _check(tensor: torch.Tensor, signs: torch.Tensor, per: str, block: int) -> None:
    check_arguments(tensor, per, block)
    check_device("tensor", tensor)
    head_dim = tensor.shape[3]
    _check_head_dim("the head_dim of tensor", head_dim)
    if not isinstance(signs, torch.Tensor):
        raise TypeError(f"signs must be a torch.Tensor, got {type(signs).__name__}")
    if signs.shape != (head_dim,):
        raise ValueError(f"signs must have shape ({head_dim},), got {tuple(signs.shape)}")
    if signs.dtype != torch.float32:
        raise TypeError(f"signs has dtype {signs.dtype}; accepted: torch.float32")
    if signs.device != tensor.device:
        raise ValueError(f"signs is on {signs.device}, but tensor is on {tensor.device}")


def _check_head_dim(name: str, head_dim: int) -> None:
    if isinstance(head_dim, bool) or not isinstance(head_dim, int):
        raise TypeError(f"{name} must be an integer, got {type(head_dim).__name__}")
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim & (head_dim - 1):
        raise ValueError(
            f"{name} must be a power of two from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}"
        )


def rotation_sizes(block: int, head_dim: int) -> tuple[dict, dict]:
    """Constants and options of both kernels; tiles are as large as those of plain quantization."""
    constants, options = tile_sizes(block, head_dim)
    return constants | {"STEPS": head_dim.bit_length() - 1}, options


def _tile_bytes(block: int, head_dim: int) -> int:
    """What exchanging a tile between threads may take: before Hopper, all of it at once in float32."""
    return block * head_dim * torch.float32.itemsize


def configurations() -> Iterator[Configuration]:
    """Both kernels at several widths."""
    for dtype, head_dim, label in widths():
        shared = {
            "tensor_ptr": POINTER_TYPES[dtype],
            "signs_ptr": "*fp32",
            "tensor_strides": strides(4),
            "heads": "i32",
            "seq": "i32x16",
        }
        sizes = rotation_sizes(LARGEST_BLOCK, head_dim)
        rotated = {"rotated_ptr": POINTER_TYPES[dtype]}
        yield Configuration(label, transform_kernel, shared | rotated, *sizes)
        tile_bytes = _tile_bytes(LARGEST_BLOCK, head_dim)
        yield Configuration(
            label,
            transform_and_quantize_kernel,
            shared | {"values_ptr": "*fp8e4nv", "scale_ptr": "*fp32"},
            *sizes,
            tuple(each for each in FP8_ARCHITECTURES if SHARED_BYTES[each] >= tile_bytes),
        )
