"""Merge any number of splits: the file to write your solution in."""

import torch
import triton
import triton.language as tl

BLOCK_M = 16  # queries a program


@triton.jit
def merge_splits_kernel(
    outputs_ptr,
    logsumexps_ptr,
    output_ptr,
    logsumexp_ptr,
    outputs_strides,
    logsumexps_strides,
    splits,
    rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries. BLOCK_D is HEAD_DIM, or the next power of two. The results are contiguous."""
    # Your turn: go over the splits, and load of each the outputs, [BLOCK_M, BLOCK_D], and the logsumexps,
    # [BLOCK_M], of this program's queries; keep the largest logsumexp so far, and relative to it the
    # sum of weights and the weighted sum of outputs; store their quotient and the new logsumexp.
    pass


def merge_splits(
    outputs: torch.Tensor, logsumexps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the outputs of attention over any number of splits of the keys.

    Args:
        outputs: (splits, rows, head_dim), float32, any strides, each split's softmax(scores) @ values;
            zeros where a split is empty.
        logsumexps: (splits, rows), float32, any strides, the log of each split's sum of exp(score);
            -inf where a split is empty.

    Returns:
        The output, (rows, head_dim), and the logsumexp, (rows,), of all splits together; contiguous.
    """
    splits, rows, head_dim = outputs.shape
    output = torch.empty((rows, head_dim), dtype=torch.float32, device=outputs.device)
    logsumexp = torch.empty((rows,), dtype=torch.float32, device=outputs.device)
    merge_splits_kernel[(triton.cdiv(rows, BLOCK_M),)](
        outputs,
        logsumexps,
        output,
        logsumexp,
        outputs.stride(),
        logsumexps.stride(),
        splits,
        rows,
        HEAD_DIM=head_dim,
        BLOCK_M=BLOCK_M,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return output, logsumexp
