"""Random rotation: against the matrix in float64, what it leaves alone, and the kernel fused with FP8."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import hadamard, quantization, quantization_reference
from kernels.quantization_reference import SHARERS
from tests.kernels.grid import DTYPES, call_on_poisoned_memory
from tests.kernels.test_quantization import (
    DEVICE,
    assert_same_bits,
    every_per,
    needs_fp8,
    random,
)

EXAMPLES = 20 if kernels.INTERPRETED else 200
HEAD_DIMS = (16, 32, 64, 128, 256)
UNIT_ROUNDOFF = 2.0**-24  # of float32


def hadamard_matrix(size: int) -> torch.Tensor:
    """Sylvester's construction, in float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.to(DEVICE)


def rotated_exactly(tensor: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    size = tensor.shape[-1]
    return (tensor.double() * signs.double()) @ hadamard_matrix(size) / math.sqrt(size)


def allowed_error(tensor: torch.Tensor) -> torch.Tensor:
    """How far rounding may carry an element of a rotated row.

    Each of log2(d) additions rounds once, and so do 1 / sqrt(d) and the product with it; what an addition
    rounds is at most the sum of all magnitudes of the row.
    """
    size = tensor.shape[-1]
    roundings = math.log2(size) + 2
    growth = (1 + UNIT_ROUNDOFF) ** roundings - 1
    return growth * tensor.double().abs().sum(-1, keepdim=True) / math.sqrt(size)


def assert_rotates(tensor: torch.Tensor, signs: torch.Tensor, dtype=None) -> None:
    before = tensor.clone()
    result = call_on_poisoned_memory(hadamard.transform, tensor, signs, dtype)
    assert torch.equal(tensor, before), "the kernel changed its input"
    assert result.shape == tensor.shape and result.dtype == (dtype or tensor.dtype)
    assert result.is_contiguous() and not result.isnan().any()
    expected = rotated_exactly(tensor, signs)
    allowed = allowed_error(tensor)
    if result.dtype != torch.float32:
        # The result is rounded once more, of float16's numbers the subnormal ones to a fixed step.
        kind = torch.finfo(result.dtype)
        allowed = allowed + kind.eps / 2 * (expected.abs() + allowed) + kind.tiny * kind.eps / 2
    assert ((result.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_matrix_in_float64(dtype, head_dim):
    assert_rotates(random(2, 3, 37, head_dim, dtype=dtype), hadamard.random_signs(head_dim, 1))


@pytest.mark.parametrize("seq", [1, 2, 127, 128, 129, 257])
def test_ragged_lengths(seq):
    assert_rotates(random(1, 2, seq, 16), hadamard.random_signs(16, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_may_have_another_dtype(dtype):
    assert_rotates(
        random(1, 2, 9, 64, dtype=torch.float16), hadamard.random_signs(64, 3), dtype=dtype
    )


def test_any_strides():
    wide = random(2, 5, 41, 64)
    for view in (
        wide.transpose(1, 2)[:, :9].transpose(1, 2),
        wide[:, 1::2, 2:-1, ::2],
        wide[:1].expand(3, 5, 41, 64),
        wide.transpose(2, 3)[..., :32],
    ):
        assert_rotates(view, hadamard.random_signs(64, 4)[: view.shape[3]])
    assert_rotates(wide, hadamard.random_signs(128, 5)[::2])


@pytest.mark.parametrize("shape", [(0, 2, 5, 16), (2, 0, 5, 16), (2, 3, 0, 16)])
def test_empty_tensors(shape):
    tensor, signs = torch.zeros(shape, device=DEVICE), hadamard.random_signs(16, 0)
    assert hadamard.transform(tensor, signs).shape == shape
    for per in SHARERS:
        assert_same_bits(
            hadamard.transform_and_quantize(tensor, signs, per, 16),
            quantization_reference.quantize(tensor, per, 16),
        )


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_unit_vectors_become_the_rows_of_the_matrix(head_dim):
    ones = torch.ones(head_dim, device=DEVICE)
    rows = hadamard.transform(torch.eye(head_dim, device=DEVICE)[None, None], ones)[0, 0]
    # Nothing is added but zeros: exact but for 1 / sqrt(d).
    assert torch.equal(rows, (hadamard_matrix(head_dim) / math.sqrt(head_dim)).float())
    assert torch.equal(rows, rows.T)


tensors = st.tuples(
    st.sampled_from(HEAD_DIMS[:4]), st.integers(1, 40), st.integers(0, 2**31), st.integers(-8, 8)
)


def _drawn(drawn) -> tuple[torch.Tensor, torch.Tensor]:
    head_dim, seq, seed, exponent = drawn
    return 2.0**exponent * random(1, 2, seq, head_dim, seed=seed), hadamard.random_signs(
        head_dim, seed
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(tensors)
def test_the_inverse_is_the_same_transform_and_then_the_signs(drawn):
    tensor, signs = _drawn(drawn)
    rotated = hadamard.transform(tensor, signs)
    back = hadamard.transform(rotated, torch.ones_like(signs)) * signs
    # The second transform rounds, and carries on what the first did: sqrt(d) times an element's error.
    allowed = allowed_error(rotated) + math.sqrt(signs.numel()) * allowed_error(tensor)
    assert ((back.double() - tensor.double()).abs() <= allowed).all()


@settings(max_examples=EXAMPLES, deadline=None)
@given(tensors)
def test_the_transform_without_signs_is_an_involution(drawn):
    tensor, signs = _drawn(drawn)
    ones = torch.ones_like(signs)
    once = hadamard.transform(tensor, ones)
    twice = hadamard.transform(once, ones)
    allowed = allowed_error(once) + math.sqrt(signs.numel()) * allowed_error(tensor)
    assert ((twice.double() - tensor.double()).abs() <= allowed).all()


@settings(max_examples=EXAMPLES, deadline=None)
@given(tensors)
def test_lengths_of_rows_do_not_change(drawn):
    tensor, signs = _drawn(drawn)
    rotated = hadamard.transform(tensor, signs)
    # A length changes by no more than the length of the error.
    allowed = math.sqrt(signs.numel()) * allowed_error(tensor)[..., 0]
    change = rotated.double().norm(dim=-1) - tensor.double().norm(dim=-1)
    assert (change.abs() <= allowed * (1 + 2**-20)).all()


@settings(max_examples=EXAMPLES, deadline=None)
@given(tensors, st.integers(0, 2**31))
def test_scores_do_not_change(drawn, seed):
    query, signs = _drawn(drawn)
    key = random(*query.shape, seed=seed)
    scores = query.double() @ key.double().transpose(2, 3)
    rotated_query, rotated_key = (hadamard.transform(x, signs).double() for x in (query, key))
    change = (rotated_query @ rotated_key.transpose(2, 3) - scores).abs()
    # Cauchy-Schwarz for (q + e)(k + f) - q k, with the lengths of the errors e and f.
    root = math.sqrt(signs.numel())
    query_length, key_length = (x.double().norm(dim=-1) for x in (query, key))
    query_error, key_error = (root * allowed_error(x)[..., 0] for x in (query, key))
    allowed = query_error[..., None] * (key_length + key_error)[..., None, :]
    allowed = allowed + query_length[..., None] * key_error[..., None, :]
    assert (change <= allowed * (1 + 2**-20)).all()


def test_an_outlier_is_spread_over_its_row():
    tensor = torch.zeros(1, 1, 1, 128, device=DEVICE)
    tensor[..., 17] = 100.0
    rotated = hadamard.transform(tensor, hadamard.random_signs(128, 6))
    assert torch.equal(
        rotated.abs(), torch.full_like(rotated, 100.0 * float(rotated.new_tensor(128**-0.5)))
    )


def test_an_infinity_reaches_its_own_row_only():
    tensor = random(1, 1, 20, 16)
    expected = hadamard.transform(tensor, hadamard.random_signs(16, 7))
    tensor[0, 0, 3, 5] = math.inf
    rotated = hadamard.transform(tensor, hadamard.random_signs(16, 7))
    assert not rotated[0, 0, 3].isfinite().any()
    others = torch.arange(20, device=DEVICE) != 3
    assert torch.equal(rotated[0, 0, others], expected[0, 0, others])


@needs_fp8
@every_per
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_is_the_same_as_one_after_the_other(per, head_dim, dtype):
    tensor, signs = random(2, 2, 37, head_dim, dtype=dtype), hadamard.random_signs(head_dim, 8)
    before = tensor.clone()
    fused = call_on_poisoned_memory(hadamard.transform_and_quantize, tensor, signs, per, 16)
    assert torch.equal(tensor, before), "the kernel changed its input"
    rotated = hadamard.transform(tensor, signs, torch.float32)
    assert_same_bits(fused, quantization_reference.quantize(rotated, per, 16))


@needs_fp8
def test_fused_saturates_what_overflows():
    tensor = random(1, 1, 16, 16)
    tensor[0, 0, 3, 5], tensor[0, 0, 4, 6] = math.inf, math.nan
    signs = hadamard.random_signs(16, 9)
    fused = hadamard.transform_and_quantize(tensor, signs, block=16)
    rotated = hadamard.transform(tensor, signs)
    assert_same_bits(fused, quantization_reference.quantize(rotated, "block", 16))
    assert fused.scale.item() < 100


@needs_fp8
def test_a_tile_larger_than_shared_memory_takes_two_kernels():
    tensor, signs = random(1, 1, 30, 256), hadamard.random_signs(256, 10)
    expected = hadamard.transform_and_quantize(tensor, signs)
    fused = mock.patch.object(hadamard, "transform_and_quantize_kernel", None)
    with fused, mock.patch.object(hadamard, "shared_bytes", return_value=99 * 1024):
        assert_same_bits(hadamard.transform_and_quantize(tensor, signs), expected)
        with pytest.raises(TypeError):
            hadamard.transform_and_quantize(tensor, signs, block=64)  # which would have been fused


@pytest.mark.gpu
@needs_fp8
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_on_large_tensors(dtype, head_dim):
    tensor, signs = random(2, 3, 4001, head_dim, dtype=dtype), hadamard.random_signs(head_dim, 8)
    assert_rotates(tensor, signs)
    fused = hadamard.transform_and_quantize(tensor, signs)
    rotated = hadamard.transform(tensor, signs, torch.float32)
    assert_same_bits(fused, quantization_reference.quantize(rotated, "block"))


def test_signs_follow_from_the_seed():
    signs = hadamard.random_signs(256, 3)
    assert (
        signs.shape == (256,) and signs.dtype == torch.float32 and signs.device.type == DEVICE.type
    )
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert torch.equal(signs, hadamard.random_signs(256, 3))
    assert not torch.equal(signs, hadamard.random_signs(256, 4))
    # Six standard deviations of a sum of 256 fair signs.
    assert abs(signs.sum().item()) < 6 * 16


GOOD = torch.zeros(1, 2, 3, 16, device=DEVICE)
SIGNS = torch.ones(16, device=DEVICE)
BAD = {
    "list": ({"tensor": [1.0]}, TypeError, "tensor must be a torch.Tensor, got list"),
    "rank": ({"tensor": GOOD[0]}, ValueError, "tensor must have 4 dimensions"),
    "dtype": ({"tensor": GOOD.double()}, TypeError, "tensor has dtype torch.float64; accepted"),
    "head_dim 80": (
        {"tensor": torch.zeros(1, 1, 1, 80, device=DEVICE)},
        ValueError,
        "the head_dim of tensor must be a power of two from 16 to 256, got 80",
    ),
    "no signs": ({"signs": None}, TypeError, "signs must be a torch.Tensor, got NoneType"),
    "few signs": ({"signs": SIGNS[:8]}, ValueError, r"signs must have shape \(16,\), got \(8,\)"),
    "half signs": ({"signs": SIGNS.half()}, TypeError, "signs has dtype torch.float16; accepted"),
    "signs elsewhere": ({"signs": SIGNS.to("meta")}, ValueError, "signs is on meta, but tensor is"),
}
every_bad = pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)


@pytest.mark.parametrize("function", [hadamard.transform, hadamard.transform_and_quantize])
@every_bad
def test_bad_input_is_named(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(**{"tensor": GOOD, "signs": SIGNS} | arguments)


def test_other_bad_arguments_are_named():
    with pytest.raises(TypeError, match="dtype must be one of torch.float16, .* got torch.float64"):
        hadamard.transform(GOOD, SIGNS, torch.float64)
    with pytest.raises(ValueError, match="per must be one of"):
        hadamard.transform_and_quantize(GOOD, SIGNS, per="row")
    with pytest.raises(ValueError, match="block must be at most 128, got 256"):
        hadamard.transform_and_quantize(GOOD, SIGNS, block=256)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((80, 0), ValueError, "head_dim must be a power of two from 16 to 256, got 80"),
        ((512, 0), ValueError, "got 512"),
        ((16.0, 0), TypeError, "head_dim must be an integer, got float"),
        ((16, "0"), TypeError, "seed must be an integer, got str"),
    ],
)
def test_bad_arguments_of_signs_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        hadamard.random_signs(*arguments)


def test_a_gpu_without_fp8_is_told_of_the_emulation():
    with (
        mock.patch.object(kernels, "INTERPRETED", False),
        mock.patch.object(hadamard, "check_device"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
        mock.patch.object(torch.cuda, "get_device_name", return_value="NVIDIA A100"),
        pytest.raises(RuntimeError, match=r"kernels\.quantization_reference"),
    ):
        hadamard.transform_and_quantize(GOOD, SIGNS)
    assert quantization.check_fp8 is hadamard.check_fp8
