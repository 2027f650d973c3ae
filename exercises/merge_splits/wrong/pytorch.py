# loses: test_loads_once
"""PyTorch merges, and the kernel copies."""

import torch
import triton
import triton.language as tl


@triton.jit
def merge_splits_kernel(source_ptr, output_ptr, numbers, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(source_ptr + place, mask=place < numbers)
    tl.store(output_ptr + place, source, mask=place < numbers)


def merge_splits(outputs, logsumexps):
    weights = logsumexps.softmax(0).nan_to_num()
    merged = (weights[..., None] * outputs).sum(0).contiguous()
    output = torch.empty(merged.shape, device=merged.device)
    grid = (triton.cdiv(merged.numel(), 1024),)
    merge_splits_kernel[grid](merged, output, merged.numel(), BLOCK=1024)
    return output, logsumexps.logsumexp(0)
