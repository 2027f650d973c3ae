"""A matrix times a vector: a program owns a tile of rows and walks along the columns, tile by tile."""

import torch
import triton
import triton.language as tl


@triton.jit
def matrix_vector_kernel(
    matrix_ptr,
    vector_ptr,
    product_ptr,
    rows,
    columns,
    row_stride,
    column_stride,
    vector_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M elements of the product, from tiles of BLOCK_M rows and BLOCK_N columns."""
    ### BEGIN SOLUTION
    ### find this program's rows; start an accumulator with zeros, in float32;
    ### loop over the columns: load a tile of the matrix and its part of the vector, and
    ### accumulate; after the loop store the rows that there are.
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    accumulator = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, columns, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N).to(tl.int64)  # [BLOCK_N]
        # What is switched off becomes 0 in both: 0 times whatever lies there could be NaN.
        tile = tl.load(  # [BLOCK_M, BLOCK_N]
            matrix_ptr + row[:, None] * row_stride + column[None, :] * column_stride,
            mask=(row[:, None] < rows) & (column[None, :] < columns),
            other=0.0,
        ).to(tl.float32)
        part = tl.load(  # [BLOCK_N]
            vector_ptr + column * vector_stride, mask=column < columns, other=0.0
        ).to(tl.float32)
        accumulator += tl.sum(tile * part[None, :], axis=1)
    tl.store(product_ptr + row, accumulator, mask=row < rows)
    ### END SOLUTION


def matrix_vector(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product of a matrix and a vector.

    Args:
        matrix: (rows, columns), float16, bfloat16 or float32, any strides.
        vector: (columns,), of the same dtype, any stride.

    Returns:
        (rows,), float32, contiguous.
    """
    ### BEGIN SOLUTION
    ### allocate the output, choose BLOCK_M and BLOCK_N (powers of two, BLOCK_M at least 16),
    ### launch a program for every tile of rows, and return the output.
    rows, columns = matrix.shape
    product = torch.empty(rows, dtype=torch.float32, device=matrix.device)
    matrix_vector_kernel[(triton.cdiv(rows, 16),)](
        matrix,
        vector,
        product,
        rows,
        columns,
        matrix.stride(0),
        matrix.stride(1),
        vector.stride(0),
        BLOCK_M=16,
        BLOCK_N=64,
    )
    return product
    ### END SOLUTION
