"""The public tests of `scaled_sum`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room: unless a test is about them,
vectors are float32, contiguous and as long as full blocks, and the factor is 1. `student` holds the
learner's function; while it runs, memory that PyTorch allocates without a value is filled with NaN.
Expected values are computed in float64. Factor, product and sum are rounded to float32, and the result to
its dtype; each rounding may cost half a unit in the last place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import kernels
from instruments import traffic

EPSILON = torch.finfo(torch.float32).eps
BEHIND = 4096  # elements, more than most blocks have
each_16_bit_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def draw(seed: int, length: int) -> torch.Tensor:
    """Normally distributed numbers, with NaN behind them in memory."""
    memory = torch.full((length + BEHIND,), torch.nan)
    generator = torch.Generator().manual_seed(1000 * length + seed)
    memory[:length] = torch.randn(length, generator=generator)
    return memory.to(kernels.device())[:length]


@contextmanager
def memory_behind() -> Iterator[list[torch.Tensor]]:
    """Let what is allocated without a value lie before other memory: a list of it, all ones at first.

    A kernel that writes past the end then breaks a test, and not the process.
    """
    empty, behind = torch.empty, []

    def with_memory_behind(allocate):
        def allocated(*arguments, **options):
            wanted = allocate(*arguments, **options)
            memory = empty(wanted.numel() + BEHIND, dtype=wanted.dtype, device=wanted.device)
            behind.append(memory[wanted.numel() :].fill_(1))
            return memory[: wanted.numel()].view(wanted.shape)

        return allocated

    names = ("empty", "empty_like")
    replaced = {name: with_memory_behind(getattr(torch, name)) for name in names}
    with mock.patch.multiple(torch, **replaced):
        yield behind


def call_and_look_behind(
    student, x: torch.Tensor, y: torch.Tensor, factor: float
) -> tuple[torch.Tensor, bool]:
    """The output, and whether the memory behind what was allocated is as it was."""
    with memory_behind() as behind:
        result = student.scaled_sum(x, y, factor)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = tuple(x.shape), tuple(result.shape)
    assert came == expected, f"The output must have the shape of x, {expected}, and has {came}."
    assert result.device == x.device, (
        f"The output must be on the device of x, {x.device}, and is on {result.device}."
    )
    return result, all((memory == 1).all() for memory in behind)


def call(student, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    return call_and_look_behind(student, x, y, factor)[0]


def exact_sum(x: torch.Tensor, y: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum in float64, and how far each element may be off."""
    product, addend = factor * x.double(), y.double()
    total = product + addend
    # Three roundings to float32, none of a number larger than |product| + |addend|, and one of the sum.
    allowed = 1.5 * EPSILON * (product.abs() + addend.abs())
    if x.dtype != torch.float32:
        allowed += torch.finfo(x.dtype).eps / 2 * total.abs()
    return total, allowed


def is_right(student, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0) -> bool:
    exact, allowed = exact_sum(x, y, factor)  # before the call, which may change x and y
    return bool(((call(student, x, y, factor).double() - exact).abs() <= allowed).all())


def test_one_block(student):
    x, y = draw(0, 64), draw(1, 64)
    assert not call(student, x, y).isnan().all(), (
        "Every element of the output is NaN, as memory is before anything is stored there: launch the "
        "kernel, and end it with tl.store."
    )
    assert is_right(student, x, y), (
        "64 elements and a factor of 1 are wrong already: element i of the output is factor * x[i] + y[i]."
    )


@pytest.mark.parametrize("factor", [0.3, -2.0, 0.0, 3], ids=str)
def test_factor(student, factor):
    x, y = draw(0, 64), draw(1, 64)
    assert is_right(student, x, y, factor), (
        f"A factor of 1 works and {factor} does not: hand it to the kernel, and multiply x by it, not y, "
        "before the two are added."
    )


def test_many_blocks(student):
    x, y = draw(0, 2**14), draw(1, 2**14)
    assert is_right(student, x, y), (
        f"64 elements work and {2**14} do not: program i has the elements i * BLOCK + tl.arange(0, BLOCK), "
        "and the grid needs triton.cdiv(length, BLOCK) programs."
    )


@pytest.mark.parametrize("length", [1, 63, 65, 1000])
def test_any_length(student, length):
    x, y = draw(0, length), draw(1, length)
    # An error here has nothing to do with the length.
    call(student, draw(0, 64), draw(1, 64))
    mistake = (
        f"64 elements work and {length} do not: BLOCK must be a power of two whatever the length is, the "
        "grid is rounded up (triton.cdiv), and the mask index < length switches off what is past the end."
    )
    try:
        _, untouched = call_and_look_behind(student, x, y, 1.0)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error
    assert untouched, (
        f"With {length} elements the kernel writes on behind the output, over somebody else's memory: "
        "store with mask=index < length."
    )
    assert is_right(student, x, y), mistake


def lay_out(numbers: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers spread out in memory, or the first of them expanded."""
    if layout == "one number, expanded":
        return numbers[:1].expand(len(numbers))
    memory = {
        "every second element": numbers.new_full((2 * len(numbers),), torch.nan)[::2],
        "a column of a matrix": numbers.new_full((len(numbers), 5), torch.nan)[:, 3],
    }[layout]
    return memory.copy_(numbers)


@pytest.mark.parametrize(
    "layout", ["every second element", "a column of a matrix", "one number, expanded"]
)
@pytest.mark.parametrize("name", ["x", "y"])
def test_strides(student, name, layout):
    vectors = {"x": draw(0, 256), "y": draw(1, 256)}
    vectors[name] = lay_out(vectors[name], layout)
    stride = vectors[name].stride(0)
    assert is_right(student, **vectors), (
        f"{name} with a stride of {stride} ({layout}) is read wrongly: its element number index is at "
        f"{name}_ptr + index * {name}_stride, and the stride is {name}.stride(0)."
    )


@pytest.mark.parametrize("factor", [3, 3.0], ids=str)
@each_16_bit_dtype
def test_computes_in_float32(student, dtype, factor):
    x = draw(0, 256).to(dtype)
    y = (-factor * x.float()).to(dtype)  # what the product rounds to: only its rounding is left
    assert is_right(student, x, y, factor), (
        f"{dtype} with the factor {factor!r} lost more than rounding the result costs: convert x and y "
        "with .to(tl.float32) as they are loaded, and round only when storing."
    )


@each_16_bit_dtype
def test_output_dtype(student, dtype):
    x, y = draw(0, 64).to(dtype), draw(1, 64).to(dtype)
    result = call(student, x, y)
    assert result.dtype == dtype, (
        f"Vectors in {dtype} gave an output in {result.dtype}: allocate the output with dtype=x.dtype."
    )


def test_bytes(student):
    length = 1000
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    # The two lie side by side, so that who reads past the end of one is seen reading the other.
    sides = draw(0, 2 * length)
    for x, y in (sides[:length], sides[length:]), (sides[length:], sides[:length]):
        with traffic.counting() as counted:
            call(student, x, y)
        loaded = sum(buffer.loaded for buffer in counted.buffers.values())
        stored = sum(buffer.stored for buffer in counted.buffers.values())
        assert loaded >= 8 * length, (
            f"{length} elements of x and y are {8 * length} bytes, and your kernel loads {loaded}: it must "
            "read both, and add them itself."
        )
        assert loaded == 8 * length, (
            f"{length} elements of x and y are {8 * length} bytes, and your kernel loads {loaded}: read "
            "each element once, and none past the end (both loads need mask=index < length)."
        )
        assert stored == 4 * length, (
            f"{length} elements of the output are {4 * length} bytes, and your kernel stores {stored}: "
            "write each element once."
        )


def test_inputs_unchanged(student):
    x, y = draw(0, 64), draw(1, 64)
    before = {"x": x.clone(), "y": y.clone()}
    call(student, x, y, 2.0)
    for name, tensor in (("x", x), ("y", y)):
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
