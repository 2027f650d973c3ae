"""The correctness grid: the inputs on which every attention kernel is compared with the oracle."""

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

import kernels
from kernels import reference

HEAD_DIMS = (16, 32, 64, 80, 128, 256)
# Where every pair has met, a selection of pairs goes on with the first or second dtype and the last heads:
# so in both the quickest to interpret come there.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Interpreted, it is a few keys more than two of the widest tiles, and no more.
LONG = 520 if kernels.INTERPRETED else 1000
# Tiles of queries are 128 at most: with 111 keys and a causal mask one sees nothing, one has rows that do.
MANY = 300 if kernels.INTERPRETED else 1000
LENGTHS = (  # (seq_query, seq_key): odd, unequal, shorter and longer than a tile
    (1, 1),
    (1, 257),
    (2, 63),
    (63, 2),
    (63, 111),
    (111, 63),
    (129, 257),
    (257, 129),
    (257, 257),
    (1, LONG),
    (111, LONG),
    (MANY, 111),
)
HEADS = ((4, 1), (4, 2), (2, 2))  # (heads, kv_heads): multi-query, grouped-query, multi-head
LAYOUTS = ("contiguous", "batch-seq-head", "sliced")


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    dtype: torch.dtype
    head_dim: int
    lengths: tuple[int, int]
    heads: tuple[int, int]
    causal: bool
    layout: str

    @property
    def batch(self) -> int:
        """Two sequences; interpreted, one if it is long: 5 of 12 lengths are short, and heads stay many."""
        return 1 if kernels.INTERPRETED and max(self.lengths) >= 257 else 2

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        causal = "causal" if self.causal else "full"
        sizes = f"{self.lengths[0]}x{self.lengths[1]}-h{self.heads[0]}/{self.heads[1]}"
        return f"{dtype}-d{self.head_dim}-{sizes}-{causal}-{self.layout}"


def full_grid(head_dims=HEAD_DIMS, dtypes=DTYPES, **axes) -> list:
    """Every combination; for the GPU. With more axes, tuples of a cell and a value of each."""
    return _cells(itertools.product(*_axes(head_dims, dtypes), *axes.values()))


def pairwise_grid(head_dims=HEAD_DIMS, dtypes=DTYPES, **axes) -> list:
    """A selection in which every pair of values of two axes meets; for the interpreter."""
    from allpairspy import AllPairs

    return _cells(AllPairs([*_axes(head_dims, dtypes), *map(list, axes.values())]))


def _axes(head_dims, dtypes) -> list[list]:
    return [list(dtypes), list(head_dims), list(LENGTHS), list(HEADS), [False, True], list(LAYOUTS)]


def _cells(combinations) -> list:
    cells = []
    for values in combinations:
        cell, others = Cell(*values[:6]), values[6:]
        cells.append((cell, *others) if others else cell)
    return cells


def make_inputs(cell: Cell) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of a cell, drawn from N(0, 1), in the cell's memory layout."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(cell).encode()))
    heads, kv_heads = cell.heads
    seq_query, seq_key = cell.lengths
    return tuple(
        _laid_out((cell.batch, h, n, cell.head_dim), cell.layout, generator).to(
            dtype=cell.dtype, device=kernels.device()
        )
        for h, n in ((heads, seq_query), (kv_heads, seq_key), (kv_heads, seq_key))
    )


def _laid_out(shape, layout, generator) -> torch.Tensor:
    batch, heads, seq, head_dim = shape
    if layout == "batch-seq-head":
        return torch.randn(batch, seq, heads, head_dim, generator=generator).transpose(1, 2)
    if layout == "sliced":
        # Every second element of a wider tensor: no dimension is contiguous, not even the last.
        wide = torch.randn(batch, heads + 1, seq + 3, 2 * head_dim, generator=generator)
        return wide[:, 1:, 2:-1, ::2]
    return torch.randn(shape, generator=generator)


def inputs_far_apart(far: str, stride: int = 2**31 + 8):
    """Two triples of equal query, key and value; along ``far`` the second's elements lie ``stride`` apart.

    Args:
        far: ``"batch"``, ``"head"``, ``"row"`` or ``"head_dim"``; for the last ``stride`` is that of the
            whole dimension.
    """
    axis = ["batch", "head", "row", "head_dim"].index(far)
    shape = [(2, 1, 33, 16), (1, 2, 33, 16), (1, 1, 2, 16), (1, 1, 33, 16)][axis]
    if far == "head_dim":
        stride = (stride + 8) // 15
    torch.manual_seed(0)
    near = [torch.randn(shape).half().to(kernels.device()) for _ in range(3)]
    spread = []
    for tensor in near:
        strides = list(tensor.stride())
        strides[axis] = stride
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        memory = torch.empty(extent, device=tensor.device, dtype=tensor.dtype)
        spread.append(memory.as_strided(shape, strides).copy_(tensor))
    return near, spread


def exact_score_inputs(dtype, magnitude, lengths=(111, 257), head_dim=64):
    """Inputs whose scores, at scale 1, are exact in float16 and bfloat16: small integers times magnitude.

    A kernel that rounds its scores loses nothing here, so it must meet the strict budget. Each query is
    one-hot, so a score is one key element; magnitude is a power of two.
    """
    generator = torch.Generator().manual_seed(7)
    seq_query, seq_key = lengths
    chosen = torch.randint(head_dim, (1, 2, seq_query), generator=generator)
    query = torch.nn.functional.one_hot(chosen, head_dim).float() * magnitude
    key = torch.randint(-10, 11, (1, 2, seq_key, head_dim), generator=generator).float()
    value = torch.randn(1, 2, seq_key, head_dim, generator=generator)
    return tuple(x.to(dtype=dtype, device=kernels.device()) for x in (query, key, value))


def assert_matches_oracle(
    attention: Callable,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    rounded_scores: bool = False,
) -> None:
    """Run a kernel on poisoned memory and compare output and logsumexp with float64."""
    before = [x.clone() for x in (query, key, value)]
    output, logsumexp = call_on_poisoned_memory(
        attention, query, key, value, causal=causal, scale=scale, return_logsumexp=True
    )
    for name, was, now in zip(("query", "key", "value"), before, (query, key, value), strict=True):
        assert torch.equal(was, now), f"the kernel changed {name}"
    assert output.dtype == query.dtype and output.shape == query.shape
    assert logsumexp.dtype == torch.float32 and logsumexp.shape == query.shape[:-1]
    assert not output.isnan().any(), f"{output.isnan().sum()} elements were not written, or are NaN"

    options = {"causal": causal, "scale": scale}
    expected, expected_logsumexp = reference.attention(
        query, key, value, return_logsumexp=True, **options
    )
    for name, result, truth, budget in (
        ("output", output, expected, reference.error_budget),
        ("logsumexp", logsumexp, expected_logsumexp, reference.logsumexp_budget),
    ):
        allowed = budget(query, key, value, rounded_scores=rounded_scores, **options)
        error = reference.errors(result, truth)
        assert error.within(allowed), f"{name}: error {error}; allowed {allowed}"


def call_on_poisoned_memory(function: Callable, *args, **kwargs):
    """Call with every uninitialised allocation filled with NaN, so that an unwritten element shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan().all(), "PyTorch did not fill uninitialised memory"
        return function(*args, **kwargs)
    finally:
        torch.use_deterministic_algorithms(False)
