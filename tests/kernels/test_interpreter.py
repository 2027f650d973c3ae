"""The corrections to Triton's interpreter, against PyTorch; the same kernels run on a GPU where there is
one, so that a correction cannot disagree with the hardware."""

import operator

import pytest
import torch
import triton
import triton.language as tl

import kernels

# Ties, subnormals, the edges of float8 and bfloat16, infinities and NaN.
EDGES = [0.0, -0.0, 1.00390625, 1.01171875, 17.0, 19.0, 447.0, 464.0, 465.0, 1e5, 3e38, 2**-10]
EDGES += [2**-9, 3 * 2**-11, 1e-40, torch.inf, -torch.inf, torch.nan, -torch.nan]


@triton.jit
def cast_kernel(source_ptr, target_ptr, BLOCK: tl.constexpr):
    """Cast a vector to the target's dtype and back to the source's."""
    offsets = tl.arange(0, BLOCK)
    values = tl.load(source_ptr + offsets).to(target_ptr.dtype.element_ty)
    tl.store(target_ptr + offsets, values)


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, results_ptr, BLOCK: tl.constexpr):
    """x + y, x - y, x * y, and where(x < y, x, y), each in the inputs' dtype."""
    offsets = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    tl.store(results_ptr + offsets, x + y)
    tl.store(results_ptr + BLOCK + offsets, x - y)
    tl.store(results_ptr + 2 * BLOCK + offsets, x * y)
    tl.store(results_ptr + 3 * BLOCK + offsets, tl.where(x < y, x, y))


@triton.jit
def fma_kernel(x_ptr, y_ptr, z_ptr, result_ptr, BLOCK: tl.constexpr):
    """x * y + z, rounded once."""
    index = tl.arange(0, BLOCK)
    x, y, z = tl.load(x_ptr + index), tl.load(y_ptr + index), tl.load(z_ptr + index)
    tl.store(result_ptr + index, tl.fma(x, y, z))


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    """A [SIZE, SIZE] product accumulated in float32."""
    index = tl.arange(0, SIZE)
    tile = index[:, None] * SIZE + index[None, :]
    tl.store(c_ptr + tile, tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile)))


@triton.jit
def sum_kernel(values_ptr, total_ptr, length, BLOCK: tl.constexpr):
    """Sum over a length known only at run time."""
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + offsets, mask=offsets < length, other=0.0)
    tl.store(total_ptr, tl.sum(total, axis=0))


@triton.jit
def reduce_kernel(values_ptr, sums_ptr, running_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row sums, the sum of everything, and running sums, all in the inputs' dtype."""
    tile = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    values = tl.load(values_ptr + tile)
    tl.store(sums_ptr + tl.arange(0, ROWS), tl.sum(values, axis=1))
    tl.store(sums_ptr + ROWS, tl.sum(values))
    tl.store(running_ptr + tile, tl.cumsum(values, axis=1))


def _values(count=1024):
    torch.manual_seed(0)
    values = torch.randn(count) * torch.logspace(-9, 5, count)
    values[: len(EDGES)] = torch.tensor(EDGES)
    return values.to(kernels.device())


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_casts_round_to_nearest_even(target):
    source = _values()
    result = torch.empty(1024, dtype=target, device=kernels.device())
    cast_kernel[(1,)](source, result, BLOCK=1024)
    torch.testing.assert_close(result, source.to(target), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_casts_to_float8_round_and_saturate(target):
    if not kernels.INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8")
    source = _values()
    result = torch.empty(1024, dtype=target, device=kernels.device())
    cast_kernel[(1,)](source, result, BLOCK=1024)
    largest = torch.finfo(target).max
    saturated = torch.where(source.isnan(), torch.nan, source.clamp(-largest, largest))
    # To the bit: of zeros and NaNs the sign counts too. The conversion gives the NaN without one.
    assert torch.equal(result.view(torch.uint8), saturated.to(target).view(torch.uint8))


@pytest.mark.parametrize(
    "source", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_widening_casts_are_exact(source):
    if not kernels.INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8")
    bits = torch.arange(2 ** (8 * min(source.itemsize, 1)), device=kernels.device())
    values = (bits.to(torch.uint8) if source.itemsize == 1 else bits.short() * 257).view(source)
    result = torch.empty(256, dtype=torch.float32, device=kernels.device())
    cast_kernel[(1,)](values, result, BLOCK=256)
    torch.testing.assert_close(result, values.float(), rtol=0, atol=0, equal_nan=True)


def test_bfloat16_arithmetic_uses_values_not_bit_patterns():
    x, y = (torch.randn(256, device=kernels.device()).bfloat16() for _ in range(2))
    results = torch.empty(4, 256, dtype=torch.bfloat16, device=kernels.device())
    arithmetic_kernel[(1,)](x, y, results, BLOCK=256)
    for row, function in enumerate((operator.add, operator.sub, operator.mul, torch.minimum)):
        torch.testing.assert_close(results[row], function(x, y), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_sums_add_values_not_bit_patterns(dtype):
    # Small integers: every sum is exact in every dtype, whatever the order.
    values = torch.randint(-2, 3, (4, 16), device=kernels.device()).to(dtype)
    sums = torch.empty(5, dtype=dtype, device=kernels.device())
    running = torch.empty_like(values)
    reduce_kernel[(1,)](values, sums, running, ROWS=4, COLUMNS=16)
    assert torch.equal(
        sums, torch.cat([values.double().sum(1), values.double().sum()[None]]).to(dtype)
    )
    assert torch.equal(running, values.double().cumsum(1).to(dtype))


def test_fma_rounds_once():
    torch.manual_seed(0)
    x, y = (torch.randn(256, device=kernels.device()) for _ in range(2))
    z = -x * y  # what is left is the rounding error of the product
    result = torch.empty(256, device=kernels.device())
    fma_kernel[(1,)](x, y, z, result, BLOCK=256)
    assert torch.equal(result, (x.double() * y.double() + z.double()).float())
    assert result.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dot_multiplies_values_and_accumulates_in_float32(dtype):
    torch.manual_seed(0)
    # Small integers: every product and sum is exact, so the result must be.
    a, b = (torch.randint(-8, 9, (64, 64), device=kernels.device()).to(dtype) for _ in range(2))
    c = torch.empty(64, 64, device=kernels.device())
    dot_kernel[(1,)](a, b, c, SIZE=64)
    assert torch.equal(c.double(), a.double() @ b.double())


def test_a_loop_bound_may_be_known_only_at_run_time():
    values = torch.ones(1000, device=kernels.device())
    total = torch.empty(1, device=kernels.device())
    sum_kernel[(1,)](values, total, 777, BLOCK=64)
    assert total.item() == 777
