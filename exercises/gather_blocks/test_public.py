"""The public tests of `decode`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and its inputs leave the others little room: unless a test is about them,
blocks have 8 tokens and lie in order, contexts end with a block and within one tile, scores are small,
there is one sequence, tensors are contiguous, and slots without a token are zeros. `student` holds the
learner's function.

Expected values are computed in float64. A weight goes through a sum of `head_dim` products, an exponential
and a quotient, and an output through a sum of as many terms as there are tokens: 64 units in the last place
of float32, relative to the largest value, are room enough for sums of a few hundred.
"""

import math

import pytest
import torch

import kernels

HEADS, HEAD_DIM, BLOCK_SIZE = 2, 16, 8
ALLOWED = 64 * torch.finfo(torch.float32).eps


class Given:
    """Sequences of random keys and values in blocks; all else in the caches is ``rest``, and beside them.

    Tables have entries to spare, which name the last block; no sequence has it.
    """

    def __init__(
        self,
        lengths,
        order=None,
        *,
        block_size=BLOCK_SIZE,
        head_dim=HEAD_DIM,
        rest=0.0,
        size=1.0,
        shift=0.0,
    ) -> None:
        generator = torch.Generator().manual_seed(sum(lengths) + block_size)
        counts = [-(-length // block_size) for length in lengths]
        order = list(range(sum(counts))) if order is None else [*order]
        num_blocks = max([*order, 0]) + 2
        caches = torch.full((2, num_blocks, block_size, HEADS, head_dim), rest)
        self.tables = torch.full(
            (len(lengths), max(counts) + 32), num_blocks - 1, dtype=torch.int32
        )
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.query = torch.randn(len(lengths), HEADS, head_dim, generator=generator)
        self.query *= 8 * size / self.query.norm(dim=2, keepdim=True)
        self.keys, self.values = [], []
        for row, length, count, query in zip(self.tables, lengths, counts, self.query, strict=True):
            row[:count] = torch.tensor(order[:count], dtype=torch.int32)
            order = order[count:]
            tokens = torch.arange(length)
            places = row[tokens // block_size].long(), tokens % block_size
            key = torch.randn(length, HEADS, head_dim, generator=generator)
            # A score is lower by shift at every token.
            key -= shift * query * math.sqrt(head_dim) / query.square().sum(1, keepdim=True)
            value = torch.randn(length, HEADS, head_dim, generator=generator)
            for cache, kept, numbers in zip(
                caches, (self.keys, self.values), (key, value), strict=True
            ):
                cache[places] = numbers
                kept.append(numbers)
        device = kernels.device()
        self.caches = [cache.clone().to(device) for cache in caches]
        self.query, self.tables, self.lengths = (
            x.to(device) for x in (self.query, self.tables, self.lengths)
        )

    @property
    def arguments(self):
        return (self.query, *self.caches, self.tables, self.lengths)

    @property
    def exact(self) -> torch.Tensor:
        rows = []
        for query, key, value in zip(self.query.cpu(), self.keys, self.values, strict=True):
            scores = torch.einsum("hd,thd->ht", query.double(), key.double())
            weights = (scores / math.sqrt(key.shape[2])).softmax(1)
            rows.append(torch.einsum("ht,thd->hd", weights, value.double()))
        return torch.stack(rows)


def call(student, given: Given) -> torch.Tensor:
    return student.decode(*given.arguments)


def assert_right(student, given: Given, mistake: str) -> None:
    output = call(student, given)
    exact = given.exact
    assert isinstance(output, torch.Tensor) and output.shape == exact.shape, (
        f"A tensor of shape {tuple(exact.shape)} must be returned."
    )
    output = output.double().cpu()
    largest = max((value.abs().max().item() for value in given.values if len(value)), default=1.0)
    error = (output - exact).abs().max().item()
    assert not output.isnan().any(), f"{mistake} (There is NaN in the output.)"
    assert error <= ALLOWED * largest, f"{mistake} (The output is off by up to {error:.2g}.)"


def test_one_block(student):
    assert_right(
        student,
        Given([BLOCK_SIZE]),
        "One block, block 0, holds one sequence: the output must be softmax(query · key / sqrt(d)) @ "
        "values, the scale on the scores, the sum of the weights divided out.",
    )


def test_several_blocks(student):
    assert_right(
        student,
        Given([3 * BLOCK_SIZE]),
        "One block works and three do not: token p is at place p % block_size of the block in entry "
        "p // block_size of the table.",
    )


def test_any_blocks(student):
    assert_right(
        student,
        Given([3 * BLOCK_SIZE], [4, 1, 3]),
        "Blocks 0, 1, 2 work and 4, 1, 3 do not: the number of the block must come from the table, in the "
        "table's order.",
    )


def test_several_sequences(student):
    assert_right(
        student,
        Given([2 * BLOCK_SIZE] * 3),
        "One sequence works and three do not: each has a row of the table, which begins at sequence * "
        "tables_strides[0], and heads and queries of its own.",
    )


@pytest.mark.parametrize("block_size", [1, 3, 5, 32, 48])
def test_any_block_size(student, block_size):
    length = 30 // block_size * block_size or block_size // 2
    assert_right(
        student,
        Given([length], block_size=block_size),
        f"Blocks of {BLOCK_SIZE} tokens work and blocks of {block_size} do not: a block may be smaller or "
        "larger than a tile, and no power of two, so find the block of every token by itself.",
    )


@pytest.mark.parametrize("length", [1, 31, 33, 64, 70])
def test_any_context(student, length):
    assert_right(
        student,
        Given([length]),
        f"A context of {length} tokens goes wrong: tiles of 32 follow one another, each rescales what was "
        "there, and tokens from the context's length on have no weight.",
    )


def test_unused_slots(student):
    assert_right(
        student,
        Given([5], rest=torch.nan),
        "A slot without a token, behind the last one, may hold NaN: mask the loads of keys and of values, "
        "with 0 in their place, since a weight of 0 times NaN is NaN.",
    )


def test_unused_entries(student):
    given = Given([2 * BLOCK_SIZE], rest=torch.nan)
    assert_right(
        student,
        given,
        "The block that an unused entry of the table names may hold NaN: nothing from the context's "
        "length on may be loaded.",
    )


def test_large_scores(student):
    given = Given([2 * BLOCK_SIZE], size=40.0)
    assert_right(
        student,
        given,
        "Scores of several hundred overflow: subtract the running maximum before the exponential.",
    )


def test_low_scores(student):
    given = Given([2 * BLOCK_SIZE + 3], shift=300.0)
    assert_right(
        student,
        given,
        "All scores are far below zero: the maximum begins at minus infinity, and hidden tokens get minus "
        "infinity, no number that is only low, and not 0.",
    )


def test_no_tokens(student):
    assert_right(student, Given([32], block_size=32), "A sequence that fills a tile goes wrong.")
    output = call(student, Given([0], rest=torch.nan))
    assert (output == 0).all(), (
        "A sequence without tokens must give zeros: its sum is 0, and 0 / 0 is NaN."
    )


@pytest.mark.parametrize("head_dim", [1, 5, 80, 128])
def test_any_head_dim(student, head_dim):
    given = Given([32], block_size=32, head_dim=head_dim)
    # Rows of a wider tensor, so that what lies behind each of them is NaN.
    wider = [torch.nn.functional.pad(cache, (0, 128), value=torch.nan) for cache in given.caches]
    given.caches = [cache[..., :head_dim] for cache in wider]
    assert_right(
        student,
        given,
        f"A head dimension of {HEAD_DIM} works and {head_dim} does not: it need not be a power of two, and "
        "dimensions from HEAD_DIM on are not loaded.",
    )


def strided(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same numbers in memory with the dimensions in this order, and every second element unused."""
    memory = tensor.new_zeros((*(tensor.shape[d] for d in order), 2))[..., 0]
    return memory.permute(*(order.index(d) for d in range(tensor.ndim))).copy_(tensor)


def test_strides(student):
    given = Given([2 * BLOCK_SIZE] * 2)
    given.caches = [strided(cache, (2, 0, 3, 1)) for cache in given.caches]
    assert_right(
        student,
        given,
        f"Caches with strides {given.caches[0].stride()} are read wrongly: each dimension has its stride "
        "in cache_strides.",
    )
    given = Given([2 * BLOCK_SIZE] * 2)
    given.tables = strided(given.tables, (1, 0))
    assert_right(
        student,
        given,
        f"A table with strides {given.tables.stride()} is read wrongly: entry (sequence, i) is at sequence "
        "* tables_strides[0] + i * tables_strides[1].",
    )


def test_inputs_unchanged(student):
    given = Given([32], block_size=32)
    before = [tensor.clone() for tensor in given.arguments]
    assert_right(student, given, "A sequence that fills a tile goes wrong.")
    names = ("query", "key_cache", "value_cache", "block_tables", "context_lengths")
    for name, tensor, old in zip(names, given.arguments, before, strict=True):
        assert torch.equal(tensor, old), (
            f"The function changed {name}, which belongs to the caller: write to the output only."
        )
