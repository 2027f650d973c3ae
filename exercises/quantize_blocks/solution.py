"""Quantize blocks of rows to e4m3: one program a block, which is loaded once and has its own scale."""

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
    ### BEGIN SOLUTION
    ### load the block in float32, zeros outside of the matrix, and take its largest magnitude,
    ### amax. Its scale is amax / 448, or 1 where all of it is zero. Store the scale, and the elements
    ### over the scale as tl.float8e4nv, none outside of the matrix.
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
    column = tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
    inside = (row < rows) & (column < columns)
    place = row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    tile = tl.load(matrix_ptr + place, mask=inside, other=0.0).to(tl.float32)
    amax = tl.max(tl.max(tl.abs(tile), axis=1), axis=0)
    amax = tl.where(amax == 0.0, 448.0, amax)
    values = (tile * (448.0 / amax)).to(tl.float8e4nv)
    tl.store(scale_ptr + block, amax / 448.0)
    tl.store(values_ptr + row.to(tl.int64) * columns + column, values, mask=inside)
    ### END SOLUTION


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
    ### BEGIN SOLUTION
    ### allocate both outputs, launch one program a block, and return them. BLOCK_D is a power of
    ### two, at least columns.
    values = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=matrix.device)
    blocks = triton.cdiv(rows, block)
    scale = torch.empty(blocks, dtype=torch.float32, device=matrix.device)
    quantize_blocks_kernel[(blocks,)](
        matrix,
        values,
        scale,
        matrix.stride(0),
        matrix.stride(1),
        rows,
        columns,
        BLOCK=block,
        BLOCK_D=triton.next_power_of_2(columns),
    )
    return values, scale
    ### END SOLUTION
