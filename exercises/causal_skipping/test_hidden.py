"""The test of `causal_attention` that a learner does not see: random shapes, new in every grading.

The error allowed is that of the public tests.
"""

import pytest
import torch

import kernels


@pytest.mark.points(
    3, visibility="hidden", title="random lengths, tiles and strides in every dtype"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_shapes(student, seed, compare, dtype):
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return torch.randint(low, high + 1, (), generator=generator).item()

    seq_query, seq_key, step, scale = whole(1, 120), whole(1, 120), whole(1, 2), whole(1, 9) / 10
    block_m, block_n = 2 ** whole(4, 6), 2 ** whole(4, 6)
    query, key, value = (
        torch.randn(step * rows, 16, generator=generator).to(kernels.device(), dtype)[::step]
        for rows in (seq_query, seq_key, seq_key)
    )
    result = student.causal_attention(query, key, value, scale, block_m, block_n)
    assert isinstance(result, tuple | list) and len(result) == 2, "Two tensors must be returned."
    visible = seen(seq_query, seq_key)
    counts = []
    for rows in visible.split(block_m):
        tiles = rows.split(block_n, 1)
        full = [bool(tile.all()) and tile.shape[1] == block_n for tile in tiles]
        counts.append([sum(full), sum(bool(tile.any()) for tile in tiles)])
    compare(result[1].cpu(), torch.tensor(counts, dtype=torch.int32), 0.0, name="The tiles")
    hidden = ~visible.to(query.device)
    exact, careful = (
        (query.to(inside) @ key.to(inside).T * scale)
        .masked_fill(hidden, -torch.inf)
        .softmax(1)
        .nan_to_num()
        for inside in (torch.float64, torch.float32)
    )
    exact = exact @ value.double()
    careful = (careful.to(dtype).float() @ value.float()).to(dtype)
    largest = value.double().abs().max()
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * largest
    compare(result[0], exact, allowed, dtype=dtype, name="The output")


def seen(seq_query: int, seq_key: int) -> torch.Tensor:
    """Which query sees which key."""
    query, key = torch.arange(seq_query)[:, None], torch.arange(seq_key)
    return key <= query + seq_key - seq_query
