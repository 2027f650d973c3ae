"""A matrix times a vector: the file to write your solution in."""

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
    # Your turn: find this program's rows; start an accumulator with zeros, in float32;
    # loop over the columns: load a tile of the matrix and its part of the vector, and
    # accumulate; after the loop store the rows that there are.
    pass


def matrix_vector(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product of a matrix and a vector.

    Args:
        matrix: (rows, columns), float16, bfloat16 or float32, any strides.
        vector: (columns,), of the same dtype, any stride.

    Returns:
        (rows,), float32, contiguous.
    """
    # Your turn: allocate the output, choose BLOCK_M and BLOCK_N (powers of two, BLOCK_M at least 16),
    # launch a program for every tile of rows, and return the output.
    raise NotImplementedError("matrix_vector is not written yet")
