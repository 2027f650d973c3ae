"""Attention tile by tile: a program owns a tile of queries and takes in the keys, a tile at a time."""

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
    ### BEGIN SOLUTION
    ### load this program's tile of queries; set up its maxima, sums and accumulator;
    ### loop over the tiles of keys: load one, with its values; compute the scores, and hide those
    ### past the end; update maxima, sums and accumulator;
    ### after the loop divide, and store the rows that there are.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    dims = tl.arange(0, HEAD_DIM).to(tl.int64)  # [HEAD_DIM]
    query = tl.load(  # [BLOCK_M, HEAD_DIM]
        query_ptr + rows[:, None] * query_strides[0] + dims[None, :] * query_strides[1],
        mask=rows[:, None] < seq_query,
        other=0.0,
    )

    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    for start in range(0, seq_key, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)  # [BLOCK_N]
        in_keys = columns < seq_key
        key = tl.load(  # [BLOCK_N, HEAD_DIM]
            key_ptr + columns[:, None] * key_strides[0] + dims[None, :] * key_strides[1],
            mask=in_keys[:, None],
            other=0.0,
        )
        value = tl.load(  # [BLOCK_N, HEAD_DIM]
            value_ptr + columns[:, None] * value_strides[0] + dims[None, :] * value_strides[1],
            mask=in_keys[:, None],
            other=0.0,
        )

        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        # A key that was loaded as zeros has score 0, whose exponential counts: hide it.
        scores = tl.where(in_keys[None, :], scores, float("-inf"))

        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        # While nothing but -inf was seen, the maximum is -inf, and -inf - -inf is NaN: subtract 0.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        exponentials = tl.exp(scores - shift[:, None])
        # Sum and accumulator are relative to the old maximum; make both relative to the new one.
        rescale = tl.exp(running_max - shift)
        running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
        # Tensor cores multiply tiles of one dtype, and add in float32.
        accumulator = accumulator * rescale[:, None] + tl.dot(
            exponentials.to(value.dtype), value, input_precision="ieee"
        )
        running_max = new_max

    # A query that saw no key has sum 0 and accumulator 0: divided by 1 it becomes zeros.
    output = accumulator / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]
    tl.store(
        output_ptr + rows[:, None] * HEAD_DIM + dims[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=rows[:, None] < seq_query,
    )
    ### END SOLUTION


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
