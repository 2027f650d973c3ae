"""The test of `softmax_under_the_product` that a learner does not see: random lengths and times.

Expected values and the errors allowed come from the book's oracle, as in the public tests.
"""

import math

import pytest
import torch

from exercises.simulation import in_plain_words, tiles_of
from instruments.gluon_simulator import SimulationError, simulate
from kernels import reference

BLOCK, HEAD_DIM = 64, 64


@pytest.mark.points(3, visibility="hidden", title="random lengths and times")
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_random_lengths(student, seed, tiles):
    generator = torch.Generator().manual_seed(seed)
    seq_query = torch.randint(1, 130, (), generator=generator).item()
    seq_key = tiles * BLOCK - torch.randint(0, BLOCK, (), generator=generator).item()
    query, key, value = (
        (size * torch.randn(1, 1, rows, HEAD_DIM, generator=generator)).half()
        for rows, size in ((seq_query, 2), (seq_key, 1), (seq_key, 1))
    )
    output = torch.full((seq_query, HEAD_DIM), torch.nan, dtype=torch.float16)
    logsumexp = torch.full((seq_query,), torch.nan)
    try:
        done = simulate(
            student.attention_kernel,
            (-(-seq_query // BLOCK),),
            *(tiles_of(matrix[0, 0]) for matrix in (query, key, value)),
            output,
            logsumexp,
            math.log2(math.e) / math.sqrt(HEAD_DIM),
            seed=seed,
        )
    except SimulationError as error:
        raise AssertionError(in_plain_words(error)) from None
    released = sum(span.name == "phase" and ".empty" in span.lane for span in done.trace)
    programs = -(-seq_query // BLOCK)
    assert released == programs * (2 * tiles + 1), "Every tile must be released once."
    given = query, key, value
    expected, expected_logsumexp = reference.attention(*given, return_logsumexp=True)
    assert reference.errors(output[None, None], expected).within(reference.error_budget(*given)), (
        f"The output of {seq_query} queries and {seq_key} keys is wrong."
    )
    errors = reference.errors(logsumexp[None, None], expected_logsumexp)
    assert errors.within(reference.logsumexp_budget(*given)), (
        f"The logsumexp of {seq_query} queries and {seq_key} keys is wrong."
    )
