"""Bugs planted in FP8 must fail their tests; the modules as they are must pass."""

from types import ModuleType
from unittest import mock

import pytest
import torch

import kernels
from instruments import simulated_fp8
from instruments.gluon_simulator import SimulationError
from kernels import fp8, fp8_forward, fp8_preparation
from kernels.fp8_hopper import Design
from tests.kernels import mutations_fp8, test_fp8, test_hadamard, test_quantization
from tests.kernels.mutations import load

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED,
    reason="a planted bug may read beyond a tensor, and on a GPU that ends every test after it",
)


def check_quantization(module: ModuleType) -> None:
    tests = test_quantization
    with mock.patch.object(tests, "quantization", module):
        for per in tests.SHARERS:
            for transposed in (False, True):
                tests.test_kernel_and_emulation_agree_to_the_bit(per, transposed, torch.float32)
                tests.test_ragged_lengths(129, transposed, per)
        tests.test_next_to_ties_every_rounding_counts(3.3)
        tests.test_infinities_saturate_and_nan_stays(module, "head", torch.float32)
        tests.test_where_nothing_is_finite_and_not_zero_the_scale_is_1(module, "block", 0.0)
        tests.test_the_smallest_and_largest_amax(module, 1e-40)


def check_hadamard(module: ModuleType) -> None:
    tests = test_hadamard
    with mock.patch.object(tests, "hadamard", module):
        tests.test_matches_the_matrix_in_float64(torch.float32, 64)
        for per in tests.SHARERS:
            tests.test_fused_is_the_same_as_one_after_the_other(per, 16, torch.float16)


def check_hopper(module: ModuleType) -> None:
    # Two heads share keys; two tiles of queries and three of keys, whose blocks of V differ in size.
    query, key, value = test_fp8.tensors(150, 270, heads=(4, 2), head_dim=16)
    query[:, :, 64:128] *= 4
    value[:, :, 128:256] /= 512
    key[:, :, :128] /= 2
    # Most of the weight on few keys, so that the others are small; and maxima rise from tile to tile.
    key[:, :, 260] *= 4
    key[:, :, 140] *= 8
    key[:, :, 10] *= 32
    with mock.patch.object(simulated_fp8, "fp8_kernel", module.fp8_kernel):
        for design in (Design(), Design(overlap="softmax", pingpong=True, warpgroups=3, stages=1)):
            test_fp8.assert_equals_emulation(
                simulated_fp8.attention, query, key, value, design=design, causal=True
            )


def check_forward(module: ModuleType) -> None:
    query, key, value = test_fp8.tensors(130, 150, head_dim=16)
    query[:, :, 64:128] *= 4
    key[:, :, :64] /= 4
    value[:, :, :64] /= 64
    with mock.patch.object(fp8_forward, "forward_kernel", module.forward_kernel):
        test_fp8.assert_within_budget(fp8.attention, query, key, value, causal=True)


def check_preparation(module: ModuleType) -> None:
    with mock.patch.object(fp8_preparation, "value_kernel", module.value_kernel):
        for interleaved in (False, True):
            test_fp8.test_v_is_transposed_and_quantized_as_the_emulation_does(128, interleaved)


SUBJECTS = {
    "quantization": (
        mutations_fp8.QUANTIZATION,
        check_quantization,
        mutations_fp8.QUANTIZATION_MUTATIONS,
    ),
    "hopper": (mutations_fp8.HOPPER, check_hopper, mutations_fp8.HOPPER_MUTATIONS),
    "forward": (mutations_fp8.FORWARD, check_forward, mutations_fp8.FORWARD_MUTATIONS),
    "preparation": (
        mutations_fp8.PREPARATION,
        check_preparation,
        mutations_fp8.PREPARATION_MUTATIONS,
    ),
    "hadamard": (mutations_fp8.HADAMARD, check_hadamard, mutations_fp8.HADAMARD_MUTATIONS),
}
PLANTED = [
    pytest.param(modules, check, mutation, id=f"{name}: {mutation}")
    for name, (modules, check, planted) in SUBJECTS.items()
    for mutation in planted
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_kernels_as_they_are_pass(name, tmp_path):
    modules, check, _ = SUBJECTS[name]
    check(load(modules, tmp_path))


@pytest.mark.parametrize(("modules", "check", "mutation"), PLANTED)
# What a bug computes with infinities and zeros, NumPy remarks upon.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_planted_bug_is_caught(modules, check, mutation, tmp_path):
    broken = load(modules, tmp_path, mutation)
    with pytest.raises((AssertionError, SimulationError)):
        check(broken)
