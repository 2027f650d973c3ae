"""Quantize blocks of rows to e4m3: the file to write your solution in."""

import torch
import triton
import triton.language as tl


@triton.jit
def quantize_blocks_kernel(
    matrix_ptr,
    values_ptr,
    scale_ptr,
    row_stride,
    column_stride,
    rows,
    columns,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block: BLOCK rows with all their columns, and the scale that they share."""
    # Your turn: load the block in float32, zeros outside of the matrix, and take its largest magnitude,
    # amax. Its scale is amax / 448, or 1 where all of it is zero. Store the scale, and the elements
    # over the scale as tl.float8e4nv, none outside of the matrix.
    pass


def quantize_blocks(matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to e4m3, with a scale for each block of rows.

    Args:
        matrix: (rows, columns), float16, bfloat16 or float32; any strides; finite and not empty.
        block: rows that share a scale, a power of two.

    Returns:
        The values, (rows, columns) in torch.float8_e4m3fn, contiguous; and the scales, float32, one for
        each block, the last of which may have fewer rows. Value times scale is about the element.
    """
    rows, columns = matrix.shape
    # Your turn: allocate both outputs, launch one program a block, and return them. BLOCK_D is a power of
    # two, at least columns.
    raise NotImplementedError("quantize_blocks is not written yet")
