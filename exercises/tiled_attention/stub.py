"""Tiled attention: the file to write your solution in."""

import torch
import triton
import triton.language as tl


@triton.jit
def tiled_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    query_strides,  # of a row and of a column, as in key_strides and value_strides
    key_strides,
    value_strides,
    seq_query,
    seq_key,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of BLOCK_M queries against all keys, BLOCK_N at a time. The output is contiguous.

    Write tl.dot(left, right, input_precision="ieee"): by default a GPU would round float32 to TF32.
    """
    # Your turn: load this program's tile of queries; set up its maxima, sums and accumulator;
    # loop over the tiles of keys: load one, with its values; compute the scores, and hide those
    # past the end; update maxima, sums and accumulator;
    # after the loop divide, and store the rows that there are.
    pass


def tiled_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """softmax(scale * query @ key.T) @ value, with one tile of scores at a time.

    Args:
        query: (seq_query, d), float16, bfloat16 or float32, any strides; d 16, 32, 64 or 128.
        key, value: (seq_key, d), of the same dtype; -inf allowed in key.
        scale: what the scores are multiplied with.

    Returns:
        (seq_query, d) in the dtype of query. A query whose scores are all -inf, or that has no keys,
        gets zeros.
    """
    seq_query, head_dim = query.shape
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(seq_query, 64),)
    tiled_attention_kernel[grid](
        query,
        key,
        value,
        output,
        query.stride(),
        key.stride(),
        value.stride(),
        seq_query,
        key.shape[0],
        scale,
        HEAD_DIM=head_dim,
        BLOCK_M=64,
        BLOCK_N=32,
        num_stages=2,  # the third tile of keys would not fit into every GPU's shared memory
    )
    return output
