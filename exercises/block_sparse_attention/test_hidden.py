"""The test of `block_sparse_attention` that a learner does not see: random masks, new in every grading.

The error allowed is that of the public tests.
"""

import pytest
import torch

import kernels

BLOCK = 32


@pytest.mark.points(3, visibility="hidden", title="random masks and lengths in every dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_masks(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)
    seq_query, seq_key = torch.randint(33, 180, (2,), generator=generator).tolist()
    query, key, value = (
        torch.randn(rows, 16, generator=generator).to(kernels.device(), dtype)
        for rows in (seq_query, seq_key, seq_key)
    )
    shape = (-(-seq_query // BLOCK), -(-seq_key // BLOCK))
    block_mask = (torch.rand(shape, generator=generator) < 0.5).to(kernels.device())
    block_mask[-1] = False
    block_mask[0, 0] = True
    scale = torch.rand((), generator=generator).item() + 0.1

    visible = block_mask.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    visible = visible[:seq_query, :seq_key]
    unseen = ~visible.any(0)[:, None]
    key, value = key.masked_fill(unseen, torch.nan), value.masked_fill(unseen, torch.nan)

    def attention(inside: torch.dtype) -> torch.Tensor:
        scores = query.to(inside) @ key.to(inside).masked_fill(unseen, 0.0).T * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(1).nan_to_num()
        weights = weights if inside == torch.float64 else weights.to(dtype).to(inside)
        return weights @ value.to(inside).masked_fill(unseen, 0.0)

    exact, careful = attention(torch.float64), attention(torch.float32).to(dtype)
    largest = value.double().nan_to_num().abs().max()
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * largest
    output = student.block_sparse_attention(query, key, value, block_mask, scale)
    compare(output, exact, allowed, dtype=dtype, name="The output")
