"""Quantization to e4m3: the kernels against their emulation to the bit, and the emulation against e4m3."""

import math
from unittest import mock

import pytest
import torch

import kernels
from kernels import quantization, quantization_reference
from kernels.quantization_reference import E4M3_MAX, SHARERS, Quantized, dequantize
from tests.kernels.grid import DTYPES, call_on_poisoned_memory

DEVICE = kernels.device()
HAS_FP8 = kernels.INTERPRETED or torch.cuda.get_device_capability() >= (8, 9)
needs_fp8 = pytest.mark.skipif(not HAS_FP8, reason="this GPU has no FP8")
every_per = pytest.mark.parametrize("per", SHARERS)
every_implementation = pytest.mark.parametrize(
    "module",
    [pytest.param(quantization, id="kernel", marks=needs_fp8), quantization_reference],
)
# All 256 bit patterns but the two NaNs; a block of 16 rows of 16 has each once.
FINITE = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(0.0)


def random(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """Rows whose sizes differ by powers of two, so that scales per block differ."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-4, 5, (*shape[:-1], 1), generator=generator)
    return (sizes * torch.randn(shape, generator=generator)).to(dtype=dtype, device=DEVICE)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.uint8)


def assert_same_bits(result: Quantized, expected: Quantized) -> None:
    for name, dtype in (("values", torch.uint8), ("scale", torch.int32)):
        got, wanted = getattr(result, name), getattr(expected, name)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.is_contiguous(), name
        differing = (got.view(dtype) != wanted.view(dtype)).sum()
        assert differing == 0, f"{differing} of {got.numel()} {name} differ"


def assert_like_the_emulation(tensor: torch.Tensor, **options) -> Quantized:
    before = tensor.clone()
    result = call_on_poisoned_memory(quantization.quantize, tensor, **options)
    assert torch.equal(tensor.nan_to_num(), before.nan_to_num()), "the kernel changed its input"
    assert_same_bits(result, quantization_reference.quantize(tensor, **options))
    return result


@needs_fp8
@every_per
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_emulation_agree_to_the_bit(per, transposed, dtype):
    tensor = random(2, 3, 37, 80, dtype=dtype)
    assert_like_the_emulation(tensor, per=per, block=16, transposed=transposed)


@needs_fp8
@every_per
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seq", [1, 2, 15, 16, 17, 63, 111, 129, 257])
def test_ragged_lengths(seq, transposed, per):
    tensor = random(1, 2, seq, 16)
    assert_like_the_emulation(tensor, per=per, block=64, transposed=transposed)


@needs_fp8
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_block_sizes_and_head_dims(block, head_dim):
    assert_like_the_emulation(random(1, 1, 150, head_dim), per="block", block=block)


@pytest.mark.gpu
@needs_fp8
@every_per
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_emulation_agree_to_the_bit_on_large_tensors(dtype, head_dim, transposed, per):
    tensor = random(2, 3, 4001, head_dim, dtype=dtype)
    assert_like_the_emulation(tensor, per=per, transposed=transposed)


@needs_fp8
@every_per
def test_any_strides(per):
    wide = random(2, 5, 41, 64)
    views = (
        wide.transpose(1, 2)[:, :9].transpose(1, 2),
        wide[:, 1::2, 2:-1, ::2],
        wide[:1].expand(3, 5, 41, 64),
        wide.transpose(2, 3)[..., :33],
    )
    for view in views:
        for transposed in (False, True):
            assert_like_the_emulation(view, per=per, block=16, transposed=transposed)


@every_implementation
@every_per
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 5, 16), (2, 0, 5, 16), (2, 3, 0, 16)])
def test_empty_tensors(module, per, transposed, shape):
    result = module.quantize(
        torch.zeros(shape, device=DEVICE), per=per, block=16, transposed=transposed
    )
    batch, heads, seq, head_dim = shape
    padded = (batch, heads, head_dim, 16 * math.ceil(seq / 16))
    assert result.values.shape == (padded if transposed else shape)
    blocks = {
        "tensor": (1, 1, 1),
        "head": (batch, heads, 1),
        "block": (batch, heads, -(-seq // 16)),
    }
    assert result.scale.shape == blocks[per] and (result.scale == 1).all()
    assert dequantize(result, 16, transposed).numel() == 0


@every_implementation
@every_per
def test_scale_is_the_largest_of_those_that_share_it(module, per):
    tensor = random(2, 3, 40, 16)
    scale = module.quantize(tensor, per=per, block=16).scale
    amax = {
        "tensor": tensor.abs().amax().reshape(1, 1, 1),
        "head": tensor.abs().amax((2, 3))[:, :, None],
        "block": torch.stack([part.abs().amax((2, 3)) for part in tensor.split(16, 2)], 2),
    }[per]
    # Divided in float64 and rounded once.
    assert torch.equal(scale, (amax.double() / E4M3_MAX).float())


@every_implementation
@every_per
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_half_a_step(module, per, dtype):
    tensor = random(2, 3, 40, 16, dtype=dtype)
    quantized = module.quantize(tensor, per=per, block=16)
    error = (dequantize(quantized, 16).double() - tensor.double()).abs()
    scale = quantized.scale.double().repeat_interleave(16 if per == "block" else 40, 2)[:, :, :40]
    # Half a step: 2⁻⁴ of the number, or of the least normal number, which is 2⁻⁶. Besides, float32 rounds
    # the inverse, the product with it, the scale and the product with that.
    half_step = 2**-4 * torch.maximum(tensor.double().abs(), 2**-6 * scale[..., None])
    rounding = 4 * 2**-24 * tensor.double().abs()
    assert (error <= half_step * (1 + 4 * 2**-24) + rounding).all()


@every_implementation
@every_per
def test_numbers_of_e4m3_stay_what_they_are(module, per):
    # All of them, subnormal ones and both zeros too. The largest is 448, so the scale is 1.
    tensor = FINITE.reshape(1, 1, 16, 16).to(DEVICE)
    quantized = module.quantize(tensor, per=per, block=16)
    assert (quantized.scale == 1).all()
    assert torch.equal(bits(quantized.values), bits(tensor.to(torch.float8_e4m3fn)))
    assert bits(quantized.values).unique().numel() == 254  # all but the two NaNs
    assert torch.equal(dequantize(quantized, 16), tensor)


@every_implementation
def test_ties_go_to_the_even_neighbour(module):
    positive = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    midpoints = (positive[1:] + positive[:-1]) / 2
    lower = torch.arange(126)
    even = lower + lower % 2
    tensor = torch.zeros(1, 1, 16, 16)
    tensor.view(-1)[:126], tensor.view(-1)[126:252] = midpoints, -midpoints
    tensor.view(-1)[255] = E4M3_MAX
    found = bits(module.quantize(tensor.to(DEVICE)).values).cpu().long().view(-1)
    assert torch.equal(found[:126], even) and torch.equal(found[126:252], even + 128)


@needs_fp8
@pytest.mark.parametrize("amax", [1.0, 3.3, 5.7, 1000.1])
def test_next_to_ties_every_rounding_counts(amax):
    # Of random numbers hardly one is so near a tie that the rounding of a quotient moves it across.
    positive = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (positive[1:] + positive[:-1]) / 2 * (amax / E4M3_MAX)
    tensor = torch.zeros(1, 1, 48, 16)
    for ulps in range(-2, 3):
        start = 126 * (ulps + 2)
        tensor.view(-1)[start : start + 126] = (ties.view(torch.int32) + ulps).view(torch.float32)
    tensor.view(-1)[-1] = amax
    assert_like_the_emulation(tensor.to(DEVICE), per="block", block=128)


@every_implementation
@every_per
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_saturate_and_nan_stays(module, per, dtype):
    tensor = random(1, 1, 16, 16, dtype=dtype)
    clean = module.quantize(tensor, per=per, block=16)
    special = torch.tensor([math.inf, -math.inf, math.nan, -math.nan])
    tensor[0, 0, 3, :4] = special.to(tensor)
    tensor[0, 0, 4, 0] = (
        clean.scale.item() * E4M3_MAX
    )  # in case what was overwritten was the largest
    quantized = module.quantize(tensor, per=per, block=16)
    torch.testing.assert_close(quantized.scale, clean.scale, rtol=2**-7, atol=0)
    values = quantized.values.float()[0, 0]
    assert values[3, :2].tolist() == [E4M3_MAX, -E4M3_MAX]
    assert bits(quantized.values)[0, 0, 3, 2:4].tolist() == [0x7F, 0x7F]
    assert values.isnan().sum() == 2


@every_implementation
@every_per
@pytest.mark.parametrize("fill", [0.0, -0.0, math.inf, math.nan])
def test_where_nothing_is_finite_and_not_zero_the_scale_is_1(module, per, fill):
    tensor = torch.full((1, 2, 20, 16), fill, device=DEVICE)
    quantized = module.quantize(tensor, per=per, block=16)
    assert (quantized.scale == 1).all()
    expected = torch.full((), fill).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    assert (bits(quantized.values) == bits(expected).to(DEVICE)).all()


@every_implementation
@pytest.mark.parametrize("amax", [1e-45, 1e-40, 1.3e-36, 5e-36, 1e-35, 3.4e38])
def test_the_smallest_and_largest_amax(module, amax):
    tensor = torch.linspace(-1, 1, 256).mul(amax).reshape(1, 1, 16, 16).to(DEVICE)
    quantized = module.quantize(tensor)
    scale = quantized.scale.item()
    assert 2**-126 <= scale < math.inf
    error = (dequantize(quantized).double() - tensor.double()).abs()
    # Half a step of the largest number, rounded; or half the least step of all, of the least scale.
    assert error.max() <= max(2**-4 * amax, 2**-10 * 2**-126) * (1 + 2**-20)


@every_implementation
@every_per
def test_transposed_values_are_the_same_with_zeros_at_the_end(module, per):
    tensor = random(2, 3, 37, 80)
    plain = module.quantize(tensor, per=per, block=16)
    turned = module.quantize(tensor, per=per, block=16, transposed=True)
    assert turned.values.shape == (2, 3, 80, 48) and torch.equal(turned.scale, plain.scale)
    assert torch.equal(bits(turned.values[..., :37]), bits(plain.values).transpose(2, 3))
    assert (bits(turned.values[..., 37:].contiguous()) == 0).all()
    assert torch.equal(dequantize(turned, 16, True)[:, :, :37], dequantize(plain, 16))


def test_an_outlier_harms_its_own_block_only():
    tensor = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(0))
    tensor[0, 0, 20, 3] = 1e5
    errors = {}
    for per in ("tensor", "block"):
        quantized = quantization_reference.quantize(tensor, per=per, block=16)
        errors[per] = (dequantize(quantized, 16) - tensor)[0, 0].abs()
    assert (errors["block"][:16] < 0.2).all() and (errors["block"][32:] < 0.2).all()
    # One scale for all is above 200, and whatever is below 2⁻¹⁰ of it becomes zero.
    assert (errors["tensor"][:16] == tensor[0, 0, :16].abs()).float().mean() > 0.1


@pytest.mark.gpu
@needs_fp8
@every_per
def test_offsets_beyond_2_to_the_31(per):
    memory = torch.randn(2, 1, 2**31 // 64 + 40, 64, device="cuda", dtype=torch.float16)
    assert_like_the_emulation(memory[:, :, -300:], per=per)
    far = memory.view(-1).as_strided((1, 1, 33, 64), (0, 0, 2**26 + 8, 1))
    assert_like_the_emulation(far, per=per, transposed=True)


GOOD = torch.zeros(1, 2, 3, 16, device=DEVICE)
BAD = {
    "list": ({"tensor": [1.0]}, TypeError, "tensor must be a torch.Tensor, got list"),
    "rank": (
        {"tensor": GOOD[0]},
        ValueError,
        r"tensor must have 4 dimensions \(batch, heads, seq, head_dim\), got shape \(2, 3, 16\)",
    ),
    "dtype": ({"tensor": GOOD.double()}, TypeError, "tensor has dtype torch.float64; accepted"),
    "head_dim": (
        {"tensor": torch.zeros(1, 1, 1, 257)},
        ValueError,
        "tensor has head_dim 257; accepted: 16 to 256",
    ),
    "per": (
        {"per": "row"},
        ValueError,
        'per must be one of "tensor", "head", "block", got \'row\'',
    ),
    "block of 48": (
        {"block": 48},
        ValueError,
        "block must be a power of two of at least 16, got 48",
    ),
    "block of 256": ({"block": 256}, ValueError, "block must be at most 128, got 256"),
}


@pytest.mark.parametrize("module", [quantization, quantization_reference])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(module, arguments, error, message):
    with pytest.raises(error, match=message):
        module.quantize(**{"tensor": GOOD} | arguments)


def test_a_tensor_where_kernels_do_not_run_is_refused():
    with (
        mock.patch.object(kernels, "INTERPRETED", False),
        pytest.raises(
            ValueError, match="tensor is on cpu, but the kernels are compiled for a CUDA"
        ),
    ):
        quantization.quantize(GOOD.cpu())


def test_a_gpu_without_fp8_is_told_of_the_emulation():
    with (
        mock.patch.object(kernels, "INTERPRETED", False),
        mock.patch.object(quantization, "check_device"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
        mock.patch.object(torch.cuda, "get_device_name", return_value="NVIDIA A100"),
        pytest.raises(
            RuntimeError, match=r"A100 has compute capability 8\.0.*kernels\.quantization_reference"
        ),
    ):
        quantization.quantize(GOOD)
