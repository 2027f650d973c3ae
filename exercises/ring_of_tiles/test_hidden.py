"""The test of `ring_of_tiles` that a learner does not see: random sides and times, new in every grading.

The error allowed is that of the public tests: one unit in the last place of float32 for each addition.
"""

import pytest
import torch

from exercises.simulation import in_plain_words, tiles_of
from instruments.gluon_simulator import SimulationError, simulate


@pytest.mark.points(3, visibility="hidden", title="random sides, slots and times")
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_random_sides(student, seed, compare, stages):
    generator = torch.Generator().manual_seed(seed)
    # The TMA takes rows of a multiple of 16 bytes.
    rows, columns, depth = (
        8 * torch.randint(1, most, (), generator=generator).item() for most in (17, 9, 50)
    )
    left, right = (torch.randn(side, depth, generator=generator).half() for side in (rows, columns))
    product = torch.full((rows, columns), torch.nan)
    given = tiles_of(left), tiles_of(right), product
    try:
        simulate(student.product_kernel, (-(-rows // 64),), *given, STAGES=stages, seed=seed)
    except SimulationError as error:
        raise AssertionError(in_plain_words(error)) from None
    left, right = left.double(), right.double()
    allowed = depth * torch.finfo(torch.float32).eps * (left.abs() @ right.abs().T)
    compare(product, left @ right.T, allowed, dtype=torch.float32, name="The product")
