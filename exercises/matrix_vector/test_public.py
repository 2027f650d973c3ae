"""The public tests of `matrix_vector`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others no room: unless a test is about them,
inputs are float32, contiguous, and 16 rows by 16 columns. Behind rows and columns in memory lies NaN.
`student` holds the learner's function; while it runs, memory that PyTorch allocates without a value is
filled with NaN. Expected values are computed in float64. A sum of n products of float32 numbers may be off
by n times half a unit in the last place, of the sum of their sizes, in whatever order they are added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import kernels
from instruments import traffic

EPSILON = torch.finfo(torch.float32).eps
BEHIND = 4096  # elements, more than most tiles have rows


def draw(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and a vector of normally distributed numbers, with NaN behind them in memory."""
    generator = torch.Generator().manual_seed(10000 * rows + columns)
    memory = torch.full((rows + 1, columns), torch.nan)
    memory[:rows] = torch.randn(rows, columns, generator=generator)
    vector = torch.full((columns + BEHIND,), torch.nan)
    vector[:columns] = torch.randn(columns, generator=generator)
    return memory.to(kernels.device())[:rows], vector.to(kernels.device())[:columns]


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
    student, matrix: torch.Tensor, vector: torch.Tensor
) -> tuple[torch.Tensor, bool]:
    """The output, and whether the memory behind what was allocated is as it was."""
    with memory_behind() as behind:
        result = student.matrix_vector(matrix, vector)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = (len(matrix),), tuple(result.shape)
    assert came == expected, f"The output must have the shape (rows,), {expected}, and has {came}."
    assert result.dtype == torch.float32, (
        f"The output must be float32 whatever the inputs are, and is {result.dtype}: allocate it so."
    )
    assert result.device == matrix.device, (
        f"The output must be on the device of matrix, {matrix.device}, and is on {result.device}."
    )
    return result, all((memory == 1).all() for memory in behind)


def call(student, matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return call_and_look_behind(student, matrix, vector)[0]


def exact_product(matrix: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in float64, and how far each element may be off."""
    products = matrix.double() * vector.double()
    return products.sum(1), matrix.shape[1] * EPSILON / 2 * products.abs().sum(1)


def assert_right(student, matrix: torch.Tensor, vector: torch.Tensor, mistake: str) -> None:
    """Compare with the exact product."""
    exact, allowed = exact_product(matrix, vector)  # before the call, which may change them
    result = call(student, matrix, vector)
    assert ((result.double() - exact).abs() <= allowed).all(), mistake


def test_one_tile(student):
    matrix, vector = draw(16, 16)
    assert not call(student, matrix, vector).isnan().any(), (
        "The output has NaN in it: either the kernel does not store every row, or it reads past the "
        "last column, where other memory lies; load with a mask, and other=0.0."
    )
    assert_right(
        student,
        matrix,
        vector,
        "16 rows and 16 columns are wrong already: multiply the tile by vector[None, :], which lays the "
        "vector over every row, and sum along axis=1.",
    )


def test_many_rows(student):
    assert_right(
        student,
        *draw(256, 16),
        "16 rows work and 256 do not: program i owns the rows i * BLOCK_M + tl.arange(0, BLOCK_M), in the "
        "load and in the store, and the grid needs triton.cdiv(rows, BLOCK_M) programs.",
    )


def test_many_columns(student):
    assert_right(
        student,
        *draw(16, 1024),
        "16 columns work and 1024 do not: loop over all tiles of columns, take matrix and vector from "
        "the same columns, and add each tile's sum to the accumulator.",
    )


@pytest.mark.parametrize("rows", [1, 15, 17, 100])
def test_any_number_of_rows(student, rows):
    matrix, vector = draw(rows, 16)
    call(student, *draw(16, 16))  # an error here has nothing to do with the number of rows
    mistake = (
        f"16 rows work and {rows} do not: BLOCK_M must be a power of two, the grid is rounded up "
        "(triton.cdiv), and loads and store need the mask row < rows."
    )
    try:
        _, untouched = call_and_look_behind(student, matrix, vector)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error
    assert untouched, (
        f"With {rows} rows the kernel writes on behind the output, over somebody else's memory: store with "
        "mask=row < rows."
    )
    assert_right(student, matrix, vector, mistake)


@pytest.mark.parametrize("columns", [1, 15, 17, 100, 1000])
def test_any_number_of_columns(student, columns):
    matrix, vector = draw(16, columns)
    call(student, *draw(16, 16))  # an error here has nothing to do with the number of columns
    mistake = (
        f"16 columns work and {columns} do not: BLOCK_N must be a power of two, the loop must reach the "
        "last tile, and what is past the last column must count as 0, in the matrix and in the vector "
        "(mask=column < columns, other=0.0; 0 times NaN is NaN)."
    )
    try:
        assert_right(student, matrix, vector, mistake)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(mistake) from error


@pytest.mark.parametrize(
    "layout", ["every second row", "every second column", "transposed", "every second element"]
)
def test_strides(student, layout):
    matrix, vector = draw(16, 32)
    memory = {
        "every second row": matrix.new_full((32, 32), torch.nan)[::2],
        "every second column": matrix.new_full((16, 64), torch.nan)[:, ::2],
        "transposed": matrix.new_full((32, 16), torch.nan).T,
        "every second element": vector.new_full((64,), torch.nan)[::2],
    }[layout]
    if memory.ndim == 2:
        name, place = "matrix", "row * row_stride + column * column_stride"
        matrix = memory.copy_(matrix)
    else:
        name, place = "vector", "column * vector_stride"
        vector = memory.copy_(vector)
    assert_right(
        student,
        matrix,
        vector,
        f"A {name} with strides {memory.stride()} ({layout}) is read wrongly: its elements are at {place}, "
        f"and {name}.stride() gives what neighbours are apart.",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(student, dtype):
    matrix, vector = (numbers.to(dtype) for numbers in draw(16, 64))
    vector = vector.abs() * 100
    matrix[:8] = matrix[:8].abs() * 100  # in the first rows sums of some 400 000
    assert_right(
        student,
        matrix,
        vector,
        f"float32 works and {dtype} does not: convert both with .to(tl.float32) as they are loaded, and "
        "keep products, accumulator and output in float32.",
    )


def test_memory_traffic(student):
    rows, columns, size = 48, 80, 4
    matrix, vector = draw(rows, columns)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")
    with traffic.counting() as counted:
        call(student, matrix, vector)
    loaded = sum(buffer.loaded for buffer in counted.buffers.values())
    least, allowed = size * (rows + 1) * columns, size * (rows + rows // 16) * columns
    assert loaded >= least, (
        f"Matrix and vector are {least} bytes, and your kernel loads {loaded}: it must read both, and "
        "multiply them itself."
    )
    assert loaded <= allowed, (
        f"Your kernel loads {loaded} bytes, and {allowed} are allowed: the matrix once, and the vector "
        "once for 16 rows, so a program must own at least 16 rows, and load nothing twice."
    )


def test_inputs_unchanged(student):
    matrix, vector = draw(16, 16)
    before = {"matrix": matrix.clone(), "vector": vector.clone()}
    call(student, matrix, vector)
    for name, tensor in (("matrix", matrix), ("vector", vector)):
        assert torch.equal(tensor, before[name]), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
