"""Block-sparse FlashAttention against the oracle with the same mask, element by element."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import block_sparse, flash1, reference
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.grid import call_on_poisoned_memory, full_grid, make_inputs, pairwise_grid

ON_CPU = kernels.INTERPRETED
DEVICE = kernels.device()
# The interpreter takes a second for a few hundred tiles; smaller blocks are in the tests further below.
BLOCK_SIZES = (64, 256) if ON_CPU else (16, 128)


def assert_matches_oracle(query, key, value, block_mask, *, block_size, causal=False, scale=None):
    """Compare with float64; the budget is that of careful arithmetic under the same mask."""
    layout = block_sparse.block_layout(
        block_mask.to(DEVICE),
        query.shape[2],
        key.shape[2],
        block_size=block_size,
        causal=causal,
    )
    before = [x.clone() for x in (query, key, value)]
    output, logsumexp = call_on_poisoned_memory(
        block_sparse.attention, query, key, value, layout, scale=scale, return_logsumexp=True
    )
    assert all(map(torch.equal, before, (query, key, value))), "the kernel changed its inputs"
    assert not output.isnan().any(), "elements were not written, or are NaN"
    mask = block_sparse.element_mask(block_mask.to(DEVICE), layout)
    expected, expected_logsumexp = reference.attention(
        query, key, value, mask=mask, scale=scale, return_logsumexp=True
    )
    options = {"mask": mask, "scale": scale}
    error = reference.errors(output, expected)
    allowed = reference.error_budget(query, key, value, **options)
    assert error.within(allowed), f"output: error {error}; allowed {allowed}"
    error = reference.errors(logsumexp, expected_logsumexp)
    allowed = reference.logsumexp_budget(query, key, value, **options)
    assert error.within(allowed), f"logsumexp: error {error}; allowed {allowed}"
    return output, logsumexp


def random_mask(cell, block_size, seed=0):
    """Half of the blocks, for each head of each sequence its own."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [-(-length // block_size) for length in cell.lengths]
    return torch.rand(cell.batch, cell.heads[0], *sizes, generator=generator) < 0.5


@pytest.mark.parametrize(
    ("cell", "block_size"),
    (pairwise_grid if ON_CPU else full_grid)(block_size=BLOCK_SIZES),
    ids=str,
)
def test_matches_the_oracle(cell, block_size):
    mask = random_mask(cell, block_size)
    assert_matches_oracle(*make_inputs(cell), mask, block_size=block_size, causal=cell.causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_mask_of_all_blocks_is_dense_attention(causal):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 64).half().to(DEVICE) for n in (300, 400, 400))
    mask = torch.ones(3, 4, dtype=torch.bool, device=DEVICE)
    layout = block_sparse.block_layout(mask, 300, 400, causal=causal)
    sparse = block_sparse.attention(query, key, value, layout, return_logsumexp=True)
    dense = flash1.attention(query, key, value, causal=causal, return_logsumexp=True)
    for ours, theirs, budget in zip(
        sparse, dense, (reference.error_budget, reference.logsumexp_budget), strict=True
    ):
        difference = reference.errors(ours, theirs.double())
        assert difference.within(budget(query, key, value, causal=causal))


@pytest.mark.parametrize("lengths", [(17, 18), (17, 31), (32, 17), (31, 48)], ids=str)
def test_blocks_that_end_on_the_diagonal(lengths):
    # A block taken for full although its last key is hidden, or the reverse, shows here only.
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, n, 16, device=DEVICE) for n in (*lengths, lengths[1]))
    mask = torch.ones([-(-n // 16) for n in lengths], dtype=torch.bool)
    assert_matches_oracle(query, key, value, mask, block_size=16, causal=True)


@pytest.mark.parametrize("block_size", [16, 128])
def test_rows_of_hidden_blocks_get_zeros(block_size):
    torch.manual_seed(0)
    rows = 3 * block_size
    query, key, value = (torch.randn(1, 1, rows, 32, device=DEVICE) for _ in range(3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    output, logsumexp = assert_matches_oracle(query, key, value, mask, block_size=block_size)
    hidden = slice(block_size, 2 * block_size)
    assert (output[:, :, hidden] == 0).all() and (logsumexp[:, :, hidden] == -torch.inf).all()


def test_extreme_logits():
    torch.manual_seed(0)
    query, key, value = (30 * torch.randn(1, 2, 130, 64, device=DEVICE) for _ in range(3))
    assert (query @ key.mT).abs().max() > 1e4
    mask = block_sparse.butterfly_mask(9, 9)
    assert_matches_oracle(query, key, value, mask, block_size=16, scale=1.0, causal=True)


@settings(max_examples=20 if ON_CPU else 200, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 140), st.integers(16, 40), st.booleans(), st.integers(0, 99)
)
def test_any_shape_and_mask(seq_query, seq_key, head_dim, causal, seed):
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, 1, n, head_dim).to(DEVICE) for n in (seq_query, seq_key, seq_key)
    )
    mask = torch.rand(-(-seq_query // 16), -(-seq_key // 16)) < torch.rand(())
    assert_matches_oracle(query, key, value, mask, block_size=16, causal=causal)


def test_a_layout_lists_full_blocks_first():
    mask = torch.tensor([[True, True, False, True], [False, True, True, False]])
    # The first query sees keys up to 24: block 0 whole, part of block 1, nothing of block 3.
    layout = block_sparse.block_layout(mask, 32, 56, block_size=16, causal=True)
    assert layout.counts.tolist() == [[[2, 2]]] and layout.full_counts.tolist() == [[[1, 1]]]
    assert layout.columns.tolist() == [[[[0, 1, 0, 0], [1, 2, 0, 0]]]]
    assert layout.fraction == 4 / 8
    # Without the causal mask only the last column, half a block, needs a look at its elements.
    layout = block_sparse.block_layout(mask, 32, 56, block_size=16)
    assert layout.counts.tolist() == [[[3, 2]]] and layout.full_counts.tolist() == [[[2, 2]]]
    assert layout.columns.tolist() == [[[[0, 1, 3, 0], [1, 2, 0, 0]]]]


@pytest.mark.parametrize("lengths", [(50, 30), (30, 50), (64, 64), (1, 100)], ids=str)
def test_a_causal_layout_visits_exactly_the_blocks_with_a_visible_element(lengths):
    rows, columns = (-(-n // 16) for n in lengths)
    everything = torch.ones(rows, columns, dtype=torch.bool)
    layout = block_sparse.block_layout(everything, *lengths, block_size=16, causal=True)
    elements = block_sparse.element_mask(everything, layout)
    for row in range(rows):
        seen = [
            column
            for column in range(columns)
            if elements[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].any()
        ]
        count = layout.counts[0, 0, row]
        assert sorted(layout.columns[0, 0, row, :count].tolist()) == seen


def test_the_given_masks():
    assert block_sparse.local_mask(3, 4, 1).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
    ]
    assert block_sparse.strided_mask(3, 5, 2).int().tolist() == [
        [1, 0, 1, 0, 1],
        [1, 1, 1, 0, 1],
        [1, 0, 1, 0, 1],
    ]
    butterfly = block_sparse.butterfly_mask(16, 16)
    assert (butterfly.sum(1) == 5).all() and torch.equal(butterfly, butterfly.T)
    reached = torch.matrix_power(butterfly.double(), 4)
    assert (reached > 0).all() and (torch.matrix_power(butterfly.double(), 3) == 0).any()


@pytest.mark.parametrize(
    ("query_shape", "key_shape"),
    [
        ((2, 2, 0, 16), (2, 2, 5, 16)),
        ((0, 2, 3, 16), (0, 2, 5, 16)),
        ((2, 4, 3, 16), (2, 2, 0, 16)),
    ],
    ids=["no queries", "no batch", "no keys"],
)
def test_empty_inputs(query_shape, key_shape):
    query, key = (torch.randn(shape, device=DEVICE) for shape in (query_shape, key_shape))
    lengths = query_shape[2], key_shape[2]
    mask = torch.ones([-(-n // 16) for n in lengths], dtype=torch.bool, device=DEVICE)
    layout = block_sparse.block_layout(mask, *lengths, block_size=16)
    output, logsumexp = block_sparse.attention(query, key, key, layout, return_logsumexp=True)
    assert output.shape == query.shape and (output == 0).all()
    assert logsumexp.shape == query.shape[:-1] and (logsumexp == -torch.inf).all()


def _layout(rows=1, columns=1, lengths=(3, 5), leading=()):
    mask = torch.ones(*leading, rows, columns, dtype=torch.bool, device=DEVICE)
    return block_sparse.block_layout(mask, *lengths, block_size=16)


ATTENTION_CASES = [case for case in BAD_ATTENTION_INPUTS if "causal" not in case.values[0]]


@pytest.mark.parametrize(("changed", "error", "message"), ATTENTION_CASES)
def test_bad_input_is_refused_before_any_launch(changed, error, message, monkeypatch):
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(block_sparse.block_sparse_kernel), "run", launched)
    with pytest.raises(error, match=message):
        block_sparse.attention(layout=_layout(), **(GOOD_ATTENTION_INPUTS | changed))


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (torch.ones(1, 1), TypeError, "layout must be a BlockLayout, got Tensor"),
        (_layout(lengths=(4, 5)), ValueError, "for 4 queries and 5 keys, got 3 and 5"),
        (_layout(leading=(3, 1)), ValueError, "layout is for 3 batch, but query has 2"),
        (_layout(leading=(3,)), ValueError, "layout is for 3 heads, but query has 4"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, error, message):
    with pytest.raises(error, match=message):
        block_sparse.attention(**GOOD_ATTENTION_INPUTS, layout=layout)


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        (torch.ones(2, 2), {}, TypeError, "must be a torch.bool tensor, got torch.float32"),
        ([[True]], {}, TypeError, "must be a torch.bool tensor, got list"),
        (torch.ones(2, 3, dtype=torch.bool), {}, ValueError, r"it must be \(2, 2\)"),
        (torch.ones(2, dtype=torch.bool), {}, ValueError, r"it must be \(2, 2\)"),
        (torch.ones(2, 2, dtype=torch.bool), {"block_size": 48}, ValueError, "power of two"),
    ],
)
def test_a_bad_mask_is_refused(mask, options, error, message):
    with pytest.raises(error, match=message):
        block_sparse.block_layout(mask, 200, 200, **options)


@pytest.mark.gpu
def test_a_long_sequence():
    length = 2**17
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, length, 64, device="cuda", dtype=torch.float16) for _ in range(3)
    )
    mask = block_sparse.butterfly_mask(length // 128, length // 128).cuda()
    layout = block_sparse.block_layout(mask, length, length)
    output = block_sparse.attention(query, key, value, layout)
    rows = slice(length - 128, length)
    seen = mask[-1].repeat_interleave(128)
    part = (query[:, :, rows], key[:, :, seen], value[:, :, seen])
    error = reference.errors(output[:, :, rows], reference.attention(*part))
    assert error.within(reference.error_budget(*part))
