"""The matrix of scores: the file to write your solution in."""

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
    # Your turn: find this program's queries and keys; loop over the head dimension, BLOCK_D at a time:
    # load a tile of each, and accumulate their product (in a tile that is hidden, do not);
    # scale, hide what the causal mask hides, and store the scores that there are.
    pass


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
