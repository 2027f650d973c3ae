"""PagedAttention against the oracle: what it reads, writes, moves and refuses."""

import itertools
from unittest import mock

import pytest
import torch
from allpairspy import AllPairs
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import paged, paged_decode, paged_memory
from tests.kernels.grid import DTYPES
from tests.kernels.pages import (
    FP8,
    LAYOUTS,
    Case,
    assert_decodes,
    assert_prefills,
    bits,
    make_batch,
    make_query,
    write,
)

ON_CPU = kernels.INTERPRETED
# Interpreted, a tile takes milliseconds, so there are fewer of each.
AXES = {
    "lengths": [(1,), (0, 63, 2), (130, 16)] + ([] if ON_CPU else [(111, 0, 1), (2000, 257)]),
    "dtype": list(DTYPES),
    "cache": ["as it is", "fp8"],
    "heads": [(2, 2), (4, 2), (20, 1)] + ([] if ON_CPU else [(6, 1), (140, 2)]),
    "head_dim": [16, 80, 128] + ([] if ON_CPU else [64, 256]),
    "block_size": [1, 5, 16, 256] + ([] if ON_CPU else [64]),
    "layout": list(LAYOUTS),
}
SPLITS = [1, 3, None] + ([] if ON_CPU else [2, 9])


def cases(**more) -> list:
    """Pairs of values, interpreted; on a GPU, where nearly each compiles a kernel, one in 389 of all."""
    axes = [*AXES.values(), *more.values()]
    combined = list(AllPairs(axes)) if ON_CPU else list(itertools.product(*axes))[::389]
    return [(Case(*values[: len(AXES)]), *values[len(AXES) :]) for values in combined]


@pytest.mark.parametrize(("case", "splits"), cases(splits=SPLITS), ids=str)
def test_decode_matches_the_oracle(case, splits):
    assert_decodes(make_batch(case), num_splits=splits)


@pytest.mark.parametrize(("case", "most"), cases(most=[1, 40]), ids=str)
def test_prefill_matches_the_oracle(case, most):
    # Some sequences bring all of their tokens, some the last of them, and some none.
    queries = tuple(min(length, most) if i != 2 else 0 for i, length in enumerate(case.lengths))
    assert_prefills(make_batch(case), queries, padding=2)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_scores(dtype, splits):
    case = Case((150, 40), dtype, head_dim=64)
    keys, values = (
        [30 * torch.randn(n, 2, 64, generator=torch.Generator().manual_seed(n)) for n in (150, 40)]
        for _ in range(2)
    )
    batch = make_batch(case, keys, values)
    query = (30 * make_query(case, 2).float()).to(dtype)
    assert (query[0].float() @ batch.keys[0][:, 0].float().mT).abs().max() > 1e4
    assert_decodes(batch, query=query, scale=1.0, num_splits=splits)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_that_are_all_very_low_give_the_mean(dtype, splits):
    case = Case((300, 1), dtype)
    keys = [torch.full((n, 2, 16), -256.0) for n in case.lengths]
    batch = make_batch(case, keys)
    query = torch.full((2, 4, 16), 128.0, dtype=dtype, device=kernels.device())
    # -524 288 each: far below what any float16 holds, and the same for all tokens.
    assert_decodes(batch, query=query, scale=1.0, num_splits=splits)
    assert_prefills(batch, (1, 1), scale=1.0, query=query)


def test_scores_that_rise_from_block_to_block():
    # The worst case for the rescaling: later tokens always score higher.
    rising = [torch.arange(300.0)[:, None, None].expand(300, 2, 16)]
    for keys in (rising, [rising[0].flip(0)]):
        batch = make_batch(Case((300,), torch.float32), keys)
        query = torch.ones(1, 4, 16, device=kernels.device())
        assert_decodes(batch, query=query, scale=0.1, num_splits=3)


def test_sequences_without_tokens_give_zeros():
    case = Case((0, 5, 0))
    batch = make_batch(case)
    output, logsumexp = paged.decode(
        make_query(case, 3), *batch.arguments, batch.context_lengths, return_logsumexp=True
    )
    for index in (0, 2):
        assert (output[index] == 0).all() and (logsumexp[index] == -torch.inf).all()
    assert output[1].abs().min() > 0 and logsumexp[1].isfinite().all()
    nobody = make_batch(Case(()))
    empty = make_query(nobody.case, 0)
    assert paged.decode(empty, *nobody.arguments, nobody.context_lengths).shape == empty.shape


def test_entries_after_the_last_block_may_be_anything():
    case = Case((33, 16, 0), block_size=16)
    batch = make_batch(case)
    output = assert_decodes(batch, num_splits=2)
    for index, used in enumerate((3, 1, 0)):
        batch.block_tables[index, used:] = 2**31 - 1
    assert torch.equal(assert_decodes(batch, num_splits=2), output)
    assert_prefills(batch, (5, 16, 0))


def test_sequences_may_share_blocks():
    case = Case((40, 40), torch.float32)
    batch = make_batch(case)
    apart = assert_decodes(batch)
    # The second sequence gets the first's blocks but the last: the prefix of one prompt.
    batch.block_tables[1, :2] = batch.block_tables[0, :2]
    for tokens in (batch.keys, batch.values):
        tokens[1] = torch.cat([tokens[0][:32], tokens[1][32:]])
    shared = assert_decodes(batch)
    assert torch.equal(shared[0], apart[0]) and not torch.equal(shared[1], apart[1])
    assert_prefills(batch, (8, 3))


@pytest.mark.parametrize("block_size", [1, 16, 48])
def test_where_blocks_lie_changes_no_bit(block_size):
    results = []
    for seed in range(2):
        case = Case((100, 7), block_size=block_size, seed=seed)
        given = [
            torch.randn(n, 2, 16, generator=torch.Generator().manual_seed(n)) for n in (100, 7)
        ]
        batch = make_batch(case, given, given)
        results.append((batch.block_tables, assert_decodes(batch), assert_prefills(batch, (9, 7))))
    assert block_size == 48 or not torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][2], results[1][2])


def test_any_number_of_splits_gives_the_same():
    batch = make_batch(Case((100, 1), torch.float32, heads=(2, 1), head_dim=256))
    # Interpreted, a program without tokens takes as long as any.
    for splits in (1, 2, 9) if ON_CPU else range(1, paged_decode.MAX_SPLITS + 1):
        assert_decodes(batch, num_splits=splits)


def test_a_table_cut_to_what_is_used_gives_the_same():
    batch = make_batch(Case((100, 20)))
    whole = assert_decodes(batch)
    batch.block_tables = batch.block_tables[:, :7]
    assert batch.block_tables.stride(0) == 9
    assert torch.equal(assert_decodes(batch), whole)


@pytest.mark.parametrize(
    ("programs", "tokens", "expected"),
    [
        # Two programs an SM of 132 keep memory busy, so no split.
        (264, 10**5, (1, 3)),
        (300, 10**5, (1, 3)),
        # Of three an SM the second wave would be nearly empty; of two it is nearly full.
        (512, 10**5, (1, 4)),
        (2048, 1024, (1, 3)),
        # One long sequence of 8 KV heads, or 8 of them: as many splits as give two an SM, or nearly.
        (8, 131072, (32, 3)),
        (64, 32768, (4, 3)),
        (1, 10**6, (122, 3)),
        # Short sequences: a program an SM, or nearly, is enough.
        (128, 1024, (1, 3)),
        (64, 1024, (2, 3)),
        (8, 255, (1, 3)),
        (8, 1000, (3, 3)),
        (0, 0, (1, 3)),
    ],
)
def test_splits_and_stages_that_fill_the_gpu(programs, tokens, expected):
    assert paged_decode.splits_and_stages(programs, tokens, 132) == expected


def test_given_splits_are_kept():
    assert paged_decode.splits_and_stages(512, 4096, 132, 1) == (1, 4)
    assert paged_decode.splits_and_stages(64, 32768, 132, 7) == (7, 4)


@settings(max_examples=6 if ON_CPU else 15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=2),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.integers(16, 40),
    block_size=st.integers(1, 70),
    splits=st.none() | st.integers(1, 9),
    most=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_any_shape(lengths, heads, head_dim, block_size, splits, most, seed):
    case = Case(tuple(lengths), torch.float32, "as it is", heads, head_dim, block_size, seed=seed)
    batch = make_batch(case)
    assert_decodes(batch, num_splits=splits)
    assert_prefills(batch, tuple(min(n, most) for n in lengths))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache", ["as it is", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_writes_the_slots_and_nothing_else(dtype, cache, layout):
    # 37 tokens, more than two tiles of them, into 8 blocks of 6.
    case = Case((0,) * 3, dtype, cache, (4, 2), 48, 6, layout)
    given, expected = make_batch(case), make_batch(case)
    generator = torch.Generator().manual_seed(3)
    slots = torch.randperm(given.key_cache.shape[0] * 6, generator=generator)
    slots = torch.cat([slots, torch.full((40,), -1)])[:37].to(kernels.device())
    slots[3] = -1
    # Keys and values as parts of one product, as a model has them.
    both = 500 * torch.randn(37, 2, 3 * 48, generator=generator).to(kernels.device()).to(dtype)
    key, value = both[:, :, 48:96], both[:, :, 96:]
    paged.append(key, value, given.key_cache, given.value_cache, slots, **given.scales)
    there = slots >= 0
    for tensor, cache, name in (
        (key, expected.key_cache, "key_scale"),
        (value, expected.value_cache, "value_scale"),
    ):
        write(cache, slots[there], tensor[there], expected.scales.get(name))
    assert torch.equal(bits(given.key_cache), bits(expected.key_cache))
    assert torch.equal(bits(given.value_cache), bits(expected.value_cache))


def test_what_was_appended_is_decoded_and_prefilled():
    # Two steps of a generation: a prompt of 20, then one token more.
    case = Case((21, 21), torch.float32, block_size=8)
    meant, given = make_batch(case), make_batch(case)
    given.key_cache.fill_(torch.nan), given.value_cache.fill_(torch.nan)
    for first, last in ((0, 20), (20, 21)):
        for index in range(2):
            slots = meant.slots(index)[first:last]
            tokens = meant.keys[index][first:last], meant.values[index][first:last]
            paged.append(*tokens, given.key_cache, given.value_cache, slots)
    assert_decodes(given)
    assert_prefills(given, (21, 4))


@pytest.mark.parametrize("block_size", [1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
def test_blocks_are_copied_in_every_layer(dtype, block_size):
    kv_cache = torch.randn(3, 2, 9, block_size, 2, 16, device=kernels.device()).to(dtype)
    expected = kv_cache.clone()
    copies = torch.tensor([[0, 4], [0, 8], [3, 1]], device=kernels.device())
    for source, target in copies.tolist():
        expected.view(torch.uint8)[:, :, target] = expected.view(torch.uint8)[:, :, source]
    paged.copy_blocks(kv_cache, copies)
    assert torch.equal(bits(kv_cache), bits(expected))
    paged.copy_blocks(kv_cache, copies[:0])
    assert torch.equal(bits(kv_cache), bits(expected))


def test_blocks_of_a_cache_within_a_larger_one_are_copied():
    whole = torch.randn(2, 2, 12, 3, 2, 16, device=kernels.device())
    expected = whole.clone()
    part, copies = whole[:, :, 2:7], torch.tensor([[0, 2], [4, 1]], device=kernels.device())
    expected[:, :, 4], expected[:, :, 3] = whole[:, :, 2], whole[:, :, 6]
    paged.copy_blocks(part, copies.flip(1).flip(1))
    assert torch.equal(whole, expected)


def test_copies_of_all_layers_are_one_launch():
    launches = []
    with mock.patch.object(
        type(paged_memory.copy_kernel), "run", lambda *_, **__: launches.append(1)
    ):
        kv_cache = torch.zeros(5, 2, 9, 4, 2, 16, device=kernels.device())
        paged.copy_blocks(kv_cache, torch.tensor([[0, 4], [3, 1]], device=kernels.device()))
    assert launches == [1]


def test_blocks_are_swapped_out_and_in():
    gpu = torch.randn(2, 2, 9, 4, 2, 16, device=kernels.device())
    cpu = torch.zeros(2, 2, 7, 4, 2, 16, pin_memory=not ON_CPU)
    before = gpu.clone()
    paged.swap_blocks(gpu, cpu, torch.tensor([[0, 3], [1, 4], [2, 5], [8, 0]]))
    gpu.fill_(torch.nan)
    paged.swap_blocks(cpu, gpu, torch.tensor([[0, 6], [3, 0], [4, 1], [5, 3]]))
    assert torch.equal(gpu[:, :, [6, 0, 1, 3]], before[:, :, [8, 0, 1, 2]])
    assert gpu[:, :, [2, 4, 5, 7, 8]].isnan().all() and (cpu[:, :, [1, 2, 6]] == 0).all()
    paged.swap_blocks(gpu, cpu, torch.empty(0, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([], []),
        ([[5, 2]], [(5, 2, 1)]),
        ([[5, 2], [6, 3], [7, 4]], [(5, 2, 3)]),
        ([[5, 2], [6, 4], [7, 5], [6, 6]], [(5, 2, 1), (6, 4, 2), (6, 6, 1)]),
        ([[5, 2], [7, 3], [8, 1]], [(5, 2, 1), (7, 3, 1), (8, 1, 1)]),
    ],
)
def test_neighbouring_blocks_are_swapped_together(moves, expected):
    assert paged_memory.runs(moves) == expected


def tensor(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=kernels.device())


CACHE = tensor(4, 8, 2, 16)
TABLES, LENGTHS = tensor(3, 2, dtype=torch.int32), tensor(3, dtype=torch.int32)
GOOD = {
    "append": {
        "key": tensor(5, 2, 16),
        "value": tensor(5, 2, 16),
        "key_cache": CACHE,
        "value_cache": CACHE.clone(),
        "slot_mapping": tensor(5, dtype=torch.int64) - 1,
    },
    "decode": {
        "query": tensor(3, 4, 16),
        "key_cache": CACHE,
        "value_cache": CACHE.clone(),
        "block_tables": TABLES,
        "context_lengths": LENGTHS,
    },
    "prefill": {
        "query": tensor(6, 4, 16),
        "key_cache": CACHE,
        "value_cache": CACHE.clone(),
        "block_tables": TABLES,
        "query_starts": tensor(4, dtype=torch.int32),
        "context_lengths": LENGTHS,
        "max_query_length": 4,
    },
    "copy_blocks": {
        "kv_cache": tensor(2, 2, 4, 8, 2, 16),
        "copies": tensor(0, 2, dtype=torch.int64),
    },
    "swap_blocks": {
        "source_cache": tensor(2, 2, 4, 8, 2, 16),
        "target_cache": torch.zeros(2, 2, 5, 8, 2, 16),
        "moves": torch.zeros(0, 2, dtype=torch.int64),
    },
}
IN_FP8 = {"key_cache": CACHE.to(FP8), "value_cache": CACHE.to(FP8)}
BAD = [
    ("append", {"key": [1]}, TypeError, "key must be a torch.Tensor, got list"),
    ("append", {"key": tensor(5, 3, 16)}, ValueError, r"key has shape \(5, 3, 16\); with these"),
    ("append", {"value": tensor(4, 2, 16)}, ValueError, "value has shape .* they must be key's"),
    (
        "append",
        {"key": tensor(5, 2, 16).half(), "value": tensor(5, 2, 16).half()},
        TypeError,
        "key has dtype torch.float16, but key_cache has torch.float32",
    ),
    ("append", {"key": tensor(5, 2, 16).double()}, TypeError, "key has dtype torch.float64; acc"),
    ("append", {"slot_mapping": tensor(5)}, TypeError, "slot_mapping has dtype torch.float32"),
    (
        "append",
        {"slot_mapping": tensor(4, dtype=torch.int64)},
        ValueError,
        "slot_mapping has 4 slots for 5 tokens",
    ),
    (
        "append",
        {"value_cache": CACHE[:3]},
        ValueError,
        "value_cache has shape .* must be key_cache",
    ),
    ("append", {"key_cache": CACHE[0]}, ValueError, "key_cache must have 4 dimensions"),
    ("append", IN_FP8, ValueError, "an FP8 cache needs key_scale: a float32 tensor"),
    (
        "append",
        {"key_scale": tensor()},
        ValueError,
        "key_scale is for an FP8 cache, but it is torch",
    ),
    (
        "decode",
        {"query": tensor(3, 4, 32)},
        ValueError,
        "query has head_dim 32, but key_cache has 16",
    ),
    (
        "decode",
        {"query": tensor(3, 3, 16)},
        ValueError,
        "3 heads, which is not a multiple of key_c",
    ),
    ("decode", {"query": tensor(2, 4, 16)}, ValueError, "block_tables is for 3 sequences, but th"),
    ("decode", {"query": CACHE[0].to("meta")}, ValueError, "query is on meta, but the cache is on"),
    (
        "decode",
        {"key_cache": CACHE[..., :8], "value_cache": CACHE[..., :8]},
        ValueError,
        "head_dim 8",
    ),
    ("decode", {"block_tables": TABLES.long()}, TypeError, "block_tables has dtype torch.int64"),
    (
        "decode",
        {"block_tables": TABLES.mT.contiguous().mT},
        ValueError,
        "block_tables must be cont",
    ),
    ("decode", {"context_lengths": LENGTHS[:2]}, ValueError, "context_lengths is for 2 sequences"),
    ("decode", {"num_splits": 0}, ValueError, "num_splits must be an integer from 1 to 128, or"),
    ("decode", {"num_splits": 129}, ValueError, "got 129"),
    ("decode", {"num_splits": True}, ValueError, "got True"),
    ("decode", {"softmax_scale": 0.0}, ValueError, "softmax_scale must be finite and greater than"),
    (
        "decode",
        {"softmax_scale": "1"},
        TypeError,
        "softmax_scale must be a number or None, got str",
    ),
    (
        "decode",
        IN_FP8 | {"key_scale": tensor(3), "value_scale": tensor()},
        ValueError,
        r"key_scale has shape \(3,\); accepted: \(\) or \(2,\)",
    ),
    (
        "prefill",
        {"max_query_length": -1},
        ValueError,
        "max_query_length must be at least 0, got -1",
    ),
    (
        "prefill",
        {"max_query_length": 1.0},
        TypeError,
        "max_query_length must be an integer, got flo",
    ),
    (
        "prefill",
        {"query_starts": LENGTHS},
        ValueError,
        "block_tables is for 3 sequences, but there a",
    ),
    ("copy_blocks", {"kv_cache": CACHE}, ValueError, "kv_cache must have 6 dimensions"),
    (
        "copy_blocks",
        {"kv_cache": tensor(2, 2, 4, 8, 2, 16).transpose(3, 4)},
        ValueError,
        "the blocks of kv_cache must be contiguous",
    ),
    (
        "copy_blocks",
        {"copies": tensor(1, 3, dtype=torch.int64)},
        ValueError,
        "copies must be .n, 2.",
    ),
    (
        "swap_blocks",
        {"target_cache": torch.zeros(2, 2, 5, 4, 2, 16)},
        ValueError,
        "target_cache is torch.float32 .* it must be source_cache's",
    ),
    (
        "swap_blocks",
        {"moves": torch.tensor([[0, 5]])},
        ValueError,
        "moves must be from 0 to 4, got 5",
    ),
    (
        "swap_blocks",
        {"moves": torch.tensor([[0, 1], [2, 1]])},
        ValueError,
        "that is a target twice",
    ),
]
# What stands in tensors that the host can read without waiting.
BAD_CONTENT = [
    (
        "append",
        {"slot_mapping": torch.full((5,), 32)},
        "slot_mapping must be from -1 to 31, got 32",
    ),
    (
        "append",
        {"slot_mapping": torch.full((5,), -2)},
        "slot_mapping must be from -1 to 31, got -2",
    ),
    ("decode", {"context_lengths": LENGTHS - 1}, "context_lengths must be from 0 to 16, got -1"),
    ("decode", {"context_lengths": LENGTHS + 17}, "context_lengths must be from 0 to 16, got 17"),
    (
        "decode",
        {"context_lengths": LENGTHS + 9, "block_tables": TABLES + 4},
        "block_tables must be from 0 to 3, got 4",
    ),
    (
        "prefill",
        {
            "query_starts": torch.tensor([0, 5, 5, 6], dtype=torch.int32),
            "context_lengths": LENGTHS + 6,
        },
        "difference of query_starts must be from 0 to 4, got 5",
    ),
    (
        "prefill",
        {
            "query_starts": torch.tensor([0, 2, 3, 3], dtype=torch.int32),
            "context_lengths": LENGTHS + 1,
        },
        "context_lengths less the queries must be from 0",
    ),
    ("copy_blocks", {"copies": torch.tensor([[4, 1]])}, "copies must be from 0 to 3, got 4"),
    ("copy_blocks", {"copies": torch.tensor([[0, 1], [1, 2]])}, "both a source and a target"),
]
if ON_CPU:
    BAD += [(name, changed, ValueError, message) for name, changed, message in BAD_CONTENT]


@pytest.mark.parametrize(("function", "changed", "error", "message"), BAD)
def test_bad_input_is_refused_before_any_launch(function, changed, error, message, monkeypatch):
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(paged_decode.decode_kernel), "run", launched)
    with pytest.raises(error, match=message):
        getattr(paged, function)(**(GOOD[function] | changed))


@pytest.mark.parametrize("function", GOOD)
def test_what_the_bad_inputs_are_made_from_is_good(function):
    getattr(paged, function)(**GOOD[function])


@pytest.mark.gpu
def test_blocks_whose_offsets_pass_2_to_the_31():
    case = Case((70, 33), heads=(4, 2), head_dim=128)
    batch = make_batch(case)
    near = assert_decodes(batch), assert_prefills(batch, (9, 33))
    first = 2**19  # blocks of 4096 numbers
    count = batch.key_cache.shape[0]
    kv_cache = torch.empty(1, 2, first + 2 * count, 16, 2, 128, device="cuda", dtype=torch.float16)
    kv_cache[:, :, first:] = torch.nan
    batch.block_tables += first
    batch.key_cache, batch.value_cache = kv_cache[0, 0], kv_cache[0, 1]
    for index in range(2):
        paged.append(
            batch.keys[index], batch.values[index], *batch.arguments[:2], batch.slots(index)
        )
    query = make_query(case, 2)
    far = paged.decode(query, *batch.arguments, batch.context_lengths)
    assert torch.equal(far, near[0])
    # The same blocks once more behind them.
    blocks = torch.arange(first, first + count, device="cuda")
    paged.copy_blocks(kv_cache, torch.stack([blocks, blocks + count], 1))
    kv_cache[:, :, first : first + count] = torch.nan
    batch.block_tables += count
    assert torch.equal(paged.decode(query, *batch.arguments, batch.context_lengths), near[0])
    starts = torch.tensor([0, 9, 42], device="cuda", dtype=torch.int32)
    query = make_query(case, 42)
    prefilled = paged.prefill(
        query, *batch.arguments, starts, batch.context_lengths, max_query_length=33
    )
    assert torch.equal(prefilled, near[1])


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 5, None])
def test_a_cuda_graph_holds_a_step(splits):
    case = Case((900, 300, 0, 77), heads=(8, 2), head_dim=128)
    batch = make_batch(case)
    query = make_query(case, 4)
    key, value = torch.randn(2, 4, 2, 128, device="cuda").half()
    slots = torch.full((4,), -1, device="cuda")
    lengths = batch.context_lengths.clone()

    def step():
        paged.append(key, value, *batch.arguments[:2], slots)
        return paged.decode(query, *batch.arguments, lengths, num_splits=splits)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    lengths.zero_()
    for changed in (batch.context_lengths, batch.context_lengths // 3, batch.context_lengths):
        # Another query, other lengths, and for the first sequence another last token.
        query.copy_(torch.randn_like(query))
        lengths.copy_(changed)
        slots[0] = batch.slots(0)[lengths[0] - 1]
        key.copy_(torch.randn_like(key))
        graph.replay()
        replayed = output.clone()
        assert torch.equal(replayed, step())
        assert replayed.abs().sum((1, 2)).tolist()[2] == 0 and not replayed.isnan().any()
