"""FP8 attention: within the error of 3 bits of mantissa, and equal to its emulation in PyTorch."""

import functools
from dataclasses import replace
from unittest import mock

import pytest
import torch
from allpairspy import AllPairs
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma

import kernels
from instruments import simulated_fp8
from instruments.gluon_simulator import SimulationError, simulate
from kernels import (
    fp8,
    fp8_hopper,
    fp8_preparation,
    fp8_reference,
    reference,
)
from kernels.fp8_hopper import Design
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.fp8_budget import STANDARD_DEVIATIONS, error_budget
from tests.kernels.grid import (
    HEADS,
    LAYOUTS,
    Cell,
    call_on_poisoned_memory,
    full_grid,
    make_inputs,
)

DEVICE = kernels.device()
HAS_FP8 = kernels.INTERPRETED or torch.cuda.get_device_capability() >= (8, 9)
ON_HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == (9, 0)
needs_fp8 = pytest.mark.skipif(not HAS_FP8, reason="needs a GPU with FP8")
# The kernel for Hopper where it runs, and in the simulator; and the one in plain Triton.
HOPPER = fp8.attention if ON_HOPPER else simulated_fp8.attention
HEAD_DIMS = (16, 64, 128, 256)
LENGTHS = ((1, 1), (63, 2), (1, 150), (70, 63), (65, 130))  # (seq_query, seq_key)
STEPS = {  # one change each of what a design is by itself
    "plain": {},
    "one slot": {"stages": 1},
    "three slots": {"stages": 3},
    "short tiles": {"block_n": 64},
    "no overlap": {"overlap": "none"},
    "the softmax overlaps": {"overlap": "softmax"},
    "pingpong": {"pingpong": True},
    "three warpgroups": {"warpgroups": 3},
    "one level": {"two_level": False},
}


def on_hopper(test):
    """Mark a test that needs a Hopper GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")(test))


def tensors(seq_query, seq_key, *, heads=(2, 1), head_dim=64, dtype=torch.float16, seed=0):
    torch.manual_seed(seed)
    return tuple(
        torch.randn(1, h, n, head_dim).to(dtype).to(DEVICE)
        for h, n in ((heads[0], seq_query), (heads[1], seq_key), (heads[1], seq_key))
    )


def assert_within_budget(attention, query, key, value, **options):
    """Compare with float64: each element, and all of them together."""
    before = [x.clone() for x in (query, key, value)]
    output, logsumexp = call_on_poisoned_memory(
        attention, query, key, value, return_logsumexp=True, **options
    )
    for name, was, now in zip(("query", "key", "value"), before, (query, key, value), strict=True):
        assert torch.equal(was, now), f"the kernel changed {name}"
    assert output.dtype == query.dtype and output.shape == query.shape
    assert logsumexp.dtype == torch.float32 and logsumexp.shape == query.shape[:-1]
    assert not output.isnan().any() and not logsumexp.isnan().any()
    seed = options.pop("seed", 0)
    expected, expected_logsumexp = reference.attention(
        query, key, value, return_logsumexp=True, **options
    )
    assert torch.equal(logsumexp.isinf(), expected_logsumexp.isinf())
    assert (output[expected_logsumexp.isinf()] == 0).all()
    seen = expected_logsumexp.isfinite()
    deviations = error_budget(query, key, value, seed=seed, **options)
    for name, result, truth, deviation in (
        ("output", output, expected, deviations[0]),
        ("logsumexp", logsumexp, expected_logsumexp, deviations[1]),
    ):
        error, allowed = (result.double() - truth)[seen], deviation[seen]
        few_ulps = 4 * torch.finfo(torch.float32).eps * (1 + truth[seen].abs())
        beyond = error.abs() - STANDARD_DEVIATIONS * allowed - few_ulps
        assert (beyond <= 0).all(), f"{name}: {beyond.max()} beyond what rounding explains"
        if error.numel() >= 5000:
            # A step is 2⁻³ of the power of two below a number, on average two thirds of what the deviations
            # say. This is the margin for what varies from draw to draw.
            found, expected_rms = error.square().mean().sqrt(), allowed.square().mean().sqrt()
            assert found <= expected_rms, f"{name}: rms {found}, expected at most {expected_rms}"


def cells():
    """The full grid on a GPU; interpreted, any two of a few lengths and of the other axes."""
    if not kernels.INTERPRETED:
        return full_grid(HEAD_DIMS, fp8.DTYPES)
    axes = [fp8.DTYPES, HEAD_DIMS, LENGTHS, HEADS, (False, True), LAYOUTS]
    return [Cell(*values) for values in AllPairs([list(axis) for axis in axes])]


@needs_fp8
@pytest.mark.parametrize("cell", cells(), ids=str)
def test_within_the_error_of_three_bits(cell):
    assert_within_budget(fp8.attention, *make_inputs(cell), causal=cell.causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@needs_fp8
def test_the_kernel_for_hopper_is_within_it_too(head_dim, causal):
    inputs = tensors(70, 150, head_dim=head_dim)
    assert_within_budget(HOPPER, *inputs, causal=causal)


def assert_equals_emulation(
    attention, query, key, value, *, design, causal=False, seed=0, **options
):
    """Equal but for float32's rounding, which may carry the output over a tie of its own dtype."""
    output, logsumexp = call_on_poisoned_memory(
        attention,
        query,
        key,
        value,
        causal=causal,
        seed=seed,
        design=design,
        return_logsumexp=True,
        **options,
    )
    emulated = functools.partial(
        fp8_reference.attention, causal=causal, seed=seed, key_block=design.block_n
    )
    # On the CPU, where the simulator adds: a GPU's exp2 may round a weight to the other side of a tie.
    output, logsumexp, query, key, value = (x.cpu() for x in (output, logsumexp, query, key, value))
    expected, expected_logsumexp = emulated(query, key, value, return_logsumexp=True)
    magnitudes = emulated(query, key, value.abs())
    allowed = torch.finfo(query.dtype).eps * magnitudes.float() + torch.finfo(query.dtype).tiny
    assert ((output.float() - expected.float()).abs() <= allowed).all()
    hidden = expected_logsumexp.isinf()
    assert torch.equal(logsumexp.isinf(), hidden) and not logsumexp.isnan().any()
    few_ulps = 8 * torch.finfo(torch.float32).eps
    difference = (logsumexp - expected_logsumexp)[~hidden].abs()
    assert (difference <= few_ulps * (8 + expected_logsumexp[~hidden].abs())).all()


# Not on a GPU: there FP8 products are added in fewer bits.
@pytest.mark.parametrize("step", STEPS)
def test_every_design_equals_the_emulation(step):
    design = Design(**STEPS[step])
    inputs = tensors(200, 270)
    for causal in (False, True):
        # One program takes several tiles of queries, another takes one: rings go on from one to the next.
        simulated = functools.partial(simulated_fp8.attention, programs=3)
        assert_equals_emulation(simulated, *inputs, design=design, causal=causal)


@pytest.mark.parametrize("lengths", [(64, 128), (65, 129), (1, 300), (130, 1), (300, 70)])
def test_ends_of_tiles_equal_the_emulation(lengths):
    inputs = tensors(*lengths, heads=(4, 2), head_dim=16, dtype=torch.bfloat16)
    for causal in (False, True):
        design = fp8_hopper.shipped_design(16)
        assert_equals_emulation(simulated_fp8.attention, *inputs, design=design, causal=causal)


def test_any_timing_gives_the_same():
    inputs = tensors(70, 300, head_dim=16)
    expected = simulated_fp8.attention(*inputs, programs=1)
    for timing in range(1, 4):
        assert torch.equal(simulated_fp8.attention(*inputs, programs=1, timing=timing), expected)


def with_blocks_of_all_sizes(value):
    """V with blocks that are larger, smaller, too small for a scale of their own, and zero."""
    value = value.clone()
    for start, factor in ((0, 2.0**9), (128, 2.0**-9), (256, 2.0**-120), (384, 0.0)):
        value[:, :, start : start + 128] *= factor
    return value


def test_scales_of_v_equal_the_emulation():
    query, key, value = tensors(40, 600, dtype=torch.bfloat16)
    design = fp8_hopper.shipped_design(64)
    value = with_blocks_of_all_sizes(value)
    assert_equals_emulation(simulated_fp8.attention, query, key, value, design=design)
    # Where the largest values have next to no weight, which e4m3 has to hold for the others.
    query[..., 0], key[..., 0], key[:, :, :128, 0] = 8.0, 0.0, -20.0
    assert_equals_emulation(simulated_fp8.attention, query, key, value, design=design)


@needs_fp8
@pytest.mark.parametrize("attention", [HOPPER, fp8.attention], ids=["hopper", "triton"])
def test_a_block_of_zeros_takes_nothing_from_the_range_of_the_weights(attention):
    query, key, value = tensors(40, 600)
    value = value / 1024
    value[:, :, :256] = 0.0
    assert_within_budget(attention, query, key, value)


@needs_fp8
@pytest.mark.parametrize("attention", [HOPPER, fp8.attention], ids=["hopper", "triton"])
def test_without_a_rotation_any_multiple_of_16(attention):
    inputs = tensors(40, 150, head_dim=48)
    assert_within_budget(attention, *inputs, seed=None)
    with pytest.raises(ValueError, match="head_dim 48; accepted with a rotation: powers of two"):
        attention(*inputs)


@needs_fp8
@pytest.mark.parametrize("attention", [HOPPER, fp8.attention], ids=["hopper", "triton"])
def test_a_query_that_sees_no_key_gets_zeros(attention):
    output, logsumexp = attention(*tensors(205, 2), causal=True, return_logsumexp=True)
    assert (output[:, :, :203] == 0).all() and (logsumexp[:, :, :203] == -torch.inf).all()
    assert output[:, :, 203:].abs().amax(-1).min() > 0 and logsumexp[:, :, 203:].isfinite().all()


@needs_fp8
@pytest.mark.parametrize("attention", [HOPPER, fp8.attention], ids=["hopper", "triton"])
@pytest.mark.parametrize(
    ("query_shape", "key_shape"),
    [
        ((2, 2, 0, 16), (2, 2, 5, 16)),
        ((0, 2, 3, 16), (0, 2, 5, 16)),
        ((2, 0, 3, 16), (2, 0, 5, 16)),
        ((2, 4, 3, 16), (2, 2, 0, 16)),
    ],
    ids=["no queries", "no batch", "no heads", "no keys"],
)
def test_empty_inputs(query_shape, key_shape, attention):
    query, key = (torch.randn(shape, device=DEVICE).half() for shape in (query_shape, key_shape))
    output, logsumexp = attention(query, key, key, return_logsumexp=True)
    assert output.shape == query.shape and (output == 0).all()
    assert logsumexp.shape == query.shape[:-1] and (logsumexp == -torch.inf).all()


@needs_fp8
def test_any_strides():
    laid_out = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(70, 90)]
    laid_out[2] = laid_out[2].mT.contiguous().mT
    contiguous = [x.contiguous() for x in laid_out]
    assert torch.equal(fp8.attention(*laid_out), fp8.attention(*contiguous))


@needs_fp8
def test_a_rotation_spreads_an_outlier():
    query, key, value = tensors(64, 128)
    # In the same dimension of both: there the scores come from.
    query[..., 5] *= 20
    key[..., 5] *= 20
    exact = reference.attention(query, key, value)
    error = {
        seed: reference.errors(fp8.attention(query, key, value, seed=seed), exact)
        for seed in (None, 0)
    }
    assert error[0].root_mean_square < error[None].root_mean_square


@needs_fp8
@pytest.mark.parametrize("interleaved", [False, True], ids=["in order", "interleaved"])
@pytest.mark.parametrize("block", [16, 64, 128])
def test_v_is_transposed_and_quantized_as_the_emulation_does(block, interleaved):
    value = with_blocks_of_all_sizes(tensors(1, 523, heads=(2, 2), dtype=torch.bfloat16)[2])
    values, scale = call_on_poisoned_memory(
        fp8_preparation.quantize_value, value, block, interleaved
    )
    expected = fp8_reference.quantize_value(value, "block", block)
    assert torch.equal(scale, expected.scale)
    in_order = torch.arange(values.shape[3], device=DEVICE)
    if interleaved:
        # Place 4 thread + 2 half + which of 16 has key 8 half + 2 thread + which.
        in_order = in_order.view(-1, 2, 4, 2).transpose(1, 2).flatten()
    rows = torch.zeros_like(values.mT.float())
    rows[:, :, in_order] = values.mT.float()
    assert torch.equal(rows[:, :, :523], expected.values.float())
    assert (rows[:, :, 523:] == 0).all()


def test_the_emulation_rotates_as_the_kernel_does():
    tensor = tensors(1, 37, head_dim=128)[1]
    signs = kernels.hadamard.random_signs(128, 3)
    expected = kernels.hadamard.transform(tensor, signs, torch.float32)
    assert torch.equal(fp8_reference.rotate(tensor, signs), expected)


def test_sums_are_cut_to_fourteen_bits():
    numbers = torch.tensor([1.0, 1 + 2.0**-13, 1 + 2.0**-13 + 2.0**-14, -1 - 2.0**-14, 0.0])
    assert fp8_reference.cut_off(numbers).tolist() == [1.0, 1 + 2.0**-13, 1 + 2.0**-13, -1.0, 0.0]
    # 1 is added to 2¹⁴ in vain, unless products that are summed first make up for it.
    left = torch.ones(1, 64)
    right = torch.full((64, 1), 2.0**-6)
    large = torch.full((1, 1), 2.0**14)
    assert fp8_reference.product(left, right, large, True).item() == 2.0**14
    assert fp8_reference.product(left, right, large, False).item() == 2.0**14 + 1


def test_two_levels_lose_less_than_one():
    torch.manual_seed(0)
    query, key = torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 4096, 16)
    # All weights are alike, and all of V is positive: the sum grows, and what is cut off adds up.
    value = torch.rand(1, 1, 4096, 16)
    exact = reference.attention(query, key, value)
    error = {
        accumulator: reference.errors(
            fp8_reference.attention(query, key, value, accumulator=accumulator), exact
        ).root_mean_square
        for accumulator in fp8_reference.ACCUMULATORS
    }
    assert error["one level"] > 2 * error["two levels"]
    with pytest.raises(ValueError, match="accumulator must be one of .* got 'half a level'"):
        fp8_reference.attention(query, key, value, accumulator="half a level")


def test_who_shares_a_scale_matters():
    query, key, value = tensors(64, 600, dtype=torch.bfloat16)
    value[:, :, :100] *= 2.0**18
    query[..., 0], key[..., 0] = 8.0, 0.0
    key[:, :, :100, 0] = -40.0
    exact = reference.attention(query, key, value)
    per_block, per_tensor = (
        reference.errors(fp8_reference.attention(query, key, value, per=per), exact)
        for per in ("block", "tensor")
    )
    assert per_block.root_mean_square < per_tensor.root_mean_square / 2


@pytest.mark.parametrize("attention", [simulated_fp8.attention, fp8.attention])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ATTENTION_INPUTS)
def test_bad_input_is_named(attention, arguments, error, message):
    inputs = {name: tensor.half() for name, tensor in GOOD_ATTENTION_INPUTS.items()}
    inputs |= {
        name: x.half() if getattr(x, "dtype", None) == torch.float32 else x
        for name, x in arguments.items()
    }
    if "float16, but" in message:
        inputs["value"], message = inputs["value"].bfloat16(), "value has dtype torch.bfloat16, but"
    with pytest.raises(error, match=message):
        attention(**inputs)


OTHER_BAD = {
    "float32": ({"dtype": torch.float32}, {}, TypeError, "float32; accepted: torch.float16"),
    "head_dim 40": ({"head_dim": 40}, {"seed": None}, ValueError, "40; accepted: multiples of 16"),
    "seed text": ({}, {"seed": "0"}, TypeError, "seed must be an integer or None, got str"),
    "seed bool": ({}, {"seed": True}, TypeError, "seed must be an integer or None, got bool"),
}


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"), OTHER_BAD.values(), ids=OTHER_BAD
)
def test_other_bad_arguments_are_named(shape, options, error, message):
    with pytest.raises(error, match=message):
        fp8.attention(*tensors(3, 5, **shape), **options)


def test_a_gpu_without_fp8_is_told_of_the_emulation():
    with (
        mock.patch.object(kernels, "INTERPRETED", False),
        mock.patch.object(fp8, "check_device"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
        mock.patch.object(torch.cuda, "get_device_name", return_value="NVIDIA A100"),
        pytest.raises(
            RuntimeError, match=r"A100 has compute capability 8\.0.*kernels\.fp8_reference"
        ),
    ):
        fp8.attention(*tensors(3, 5), seed=None)


@gluon.jit
def row_major_kernel(left, right, out_ptr, DTYPE: gl.constexpr):
    """A product of 8-bit tiles whose second factor is not contiguous along what is summed."""
    layout: gl.constexpr = gl.NVMMASharedLayout(64, 8, rank=2)
    a = gl.allocate_shared_memory(DTYPE, [64, 64], layout)
    b = gl.allocate_shared_memory(DTYPE, [64, 64], layout)
    scores: gl.constexpr = fp8_hopper.product_layout(64, 64)
    nothing = gl.zeros([64, 64], gl.float32, layout=scores)
    warpgroup_mma(a, b, nothing, use_acc=False)


def test_the_simulator_wants_both_factors_contiguous_along_the_sum():
    tensor = torch.zeros(64, 64).to(torch.float8_e4m3fn)
    with pytest.raises(SimulationError, match="8-bit .* contiguous along what is summed"):
        simulate(row_major_kernel, (1,), tensor, tensor, tensor, DTYPE=gl.float8e4nv)


@on_hopper
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_design_on_hopper(head_dim, step):
    attention = functools.partial(fp8.attention, design=Design(**STEPS[step]))
    for causal in (False, True):
        inputs = tensors(1000, 1300, heads=(4, 2), head_dim=head_dim)
        assert_within_budget(attention, *inputs, causal=causal)


@on_hopper
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_hopper_two_levels_are_close_to_the_emulation(head_dim):
    # What is left is the few bits of a sum of one tile, and of one row's scores.
    design = replace(fp8_hopper.shipped_design(head_dim), two_level=True)
    query, key, value = tensors(500, 3000, head_dim=head_dim)
    exact = reference.attention(query, key, value)
    emulated = fp8_reference.attention(query, key, value, key_block=design.block_n)
    output = fp8.attention(query, key, value, design=design)
    error = reference.errors(emulated, exact).root_mean_square
    assert reference.errors(output, emulated.double()).root_mean_square < error / 2
