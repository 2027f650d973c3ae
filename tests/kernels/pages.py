"""Sequences in a paged cache, with everything poisoned that must not be read; and what must come out."""

from dataclasses import dataclass, field
from types import ModuleType

import torch

import kernels
from kernels import paged, reference
from tests.kernels.grid import call_on_poisoned_memory

FP8 = torch.float8_e4m3fn
LAYOUTS = ("one tensor", "apart", "sliced")


@dataclass(frozen=True)
class Case:
    """What a batch looks like."""

    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.float16
    cache: str = "as it is"
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 16
    block_size: int = 16
    layout: str = "one tensor"
    seed: int = 0

    def __str__(self) -> str:
        heads = "/".join(map(str, self.heads))
        lengths = "+".join(map(str, self.lengths))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{lengths}-{dtype}-{self.cache}-h{heads}-d{self.head_dim}-b{self.block_size}-{self.layout}"


@dataclass
class Batch:
    """Caches, tables and lengths as the kernels take them; ``keys`` and ``values`` as they were meant."""

    case: Case
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    context_lengths: torch.Tensor
    keys: list[torch.Tensor] = field(default_factory=list)  # (length, kv_heads, head_dim) each
    values: list[torch.Tensor] = field(default_factory=list)
    scales: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple:
        return self.key_cache, self.value_cache, self.block_tables

    def slots(self, sequence: int) -> torch.Tensor:
        """Of all tokens of a sequence."""
        tokens = torch.arange(self.case.lengths[sequence], device=self.block_tables.device)
        block_size = self.case.block_size
        blocks = self.block_tables[sequence].long()
        return blocks[tokens // block_size] * block_size + tokens % block_size


def make_batch(case: Case, keys=None, values=None) -> Batch:
    """Sequences of numbers from N(0, 1) in blocks of a random order.

    All other slots are NaN. Table entries without a block name block 0, which nobody has. Written with
    indexing, not with the kernels.
    """
    generator = torch.Generator().manual_seed(case.seed)
    kv_heads, size = case.heads[1], case.block_size
    counts = [-(-length // size) for length in case.lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator) + 1
    key_cache, value_cache = empty_caches(case, len(order) + 1)
    tables = torch.zeros(len(counts), max(counts, default=0) + 2, dtype=torch.int32)
    batch = Batch(case, key_cache, value_cache, tables.to(key_cache.device), None)
    batch.context_lengths = torch.tensor(case.lengths, dtype=torch.int32, device=key_cache.device)
    if key_cache.dtype == FP8:
        a_head = torch.rand(kv_heads, generator=generator) / 100 + 0.005
        batch.scales = {"key_scale": a_head, "value_scale": torch.tensor(0.02)}
        batch.scales = {name: scale.to(key_cache.device) for name, scale in batch.scales.items()}
    for index, (length, count) in enumerate(zip(case.lengths, counts, strict=True)):
        batch.block_tables[index, :count] = order[:count].int().to(key_cache.device)
        order = order[count:]
        for name, given, cache, kept in (
            ("key_scale", keys, key_cache, batch.keys),
            ("value_scale", values, value_cache, batch.values),
        ):
            drawn = torch.randn(length, kv_heads, case.head_dim, generator=generator)
            meant = (given[index] if given is not None else drawn).to(key_cache.device)
            kept.append(
                write(cache, batch.slots(index), meant.to(case.dtype), batch.scales.get(name))
            )
    return batch


def write(cache, slots, tokens, scale) -> torch.Tensor:
    """Put tokens into slots by indexing, and return what they are as stored."""
    if scale is not None:
        scale = scale if scale.ndim == 0 else scale[:, None]
        tokens = (tokens.float() / scale).clamp(-448, 448).to(FP8)
    size = cache.shape[1]
    if scale is None:
        cache[slots // size, slots % size] = tokens
        return tokens
    cache.view(torch.uint8)[slots // size, slots % size] = tokens.view(torch.uint8)
    return tokens.float() * scale


def empty_caches(case: Case, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys' and values' cache, NaN everywhere, in the case's layout."""
    shape = (num_blocks, case.block_size, case.heads[1], case.head_dim)
    dtype = FP8 if case.cache == "fp8" else case.dtype

    def poisoned(*shape):
        filled = torch.full(shape, float("nan"), device=kernels.device())
        return filled.to(dtype)

    if case.layout == "one tensor":
        layers = poisoned(2, 2, *shape)
        return layers[1, 0], layers[1, 1]
    if case.layout == "sliced":
        blocks, size, heads, head_dim = shape
        wide = poisoned(2, blocks, size + 1, heads + 2, head_dim + 16)
        return tuple(wide[:, :, 1:, 1:-1, 16:])
    return poisoned(*shape), poisoned(*shape)


def make_query(case: Case, tokens: int, seed: int = 1) -> torch.Tensor:
    """Queries for so many tokens; with "sliced", not contiguous in any dimension."""
    generator = torch.Generator().manual_seed(seed)
    heads, head_dim = case.heads[0], case.head_dim
    if case.layout == "sliced":
        wide = torch.randn(heads + 1, tokens + 2, 2 * head_dim, generator=generator)
        query = wide[1:, 2:, ::2].transpose(0, 1)
    else:
        query = torch.randn(tokens, heads, head_dim, generator=generator)
    moved = torch.empty_strided(query.shape, query.stride(), dtype=case.dtype)
    return moved.copy_(query).to(kernels.device())


def assert_decodes(
    batch: Batch, *, module: ModuleType = paged, query=None, scale=None, num_splits=None
) -> torch.Tensor:
    """Decode on poisoned memory and compare output and logsumexp with float64, sequence by sequence."""
    if query is None:
        query = make_query(batch.case, len(batch.case.lengths))
    before = [bits(x) for x in (query, *batch.arguments)]
    output, logsumexp = call_on_poisoned_memory(
        module.decode,
        query,
        *batch.arguments,
        batch.context_lengths,
        softmax_scale=scale,
        num_splits=num_splits,
        return_logsumexp=True,
        **batch.scales,
    )
    assert_unchanged(before, (query, *batch.arguments))
    assert output.dtype == query.dtype and output.shape == query.shape and output.is_contiguous()
    assert logsumexp.dtype == torch.float32 and logsumexp.shape == query.shape[:2]
    for index in range(len(query)):
        one = (query[index : index + 1], batch.keys[index], batch.values[index])
        assert_within_budget(*one, output[index : index + 1], logsumexp[index : index + 1], scale)
    return output


def assert_prefills(
    batch: Batch,
    queries: tuple[int, ...],
    *,
    module: ModuleType = paged,
    query=None,
    scale=None,
    padding=0,
) -> torch.Tensor:
    """The same for prefill with so many queries of each sequence, and ``padding`` tokens of none."""
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0)], dtype=torch.int32)
    if query is None:
        query = make_query(batch.case, int(starts[-1]) + padding)
    before = [bits(x) for x in (query, *batch.arguments)]
    output = call_on_poisoned_memory(
        module.prefill,
        query,
        *batch.arguments,
        starts.to(query.device),
        batch.context_lengths,
        max_query_length=max(queries, default=0) + 3,
        softmax_scale=scale,
        **batch.scales,
    )
    assert_unchanged(before, (query, *batch.arguments))
    assert output.dtype == query.dtype and output.shape == query.shape and output.is_contiguous()
    for index in range(len(queries)):
        rows = slice(int(starts[index]), int(starts[index + 1]))
        one = (query[rows], batch.keys[index], batch.values[index])
        assert_within_budget(*one, output[rows], None, scale)
    assert (output[int(starts[-1]) :] == 0).all()
    return output


def assert_within_budget(query, key, value, output, logsumexp, scale) -> None:
    """One sequence, all tensors (tokens, heads, head_dim), against the oracle."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    options = {"causal": True, "scale": scale}
    expected, expected_logsumexp = reference.attention(
        query, key, value, return_logsumexp=True, **options
    )
    error = reference.errors(output.transpose(0, 1)[None], expected)
    allowed = reference.error_budget(query, key, value, **options)
    assert error.within(allowed), f"output: error {error}; allowed {allowed}"
    if logsumexp is not None:
        error = reference.errors(logsumexp.mT[None], expected_logsumexp)
        allowed = reference.logsumexp_budget(query, key, value, **options)
        assert error.within(allowed), f"logsumexp: error {error}; allowed {allowed}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that equals itself where the tensor is NaN."""
    return tensor.contiguous().clone().view(torch.uint8)


def assert_unchanged(before, after) -> None:
    for name, was, now in zip(("query", "key", "value", "tables"), before, after, strict=True):
        assert torch.equal(was, bits(now)), f"the kernel changed {name}"
