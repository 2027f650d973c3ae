"""Rotate rows by the fast Hadamard transform: a butterfly for each power of two, all in registers."""

import torch
import triton
import triton.language as tl


@triton.jit
def butterfly(tile, DISTANCE: tl.constexpr):
    """Elements of a row that lie DISTANCE apart, in the same 2 * DISTANCE, become sum and difference.

    The tile is [ROWS, D], both powers of two.
    """
    ### BEGIN SOLUTION
    ### bring the two of each pair into a dimension of their own, the last one; tl.split them;
    ### tl.join their sum and their difference; and go back the same way to [ROWS, D], which are
    ### tile.shape[0] and tile.shape[1]. Return the new tile.
    ROWS: tl.constexpr = tile.shape[0]
    D: tl.constexpr = tile.shape[1]
    pairs = tl.reshape(tile, [ROWS, D // (2 * DISTANCE), 2, DISTANCE])
    first, second = tl.split(
        tl.permute(pairs, (0, 1, 3, 2))
    )  # [ROWS, D // (2 * DISTANCE), DISTANCE]
    pairs = tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2))
    return tl.reshape(pairs, [ROWS, D])
    ### END SOLUTION


@triton.jit
def hadamard_rows_kernel(
    matrix_ptr,
    signs_ptr,
    rotated_ptr,
    row_stride,
    column_stride,
    rows,
    D: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK rows of D columns; D is 2**STEPS."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
    column = tl.arange(0, D)  # [D]
    place = row.to(tl.int64) * row_stride + column.to(tl.int64)[None, :] * column_stride
    tile = tl.load(matrix_ptr + place, mask=row < rows, other=0.0).to(tl.float32)
    ### BEGIN SOLUTION
    ### load the signs, flip those of the tile's columns, apply a butterfly for each distance 1, 2,
    ### 4, ... below D (tl.static_range), and divide by the root of D.
    signs = tl.load(signs_ptr + column)
    tile = tile * signs[None, :]
    for step in tl.static_range(STEPS):
        tile = butterfly(tile, 2**step)
    tile = tile * (2.0 ** (-0.5 * STEPS))
    ### END SOLUTION
    tl.store(
        rotated_ptr + row.to(tl.int64) * D + column[None, :],
        tile.to(rotated_ptr.dtype.element_ty),
        mask=row < rows,
    )


def hadamard_rows(matrix: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Each row x becomes (x * signs) H / sqrt(d), where H is Sylvester's Hadamard matrix.

    Args:
        matrix: (rows, d), float16, bfloat16 or float32, any strides; d is a power of two from 16 to 256.
        signs: (d,), float32, each 1 or -1.

    Returns:
        (rows, d) in the dtype of matrix, contiguous; computed in float32.
    """
    rows, d = matrix.shape
    ### BEGIN SOLUTION
    ### allocate the output, launch one program for every BLOCK rows, and return the output.
    rotated = torch.empty((rows, d), dtype=matrix.dtype, device=matrix.device)
    block = 16
    hadamard_rows_kernel[(triton.cdiv(rows, block),)](
        matrix,
        signs,
        rotated,
        matrix.stride(0),
        matrix.stride(1),
        rows,
        D=d,
        STEPS=d.bit_length() - 1,
        BLOCK=block,
    )
    return rotated
    ### END SOLUTION
