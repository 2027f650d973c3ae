"""The test of `classify_tiles` that a learner does not see: random shapes, new in every grading."""

import random

import pytest
import torch


@pytest.mark.points(3, visibility="hidden", title="random lengths and tiles")
def test_random_shapes(student, seed):
    numbers = random.Random(seed)
    for _ in range(60):
        seq_query, seq_key = numbers.randint(0, 90), numbers.randint(0, 90)
        block_m, block_n = numbers.randint(1, 40), numbers.randint(1, 40)
        query, key = torch.arange(seq_query)[:, None], torch.arange(seq_key)
        visible = key <= query + seq_key - seq_query
        expected = [
            [
                int(tile.any()) + int(tile.all() and tile.shape[1] == block_n)
                for tile in rows.split(block_n, 1)
                if tile.numel()
            ]
            for rows in visible.split(block_m)
            if len(rows)
        ]
        came = student.classify_tiles(seq_query, seq_key, block_m, block_n)
        shape = (-(-seq_query // block_m), -(-seq_key // block_n))
        given = f"classify_tiles{(seq_query, seq_key, block_m, block_n)}"
        assert isinstance(came, torch.Tensor) and came.dtype == torch.int8, (
            f"{given} must be a tensor in int8."
        )
        assert came.shape == shape, f"{given} has the shape {tuple(came.shape)}; right is {shape}."
        right = torch.tensor(expected, dtype=torch.int8).view(shape)
        assert torch.equal(came, right), f"{given} is {came.tolist()}; right is {right.tolist()}."
