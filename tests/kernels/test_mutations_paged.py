"""Bugs planted in the paged kernels must fail their tests; the kernels as they are must pass."""

from types import ModuleType
from unittest import mock

import pytest
import torch

import kernels
from tests.kernels import mutations_paged, test_paged
from tests.kernels.mutations import load
from tests.kernels.pages import Case, assert_decodes, assert_prefills, make_batch

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED,
    reason="a planted bug may read beyond a tensor, and on a GPU that ends every test after it",
)

# Two tiles of keys and a few tokens; blocks smaller than a tile; one sequence with a single token; tables
# wider than what is used.
PLAIN = Case((37, 0, 1), torch.float32, "as it is", (4, 2), 256, 5)
NARROW = Case((70,), torch.float16, "as it is", (2, 2), 24, 16, "sliced")
IN_FP8 = Case((20, 7), torch.float16, "fp8", (4, 2), 16, 16)


def check_decode(module: ModuleType) -> None:
    batch = make_batch(PLAIN)
    batch.block_tables = batch.block_tables[:, :-1]
    for splits in (2, 1):
        assert_decodes(batch, module=module, num_splits=splits)
    assert_decodes(make_batch(NARROW), module=module)
    for splits in (2, 1):
        assert_decodes(make_batch(IN_FP8), module=module, num_splits=splits)
    low = [torch.full((n, 2, 16), -256.0) for n in (5, 1)]
    query = torch.full((2, 4, 16), 128.0, device=kernels.device())
    low = make_batch(Case((5, 1), torch.float32), low)
    assert_decodes(low, module=module, query=query, scale=1.0, num_splits=3)


def check_prefill(module: ModuleType) -> None:
    # Padding for as many tokens as a tile has: what a bug writes there is seen, and harms nothing else.
    assert_prefills(make_batch(PLAIN), (36, 0, 1), module=module, padding=64)
    assert_prefills(make_batch(NARROW), (33,), module=module, padding=64)
    assert_prefills(make_batch(IN_FP8), (5, 7), module=module, padding=64)


def check_memory(module: ModuleType) -> None:
    memory = module.copy_runs.__globals__["runs"]
    with mock.patch.object(test_paged, "paged", module):
        for cache in ("as it is", "fp8"):
            test_paged.test_append_writes_the_slots_and_nothing_else(
                torch.float32, cache, "one tensor"
            )
        test_paged.test_blocks_are_copied_in_every_layer(torch.float32, 300)
        test_paged.test_blocks_are_swapped_out_and_in()
    assert memory([[5, 2], [6, 4]]) == [(5, 2, 1), (6, 4, 1)]


SUBJECTS = {
    "decode": (
        check_decode,
        mutations_paged.SHARED_MUTATIONS + mutations_paged.DECODE_MUTATIONS,
    ),
    "prefill": (check_prefill, mutations_paged.PREFILL_MUTATIONS),
    "memory": (check_memory, mutations_paged.MEMORY_MUTATIONS),
}
PLANTED = [
    pytest.param(check, mutation, id=f"{name}: {mutation}")
    for name, (check, planted) in SUBJECTS.items()
    for mutation in planted
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_kernels_as_they_are_pass(name, tmp_path):
    SUBJECTS[name][0](load(mutations_paged.PAGED, tmp_path))


@pytest.mark.parametrize(("check", "mutation"), PLANTED)
# What a bug computes with infinities and zeros, NumPy remarks upon.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_planted_bug_is_caught(check, mutation, tmp_path):
    broken = load(mutations_paged.PAGED, tmp_path, mutation)
    with pytest.raises(AssertionError):
        check(broken)
