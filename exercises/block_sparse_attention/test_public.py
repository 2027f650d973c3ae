"""The public tests of `block_sparse_attention`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others little room: unless a test is about the
mask, every block is visible; masks are symmetric, so that rows and columns may be mistaken for each other,
except in the two tests that look for this; lengths are ragged in one test only. `student` holds the
learner's function; while it runs, memory that PyTorch allocates without a value is filled with NaN.
Expected values are computed in float64. The error allowed is twice that of attention in PyTorch with scores
and softmax in float32 and the probabilities rounded to the dtype, as the second product takes them, plus a
few units in the last place of float32.
"""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch

import kernels
from instruments import traffic

BLOCK = 32
HEAD_DIM = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LAYOUTS = ("every second row", "every second column", "transposed")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@dataclass
class Arguments:
    """What the function is called with."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    block_mask: torch.Tensor
    scale: float

    def __iter__(self):
        return (getattr(self, field.name) for field in fields(self))

    @property
    def visible(self) -> torch.Tensor:
        """Which query sees which key."""
        mask = self.block_mask.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return mask[: self.query.shape[0], : self.key.shape[0]]


def draw(seed: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Normally distributed numbers, and large ones behind, which a missing mask would read."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows * columns, generator=generator)
    behind = torch.full((BLOCK * columns,), 100.0)
    memory = torch.cat([numbers, behind]).to(kernels.device(), dtype)
    return memory[: rows * columns].view(rows, columns)


def blocks(*rows: str) -> torch.Tensor:
    """A mask from one string a row, "x" for a visible block; what lies behind it in memory is visible."""
    elements = [[block == "x" for block in row] for row in rows]
    mask = torch.ones(len(rows) + BLOCK, len(rows[0]), dtype=torch.bool, device=kernels.device())
    mask[: len(rows)] = torch.tensor(elements)
    return mask[: len(rows)]


def arguments(
    block_mask: torch.Tensor,
    seq_query: int | None = None,
    seq_key: int | None = None,
    head_dim: int = HEAD_DIM,
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments for this mask, with full blocks unless lengths are given."""
    seq_query = seq_query or BLOCK * block_mask.shape[0]
    seq_key = seq_key or BLOCK * block_mask.shape[1]
    query = draw(1, seq_query, head_dim, dtype)
    key, value = (draw(seed, seq_key, head_dim, dtype) for seed in (2, 3))
    return Arguments(query, key, value, block_mask, head_dim**-0.5)


def attention(given: Arguments, dtype: torch.dtype) -> torch.Tensor:
    """What the exercise asks for, computed by PyTorch in `dtype`, probabilities rounded to the inputs'."""
    visible = given.visible
    unseen = ~visible.any(0)[:, None]
    query = given.query.to(dtype)
    key, value = (given.key.to(dtype), given.value.to(dtype))
    scores = query @ key.masked_fill(unseen, 0.0).T * given.scale
    scores = scores.masked_fill(~visible, -torch.inf)
    probabilities = scores.softmax(1).masked_fill(~visible.any(1)[:, None], 0.0)
    if dtype != torch.float64:
        probabilities = probabilities.to(given.query.dtype).to(dtype)
    return probabilities @ value.masked_fill(unseen, 0.0)


def exact_and_careful(given: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact output, and the one whose error is the yardstick."""
    careful = attention(given, torch.float32).to(given.query.dtype)
    return attention(given, torch.float64), careful


def call(student, given: Arguments) -> torch.Tensor:
    result = student.block_sparse_attention(*given)
    kind = type(result).__name__
    assert isinstance(result, torch.Tensor), (
        f"The function must return a tensor, and returned {kind}."
    )
    expected, came = tuple(given.query.shape), tuple(result.shape)
    assert came == expected, f"The output must have the shape of query, {expected}, and has {came}."
    assert result.device == given.query.device, (
        f"The output must be on the device of query, {given.query.device}, and is on {result.device}."
    )
    return result


def assert_right(student, given: Arguments, mistake: str) -> None:
    """Compare the rows that see a key with exact attention."""
    exact, careful = exact_and_careful(given)
    largest = given.value[given.visible.any(0)].abs().max()
    allowed = 2 * (careful - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * largest
    error = (call(student, given) - exact).abs()[given.visible.any(1)].max()
    assert error <= allowed, f"{mistake} (Largest error {error:.1e}; allowed {allowed:.1e}.)"


def laid_out(matrix: torch.Tensor, layout: str) -> torch.Tensor:
    """The same matrix, differently in memory; what lies between its elements is something else."""
    rows, columns = matrix.shape
    if layout == "transposed":
        return matrix.T.contiguous().T
    if layout == "every second row":
        memory = matrix.new_ones(2 * rows, columns)
        view = memory[::2]
    else:
        memory = matrix.new_ones(rows, 2 * columns)
        view = memory[:, ::2]
    return view.copy_(matrix)


def test_all_visible(student):
    assert_right(
        student,
        arguments(blocks(*["xxx"] * 6)),
        "With every block visible the output is wrong already: every block of queries needs a program, "
        "and every block of keys must be taken in by attend.",
    )


@pytest.mark.parametrize(
    "rows",
    [("x..x", "xx..", "x.x.", "xxxx"), ("x..x.", "xx..x"), ("xx", "x.", "xx", "x.")],
    ids=["4x4", "2x5", "4x2"],
)
def test_block_mask(student, rows):
    assert_right(
        student,
        arguments(blocks(*rows)),
        f"A mask of {len(rows)} x {len(rows[0])} blocks goes wrong: block_mask[i, j] says whether block i "
        "of the queries sees block j of the keys, so the program's own block chooses the row and the "
        "loop's block the column; a hidden block must change neither maximum, nor sum, nor accumulator.",
    )


def test_hidden_start(student):
    given = arguments(blocks("..x", ".xx", "xxx"))
    assert not call(student, given).isnan().any(), (
        "Queries whose first blocks are hidden become NaN: scores of -inf leave the maximum at -inf, and "
        "-inf - -inf is NaN; do not take a hidden block in at all."
    )
    assert_right(
        student,
        given,
        "Queries whose first blocks are hidden go wrong: after a hidden block the maximum must still be "
        "-inf, the sum 0 and the accumulator 0.",
    )


@every_dtype
def test_hidden_rows(student, dtype):
    given = arguments(blocks("x.x", "...", "x.x"), dtype=dtype)
    rows = call(student, given)[BLOCK : 2 * BLOCK]
    assert not rows.isnan().any(), (
        "Queries that see no key are NaN: their sum is 0, and 0 / 0 is NaN; put 1 in place of a sum of 0 "
        "before the division."
    )
    assert (rows == 0).all(), (
        f"Queries that see no key must become zeros, and one number is {rows.abs().max():.3g}."
    )


def test_skips_hidden_blocks(student):
    full = arguments(blocks(*["xxxxxx"] * 6))
    sparse = replace(full, block_mask=torch.eye(6, dtype=torch.bool, device=kernels.device()))
    call(student, sparse)
    if not kernels.INTERPRETED:
        pytest.skip("a kernel's loads can be counted only where it is interpreted, without a GPU")

    def loaded(given: Arguments) -> int:
        with traffic.counting() as counted:
            call(student, given)
        return sum(buffer.loaded for buffer in counted.buffers.values())

    once = sum(tensor.numel() * tensor.element_size() for tensor in (full.key, full.value))
    everything = loaded(full)
    assert everything >= once, (
        "Your kernels do not even load all keys and values once: attention must be computed by them, not "
        "by PyTorch."
    )
    # Queries are loaded in any case: 6 blocks, beside 12 of the 72 that keys and values have in all.
    share = loaded(sparse) / everything
    assert share <= 1 / 3, (
        f"With 1 block in 6 visible, your kernels load {share:.0%} of the bytes they load with all of them "
        "visible: put the loads of a key and a value block under the condition that it is visible."
    )


@pytest.mark.parametrize("number", [1000.0, math.nan])
def test_hidden_numbers(student, number):
    given = arguments(blocks("x.x", "...", "x.."))
    given.key[BLOCK : 2 * BLOCK] *= number
    given.value[BLOCK : 2 * BLOCK] *= number
    assert_right(
        student,
        given,
        f"Keys and values that nobody sees were multiplied by {number}, and it shows: a hidden block must "
        "not be taken into the maximum, and 0 times NaN is NaN, so skip it and do not multiply by 0.",
    )


@every_layout
def test_mask_strides(student, layout):
    contiguous = arguments(blocks("x.x", "xx."))
    strided = replace(contiguous, block_mask=laid_out(contiguous.block_mask, layout))
    row_stride, column_stride = strided.block_mask.stride()
    error = (call(student, strided) - call(student, contiguous)).abs().max()
    # The same kernel on the same numbers, so nothing is rounded differently.
    assert error == 0, (
        f"A mask whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: element (i, j) is at i * block_mask.stride(0) + "
        "j * block_mask.stride(1)."
    )


@pytest.mark.parametrize("lengths", [(1, 1), (31, 33), (63, 111), (100, 65)], ids=str)
def test_any_length(student, lengths):
    mask = blocks(*["x" * -(-lengths[1] // BLOCK)] * -(-lengths[0] // BLOCK))
    assert_right(
        student,
        arguments(mask, *lengths),
        f"{lengths[0]} queries and {lengths[1]} keys go wrong: the last block of either is ragged; it "
        "needs a program or a turn of the loop, too (round up), and what lies past the end must not count.",
    )


@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_dims(student, head_dim):
    assert_right(
        student,
        arguments(blocks("xx"), head_dim=head_dim),
        f"A head dimension of {HEAD_DIM} works and {head_dim} does not: launch with "
        "HEAD_DIM=query.shape[1].",
    )


@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_scale(student, scale):
    given = replace(arguments(blocks("xx")), scale=scale)
    assert_right(
        student,
        given,
        f"A scale of {scale} goes wrong: the scores are multiplied by the argument scale, whatever the "
        "head dimension.",
    )


@every_layout
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_strides(student, name, layout):
    given = arguments(blocks("xx"))
    strided = laid_out(getattr(given, name), layout)
    row_stride, column_stride = strided.stride()
    assert_right(
        student,
        replace(given, **{name: strided}),
        f"A {name} whose rows lie {row_stride} and columns {column_stride} elements apart in memory "
        f"({layout}) is read wrongly: its element (row, column) is at row * {name}.stride(0) + "
        f"column * {name}.stride(1).",
    )


@pytest.mark.parametrize("scale", [0.1, 1.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_computes_in_float32(student, dtype, scale):
    given = replace(arguments(blocks("x" * 16), dtype=dtype), scale=scale)
    exact, careful = exact_and_careful(given)
    result = call(student, given)

    def rounding(output):
        return (output - exact).square().mean().sqrt() / exact.square().mean().sqrt()

    def bias(output):
        # Roundings of single elements average out; that of a row's sum scales all of the row.
        return ((output * exact).sum(1) / (exact * exact).sum(1) - 1).abs().max()

    for error in (rounding, bias):
        allowed = 2 * error(careful) + 4 * torch.finfo(torch.float32).eps
        assert error(result) <= allowed, (
            f"{dtype} lost more than rounding the probabilities and the result costs: keep scores, maxima, "
            "sums and accumulator in float32, and round only for tl.dot and when storing. "
            f"(The {error.__name__} is {error(result):.1e}; allowed {allowed:.1e}.)"
        )


@every_dtype
def test_output_dtype(student, dtype):
    result = call(student, arguments(blocks("xx"), dtype=dtype))
    assert result.dtype == dtype, (
        f"Inputs in {dtype} gave an output in {result.dtype}: allocate the output with dtype=query.dtype."
    )


def test_output_is_contiguous(student):
    given = arguments(blocks("xx"))
    result = call(student, replace(given, query=laid_out(given.query, "transposed")))
    assert result.is_contiguous(), (
        f"The output has strides {result.stride()} and must be contiguous: torch.empty_like copies the "
        "strides of a transposed input, torch.empty(query.shape, ...) does not."
    )


def test_inputs_unchanged(student):
    given = arguments(blocks("x.x", ".xx", "x.."))
    names = ("query", "key", "value", "block_mask")
    before = {name: getattr(given, name).clone() for name in names}
    call(student, given)
    for name in names:
        assert torch.equal(getattr(given, name), before[name]), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
