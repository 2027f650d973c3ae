"""The test of `decode` that a learner does not see: random sequences and blocks, new in every grading."""

import math

import pytest
import torch

import kernels


@pytest.mark.points(2, visibility="hidden", title="random sequences in random blocks")
def test_random_pages(student, seed, compare):
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    block_size, heads, head_dim = whole(1, 40), whole(1, 3), whole(1, 48)
    lengths = [whole(0, 90) for _ in range(3)]
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=generator)
    caches = torch.full((2, len(order), block_size, heads, head_dim), torch.nan)
    tables = order[-1].expand(3, max(counts) + 1).int().clone()
    query = 3 * torch.randn(3, heads, head_dim, generator=generator)
    exact = torch.zeros(3, heads, head_dim, dtype=torch.float64)
    largest, taken = 1.0, 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        tables[row, :count] = order[taken : taken + count].int()
        taken += count
        tokens = torch.arange(length)
        places = tables[row, tokens // block_size].long(), tokens % block_size
        key, value = torch.randn(2, length, heads, head_dim, generator=generator)
        caches[0][places], caches[1][places] = key, value
        if length:
            scores = torch.einsum("hd,thd->ht", query[row].double(), key.double())
            weights = (scores / math.sqrt(head_dim)).softmax(1)
            exact[row] = torch.einsum("ht,thd->hd", weights, value.double())
            largest = max(largest, value.abs().max().item())
    device = kernels.device()
    output = student.decode(
        query.to(device),
        *caches.to(device),
        tables.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
    )
    # As in the public tests.
    allowed = torch.full_like(exact, 64 * torch.finfo(torch.float32).eps * largest)
    compare(output.cpu(), exact, allowed, dtype=torch.float32, name="The output")
