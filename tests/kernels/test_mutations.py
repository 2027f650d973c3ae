"""Planted bugs must fail the checks, and the kernels as they are must pass the same ones.

A bug that survives is a hole in the checks, not in the kernel.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from unittest import mock

import pytest
import torch

import kernels
from instruments import simulated_flash3
from instruments.gluon_simulator import NotSimulated, SimulationError
from kernels import flash2, flash2_backward, flash2_forward
from kernels.flash3 import Design
from tests.kernels import mutations, test_block_sparse, test_flash3, test_online_softmax
from tests.kernels.grid import Cell, assert_matches_oracle, exact_score_inputs, make_inputs
from tests.kernels.mutations import Mutation
from tests.kernels.training import assert_trains_like_the_oracle

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED,
    reason="a planted bug may read beyond a tensor, and on a GPU that ends every test after it",
)


def cell(*lengths: int, causal=False, heads=(1, 1), dtype=torch.float32) -> Cell:
    """A small cell of the correctness grid."""
    return Cell(dtype, 16, lengths, heads, causal, "contiguous")


TILE = 32
RAGGED = cell(63, 111)
GROUPED_CAUSAL = cell(63, 111, causal=True, heads=(2, 1), dtype=torch.float16)
ROWS_THAT_SEE_NOTHING = cell(63, 2, causal=True)
# The queries of the first tile see one key more than a tile of keys holds.
LAST_KEY_IN_A_TILE_OF_ITS_OWN = cell(TILE + 1, TILE + 2, causal=True)
# The first query sees all keys but one of the first tile.
ONE_KEY_OF_A_TILE_HIDDEN = cell(TILE + 1, 2 * TILE - 1, causal=True)
CELLS = (
    RAGGED,
    GROUPED_CAUSAL,
    ROWS_THAT_SEE_NOTHING,
    LAST_KEY_IN_A_TILE_OF_ITS_OWN,
    ONE_KEY_OF_A_TILE_HIDDEN,
)


def check_attention(attention: Callable, **options) -> None:
    """The grid's kinds of input, at the smallest size."""
    for each in CELLS:
        assert_matches_oracle(attention, *make_inputs(each), causal=each.causal, **options)
    extreme = exact_score_inputs(torch.float16, 1024, lengths=(33, 200), head_dim=16)
    assert_matches_oracle(attention, *extreme, scale=1.0)


def check_naive(module: ModuleType) -> None:
    check_attention(module.attention, rounded_scores=True)
    module.LONGEST_ROW_IN_REGISTERS = 32
    long = exact_score_inputs(torch.float32, 1024, lengths=(1, 2051), head_dim=16)
    assert_matches_oracle(module.attention, *long, scale=1.0)
    for each in (RAGGED, ROWS_THAT_SEE_NOTHING):
        assert_matches_oracle(module.attention, *make_inputs(each), causal=each.causal)


def check_softmaxes(module: ModuleType) -> None:
    tests = test_online_softmax
    for name in tests.SOFTMAXES:
        softmax = getattr(module, f"{name}_softmax")
        tests.test_matches_float64(softmax, 111, torch.float32)
        tests.test_hidden_elements_and_hidden_rows(softmax, torch.float16)
        tests.test_values_that_rise_block_after_block_are_rescaled(softmax)
    average = tests.test_the_average_never_stores_a_probability_and_is_the_same
    with mock.patch.object(tests, "online_softmax", module):
        # Two of these three rows of two blocks have their largest score in the second.
        average.hypothesis.inner_test(rows=3, columns=3000, seed=5)


def check_swapped(module: ModuleType) -> None:
    check_attention(functools.partial(module.attention, block_m=TILE, block_n=TILE))


def check_printed(module: ModuleType) -> None:
    check_attention(functools.partial(module.printed_attention, block_m=TILE, block_n=TILE))


def check_block_sparse(module: ModuleType) -> None:
    tests = test_block_sparse
    with mock.patch.object(tests, "block_sparse", module):
        for each in CELLS:
            everything = torch.ones([-(-n // TILE) for n in each.lengths], dtype=torch.bool)
            tests.assert_matches_oracle(
                *make_inputs(each), everything, block_size=TILE, causal=each.causal
            )
        several_tiles_a_block = tests.random_mask(RAGGED, 64)
        tests.assert_matches_oracle(*make_inputs(RAGGED), several_tiles_a_block, block_size=64)
        tests.test_rows_of_hidden_blocks_get_zeros(16)


# Tiles of 16, so that small inputs have whole tiles, edges and tiles that nobody sees.
FLASH2_CELLS = (
    (RAGGED, {"window": 20}),
    (GROUPED_CAUSAL, {}),
    (cell(17, 20, heads=(4, 2)), {}),
    (ROWS_THAT_SEE_NOTHING, {}),
    (ONE_KEY_OF_A_TILE_HIDDEN, {"window": 33}),
    (cell(33, 40), {"softcap": 2.0}),
    (cell(20, 40, causal=True, heads=(2, 1)), {"dropout": 0.3}),
)


def small_blocks(dtype, head_dim, architecture, optional=False) -> tuple[dict, dict]:
    return flash2_forward.block_sizes(16, 16, head_dim, 4, 1)


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """Attention made of two launchers, as :mod:`kernels.flash2` makes it of its own."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, *options):
            output, logsumexp = forward(query, key, value, *options)
            ctx.save_for_backward(query, key, value, output, logsumexp)
            ctx.options = options
            return output, logsumexp

        @staticmethod
        def backward(ctx, *grads):
            gradients = backward(*grads, *ctx.saved_tensors, *ctx.options)
            return *gradients, *[None] * len(ctx.options)

    with_options = mock.Mock(side_effect=Attention.apply)

    def attention(*tensors, **options):
        with mock.patch.object(flash2, "_forward", with_options):
            return flash2.attention(*tensors, **options)

    return attention


def check_flash2_forward(module: ModuleType) -> None:
    module.forward_blocks = small_blocks
    attention = differentiable(module.forward, flash2_backward.backward)
    for each, options in FLASH2_CELLS:
        assert_trains_like_the_oracle(attention, *make_inputs(each), causal=each.causal, **options)
    with mock.patch.object(flash2, "flash2_forward", module):
        for each in CELLS:
            split = functools.partial(flash2.split_attention, splits=3)
            assert_matches_oracle(split, *make_inputs(each), causal=each.causal)


def check_flash2_backward(module: ModuleType) -> None:
    module.key_value_blocks = module.query_blocks = small_blocks
    attention = differentiable(flash2_forward.forward, module.backward)
    for each, options in FLASH2_CELLS:
        assert_trains_like_the_oracle(attention, *make_inputs(each), causal=each.causal, **options)


# Tiles of 64 keys and of 128 queries, in rounds of so many programs.
FLASH3_CELLS = (
    (cell(63, 111, dtype=torch.float16), 1),
    # The last of the rounds has too few tiles for all, the last of the heads are too few to go together.
    (cell(130, 200, causal=True, heads=(4, 2), dtype=torch.float16), 3),
    (cell(200, 2, causal=True, heads=(3, 3), dtype=torch.bfloat16), 2),
    # The first query sees all keys but one of the first tile.
    (cell(64, 126, causal=True, dtype=torch.float16), 1),
    (cell(70, 500, dtype=torch.float16), 1),
)
# Each overlap; turns taken and not; with a producer and without.
FLASH3_DESIGNS = (
    Design(64),
    Design(64, 3, overlap="none", pingpong=True),
    Design(64, stages=1, overlap="softmax", pingpong=True, output_apart=False),
    Design(64, specialized=False, overlap="softmax"),
    Design(64, specialized=False, stages=3, overlap="none", output_apart=False),
)


def check_flash3(module: ModuleType) -> None:
    with mock.patch.object(simulated_flash3, "flash3_kernel", module.flash3_kernel):
        for design in FLASH3_DESIGNS:
            try:
                check_flash3_design(design)
            except NotSimulated:
                raise
            except SimulationError as error:
                raise AssertionError("the simulator names a mistake") from error


def check_flash3_design(design: Design) -> None:
    for each, programs in FLASH3_CELLS:
        attention = functools.partial(simulated_flash3.attention, design=design, programs=programs)
        assert_matches_oracle(attention, *make_inputs(each), causal=each.causal)
    extreme = exact_score_inputs(torch.float16, 1024, lengths=(33, 200), head_dim=16)
    assert_matches_oracle(attention, *extreme, scale=1.0)
    test_flash3.test_every_tile_that_is_seen_is_loaded_once(design)


SUBJECTS = {
    "naive": (mutations.NAIVE, check_naive, mutations.NAIVE_MUTATIONS),
    "online_softmax": (
        mutations.ONLINE_SOFTMAX,
        check_softmaxes,
        mutations.ONLINE_SOFTMAX_MUTATIONS,
    ),
    "flash1 swapped": (
        mutations.FLASH1,
        check_swapped,
        mutations.HELPER_MUTATIONS + mutations.SWAPPED_MUTATIONS,
    ),
    "flash1 printed": (
        mutations.FLASH1,
        check_printed,
        mutations.HELPER_MUTATIONS + mutations.PRINTED_MUTATIONS,
    ),
    "block_sparse": (
        mutations.BLOCK_SPARSE,
        check_block_sparse,
        mutations.HELPER_MUTATIONS + mutations.BLOCK_SPARSE_MUTATIONS,
    ),
    "flash2 forward": (
        mutations.FLASH2_FORWARD,
        check_flash2_forward,
        mutations.SCORE_OPTIONS_MUTATIONS + mutations.FLASH2_FORWARD_MUTATIONS,
    ),
    "flash2 backward": (
        mutations.FLASH2_BACKWARD,
        check_flash2_backward,
        mutations.SCORE_OPTIONS_MUTATIONS + mutations.FLASH2_BACKWARD_MUTATIONS,
    ),
    "flash3": (mutations.FLASH3, check_flash3, mutations.FLASH3_MUTATIONS),
}
PLANTED = [
    pytest.param(modules, check, mutation, id=f"{name}: {mutation}")
    for name, (modules, check, planted) in SUBJECTS.items()
    for mutation in planted
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_kernel_as_it_is_passes(name, tmp_path):
    modules, check, _ = SUBJECTS[name]
    check(mutations.load(modules, tmp_path))


@pytest.mark.parametrize(("modules", "check", "mutation"), PLANTED)
# What a bug computes with infinities and zeros, NumPy remarks upon.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_planted_bug_is_caught(modules, check, mutation, tmp_path):
    broken = mutations.load(modules, tmp_path, mutation)
    with pytest.raises(AssertionError):
        check(broken)


def test_a_mutation_that_no_longer_fits_its_module_is_named():
    mutation = Mutation("no rescale", "kernels.flash1", "old", "new", times=2)
    assert mutation.apply("old old") == "new new"
    with pytest.raises(ValueError, match="'no rescale' expects 'old' 2 times in .*, found it 1"):
        mutation.apply("old")


def test_a_mutation_of_another_module_is_refused(tmp_path):
    mutation = Mutation("no rescale", "kernels.flash1", "old", "new")
    with pytest.raises(ValueError, match="kernels.flash1 is not one of kernels.naive"):
        mutations.load(("kernels.naive",), tmp_path, mutation)
