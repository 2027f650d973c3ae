"""The matrix of scores: a program computes one tile of it, and loads nothing for a hidden one."""

import torch
import triton
import triton.language as tl


@triton.jit
def score_matrix_kernel(
    query_ptr,
    key_ptr,
    scores_ptr,
    query_strides,  # of a row and of a column, as in key_strides
    key_strides,
    seq_query,
    seq_key,
    head_dim,
    scale,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of scale * query @ key.T, [BLOCK_M, BLOCK_N]. The scores are float32 and contiguous.

    Write tl.dot(left, right, input_precision="ieee"): by default a GPU would round float32 to TF32.
    """
    ### BEGIN SOLUTION
    ### find this program's queries and keys; loop over the head dimension, BLOCK_D at a time:
    ### load a tile of each, and accumulate their product (in a tile that is hidden, do not);
    ### scale, hide what the causal mask hides, and store the scores that there are.
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    first_column = tl.program_id(1).to(tl.int64) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = first_column + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    offset = seq_key - seq_query  # query r sees the keys up to r + offset

    dims_needed = head_dim
    if CAUSAL:
        # The last row sees the most and the first key is seen by the most: if not there, nowhere.
        hidden = first_column > first_row + BLOCK_M - 1 + offset
        dims_needed = tl.where(hidden, 0, head_dim)
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, dims_needed, BLOCK_D):
        dims = start + tl.arange(0, BLOCK_D)  # [BLOCK_D]
        query = tl.load(  # [BLOCK_M, BLOCK_D]
            query_ptr + rows[:, None] * query_strides[0] + dims[None, :] * query_strides[1],
            mask=(rows[:, None] < seq_query) & (dims[None, :] < head_dim),
            other=0.0,
        )
        key = tl.load(  # [BLOCK_N, BLOCK_D]
            key_ptr + columns[:, None] * key_strides[0] + dims[None, :] * key_strides[1],
            mask=(columns[:, None] < seq_key) & (dims[None, :] < head_dim),
            other=0.0,
        )
        accumulator = tl.dot(query, tl.trans(key), accumulator, input_precision="ieee")

    scores = accumulator * scale  # [BLOCK_M, BLOCK_N]
    if CAUSAL:
        scores = tl.where(columns[None, :] <= rows[:, None] + offset, scores, float("-inf"))
    tl.store(
        scores_ptr + rows[:, None] * seq_key + columns[None, :],
        scores,
        mask=(rows[:, None] < seq_query) & (columns[None, :] < seq_key),
    )
    ### END SOLUTION


def score_matrix(
    query: torch.Tensor, key: torch.Tensor, scale: float, causal: bool
) -> torch.Tensor:
    """scale * query @ key.T, with minus infinity where a causal mask hides a key.

    Args:
        query: (seq_query, d), float16, bfloat16 or float32, any strides.
        key: (seq_key, d), of the same dtype, any strides.
        scale: what the scores are multiplied with.
        causal: whether query r sees only the keys up to r + seq_key - seq_query.

    Returns:
        (seq_query, seq_key), float32, contiguous.
    """
    seq_query, head_dim = query.shape
    seq_key = key.shape[0]
    scores = torch.empty((seq_query, seq_key), dtype=torch.float32, device=query.device)
    score_matrix_kernel[(triton.cdiv(seq_query, 32), triton.cdiv(seq_key, 32))](
        query,
        key,
        scores,
        query.stride(),
        key.stride(),
        seq_query,
        seq_key,
        head_dim,
        scale,
        CAUSAL=causal,
        BLOCK_M=32,
        BLOCK_N=32,
        BLOCK_D=32,
    )
    return scores
