# loses: test_any_rows
"""The ragged last block of rows has no program."""

import torch
import triton
import triton.language as tl

BLOCK_M = 16


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
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    is_row = row < rows
    inside = is_row[:, None] & (column[None, :] < HEAD_DIM)
    row = row.to(tl.int64)
    output_places = row[:, None] * outputs_strides[1] + column[None, :] * outputs_strides[2]
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for index in range(0, splits):
        split = tl.cast(index, tl.int64)
        logsumexp = tl.load(
            logsumexps_ptr + split * logsumexps_strides[0] + row * logsumexps_strides[1],
            mask=is_row,
            other=float("-inf"),
        )
        output = tl.load(
            outputs_ptr + split * outputs_strides[0] + output_places, mask=inside, other=0.0
        )
        new_max = tl.maximum(running_max, logsumexp)
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp(running_max - shift)
        weight = tl.exp(logsumexp - shift)
        running_sum = running_sum * rescale + weight
        accumulator = accumulator * rescale[:, None] + output * weight[:, None]
        running_max = new_max

    running_sum = tl.where(running_sum == 0.0, 1.0, running_sum)
    output = accumulator / running_sum[:, None]
    tl.store(output_ptr + row[:, None] * HEAD_DIM + column[None, :], output, mask=inside)
    tl.store(logsumexp_ptr + row, running_max + tl.log(running_sum), mask=is_row)


def merge_splits(
    outputs: torch.Tensor, logsumexps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    splits, rows, head_dim = outputs.shape
    output = torch.empty((rows, head_dim), dtype=torch.float32, device=outputs.device)
    logsumexp = torch.empty((rows,), dtype=torch.float32, device=outputs.device)
    merge_splits_kernel[(max(1, rows // BLOCK_M),)](
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
