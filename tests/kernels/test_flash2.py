"""FlashAttention-2, forward and backward, against the oracle; and as PyTorch uses it."""

import functools
import itertools
import math

import pytest
import torch
from allpairspy import AllPairs
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import (
    flash1,
    flash2,
    flash2_backward,
    flash2_forward,
    reference_options,
    score_options,
)
from kernels.reference import errors
from kernels.reference_options import Options
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.grid import (
    DTYPES,
    assert_matches_oracle,
    exact_score_inputs,
    full_grid,
    inputs_far_apart,
    make_inputs,
    pairwise_grid,
)
from tests.kernels.training import assert_trains_like_the_oracle, draw, run

ON_CPU = kernels.INTERPRETED
OPTIONS = {
    "plain": {},
    "window": {"window": 40},
    "softcap": {"softcap": 5.0},
    "dropout": {"dropout": 0.2},
    "all": {"window": 70, "softcap": 3.0, "dropout": 0.1},
}


def tensors(*lengths, dtype=torch.float32, heads=(2, 2), head_dim=16, seed=0):
    torch.manual_seed(seed)
    seq_query, seq_key = lengths
    return tuple(
        torch.randn(1, h, n, head_dim).to(dtype).to(kernels.device())
        for h, n in ((heads[0], seq_query), (heads[1], seq_key), (heads[1], seq_key))
    )


# Interpreted, a random number takes a millisecond, so dropout has a smaller test of its own there.
WITHOUT_DROPOUT = [name for name, options in OPTIONS.items() if "dropout" not in options]


@pytest.mark.parametrize(
    ("cell", "options"),
    pairwise_grid(options=WITHOUT_DROPOUT)
    if ON_CPU
    else full_grid(options=["plain"]) + full_grid(options=OPTIONS)[::23],
    ids=str,
)
def test_trains_like_the_oracle(cell, options):
    assert_trains_like_the_oracle(
        flash2.attention, *make_inputs(cell), causal=cell.causal, **OPTIONS[options]
    )


@pytest.mark.parametrize("options", ["dropout", "all"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_is_replayed_in_the_backward_pass(dtype, causal, options):
    inputs = tensors(33, 70, dtype=dtype, heads=(2, 1))
    assert_trains_like_the_oracle(flash2.attention, *inputs, causal=causal, **OPTIONS[options])


@pytest.mark.parametrize(
    ("cell", "splits"),
    pairwise_grid(splits=(1, 2, 7)) if ON_CPU else full_grid(splits=(3,)),
    ids=str,
)
def test_split_attention_matches_the_oracle(cell, splits):
    split = functools.partial(flash2.split_attention, splits=splits)
    assert_matches_oracle(split, *make_inputs(cell), causal=cell.causal)


def test_splits_are_chosen_to_fill_the_gpu():
    query, key, value = tensors(1, 3000, heads=(2, 1))
    assert flash2._splits_to_fill(query, key) > 1
    assert_matches_oracle(flash2.split_attention, query, key, value, causal=True)
    many, few = torch.empty(64, 32, 1000, 16), torch.empty(64, 32, 1000, 16)
    assert flash2._splits_to_fill(many, few) == 1


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(dtype, causal):
    torch.manual_seed(0)
    inputs = (
        (30 * torch.randn(1, 2, n, 64)).to(dtype).to(kernels.device()) for n in (63, 200, 200)
    )
    query, key, value = inputs
    assert (query.float() @ key.float().mT).abs().max() > 1e4
    assert_matches_oracle(flash2.attention, query, key, value, causal=causal, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_at_extreme_logits(dtype):
    # Scores are exact here, up to 10 240, so a gradient shows only what the kernels themselves lose.
    query, key, value = exact_score_inputs(dtype, 1024)
    assert_trains_like_the_oracle(flash2.attention, query, key, value, scale=1.0, causal=True)


EDGES = [
    [(129, 129), (127, 128), (257, 200), (200, 257), (64, 129)],
    [0, 1, 63, 64, 65, 1000],
    [False, True],
]


@pytest.mark.parametrize(
    ("lengths", "window", "causal"),
    list(AllPairs(EDGES) if ON_CPU else itertools.product(*EDGES)),
    ids=str,
)
def test_windows_that_end_at_the_edge_of_a_tile(lengths, window, causal):
    inputs = tensors(*lengths, heads=(1, 1))
    assert_trains_like_the_oracle(flash2.attention, *inputs, causal=causal, window=window)


# Few on a GPU too: there nearly every example compiles three kernels of its own.
@settings(max_examples=15 if ON_CPU else 25, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.integers(16, 40),
    causal=st.booleans(),
    window=st.none() | st.integers(0, 160),
    softcap=st.none() | st.floats(0.5, 50),
    dropout=st.just(0.0) if ON_CPU else st.just(0.0) | st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_any_shape_and_options(lengths, heads, head_dim, seed, **options):
    inputs = tensors(*lengths, heads=heads, head_dim=head_dim, seed=seed)
    assert_trains_like_the_oracle(flash2.attention, *inputs, **options)


@pytest.mark.parametrize(("length", "block", "before", "after"), [(100, 16, 30, 0), (70, 32, 5, 9)])
def test_tiles_seen_agrees_with_counting(length, block, before, after):
    # The bounds, of every tile of positions, against the definition element by element.
    from tests.kernels.tiles_seen import bounds

    for start in range(-40, length + 40):
        stop = start + 16
        first, whole_first, whole_last, last = bounds(start, stop, before, after, length, block)
        for tile in range(-(-length // block)):
            keys = range(tile * block, min((tile + 1) * block, length))
            seen = [p - before <= k <= p + after for p in range(start, stop) for k in keys]
            assert any(seen) <= (first <= tile < last)
            if whole_first <= tile < whole_last:
                assert all(seen) and len(keys) == block


def test_two_runs_agree_in_every_bit():
    length = 70 if ON_CPU else 3000
    inputs = tensors(length, length, dtype=torch.float16, heads=(2, 1), head_dim=64)
    seed = torch.tensor(7, device=kernels.device())
    once, again = (
        run(flash2.attention, *inputs, *draw(inputs[0]), causal=True, dropout=0.1, seed=seed)
        for _ in range(2)
    )
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_drops_its_share_independently(dropout):
    kept = score_options.dropout_mask(
        torch.tensor(3, device=kernels.device()),
        dropout,
        2,
        3,
        *((40, 50) if ON_CPU else (400, 500)),
    )
    # Five standard deviations of a binomial: one false alarm in a million runs.
    deviation = math.sqrt(dropout * (1 - dropout) / kept.numel())
    assert abs(1 - kept.double().mean().item() - dropout) < 5 * deviation
    centred = kept.double() - (1 - dropout)
    for shift, axis in ((1, 3), (1, 2), (1, 1), (1, 0)):
        product = (centred * centred.roll(shift, axis)).mean().item()
        assert abs(product) < 5 * dropout * (1 - dropout) / math.sqrt(kept.numel())
    other = score_options.dropout_mask(
        torch.tensor(4, device=kernels.device()),
        dropout,
        2,
        3,
        *((40, 50) if ON_CPU else (400, 500)),
    )
    assert not torch.equal(kept, other)


def test_without_a_seed_pytorchs_generator_gives_one():
    inputs = tensors(40, 40)
    torch.manual_seed(5)
    once = flash2.attention(*inputs, dropout=0.5)
    other = flash2.attention(*inputs, dropout=0.5)
    torch.manual_seed(5)
    again = flash2.attention(*inputs, dropout=0.5)
    assert torch.equal(once, again) and not torch.equal(once, other)


@pytest.mark.parametrize(
    ("query_shape", "key_shape"),
    [
        ((2, 2, 0, 16), (2, 2, 5, 16)),
        ((0, 2, 3, 16), (0, 2, 5, 16)),
        ((2, 0, 3, 16), (2, 0, 5, 16)),
        ((2, 4, 3, 16), (2, 2, 0, 16)),
    ],
    ids=["no queries", "no batch", "no heads", "no keys"],
)
def test_empty_inputs(query_shape, key_shape):
    query, key = (torch.randn(shape, device=kernels.device()) for shape in (query_shape, key_shape))
    for attention in (flash2.attention, functools.partial(flash2.split_attention, splits=3)):
        output, logsumexp = attention(query, key, key, return_logsumexp=True)
        assert output.shape == query.shape and (output == 0).all()
        assert (logsumexp == -torch.inf).all()
    for gradient in run(flash2.attention, query, key, key, *draw(query))[2:]:
        assert (gradient == 0).all()


def test_a_gradient_of_any_strides_is_taken():
    inputs = tensors(40, 50)
    leaves = [x.detach().requires_grad_() for x in inputs]
    output, logsumexp = flash2.attention(*leaves, return_logsumexp=True)
    # The gradient of a sum is one number everywhere, with strides of 0.
    grad_output = torch.ones((), device=output.device).expand_as(output)
    results = torch.autograd.grad(output, leaves, grad_output)
    given = (*inputs, grad_output, Options(), torch.zeros_like(logsumexp))
    truth, budgets = reference_options.gradients(*given), reference_options.gradient_budget(*given)
    for result, expected, allowed in zip(results, truth, budgets, strict=True):
        assert errors(result, expected).within(allowed)


def test_pytorch_accepts_the_operators():
    query, key, value = (x.requires_grad_() for x in tensors(20, 30, heads=(2, 1)))
    arguments = (query, key, value, None, 0.25, 50, 0, 0.0, 0.0)
    torch.library.opcheck(flash2._forward, arguments)


def test_it_compiles_into_one_graph():
    inputs = tensors(33, 40)

    def loss(query, key, value):
        return flash2.attention(2 * query, key, value, causal=True).square().sum()

    backend = "aot_eager" if ON_CPU else "inductor"
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for function in (loss, compiled):
        leaves = [x.detach().requires_grad_() for x in inputs]
        gradients = torch.autograd.grad(function(*leaves), leaves)
        if function is loss:
            expected = gradients
    for gradient, eager in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, eager)


def test_autocast_chooses_the_dtype():
    inputs = tensors(20, 20)
    device = kernels.device().type
    with torch.autocast(device, torch.bfloat16):
        output = flash2.attention(*inputs)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, flash2.attention(*(x.bfloat16() for x in inputs)))


@pytest.mark.gpu
def test_a_cuda_graph_replays_it():
    inputs = tensors(130, 200, dtype=torch.float16, head_dim=64)
    leaves = [x.requires_grad_() for x in inputs]

    def step():
        output = flash2.attention(*leaves, causal=True)
        return torch.autograd.grad(output.float().square().sum(), leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("far", ["batch", "head", "row", "head_dim"])
def test_elements_further_apart_than_32_bits_count(far):
    near, spread = inputs_far_apart(far)
    expected = run(flash2.attention, *near, *draw(near[0]))
    results = run(flash2.attention, *spread, *draw(near[0]))
    for result, one in zip(results, expected, strict=True):
        assert torch.equal(result, one)


def test_it_agrees_with_chapter_3_on_float16_at_length():
    length = 500 if ON_CPU else 5000
    query, key, value = tensors(length, length, dtype=torch.float16, heads=(1, 1), head_dim=64)
    for attention in (flash1.attention, flash2.attention):
        assert_matches_oracle(attention, query, key, value, causal=True)


@pytest.mark.parametrize("attention", [flash2.attention, flash2.split_attention])
@pytest.mark.parametrize(("changed", "error", "message"), BAD_ATTENTION_INPUTS)
def test_bad_input_is_refused_before_any_launch(changed, error, message, attention, monkeypatch):
    refuse_launches(monkeypatch)
    with pytest.raises(error, match=message):
        attention(**(GOOD_ATTENTION_INPUTS | changed))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": -1}, ValueError, "window must be at least 0, got -1"),
        ({"window": 1.5}, TypeError, "window must be an integer or None, got float"),
        ({"window": True}, TypeError, "window must be an integer or None, got bool"),
        ({"softcap": 0.0}, ValueError, "softcap must be finite and greater than 0"),
        ({"softcap": math.inf}, ValueError, "softcap must be finite and greater than 0"),
        ({"softcap": "5"}, TypeError, "softcap must be a number, got str"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"dropout": math.nan}, ValueError, "dropout must be at least 0 and less than 1"),
        ({"dropout": None}, TypeError, "dropout must be a number, got NoneType"),
        ({"dropout": 0.1, "seed": 3}, TypeError, "seed must be a tensor with one int64 number"),
        (
            {"dropout": 0.1, "seed": torch.tensor([1, 2])},
            TypeError,
            "seed must be a tensor with one int64 number, got torch.int64 .2,.",
        ),
        (
            {"dropout": 0.1, "seed": torch.tensor(1, device="meta")},
            ValueError,
            "seed is on meta, but query is on",
        ),
    ],
)
def test_bad_options_are_refused_before_any_launch(options, error, message, monkeypatch):
    refuse_launches(monkeypatch)
    with pytest.raises(error, match=message):
        flash2.attention(**GOOD_ATTENTION_INPUTS, **options)


@pytest.mark.parametrize("splits", [0, -1, 2.0, True])
def test_a_number_of_splits_that_is_none_is_refused(splits, monkeypatch):
    refuse_launches(monkeypatch)
    with pytest.raises(ValueError, match="splits must be an integer of at least 1"):
        flash2.split_attention(**GOOD_ATTENTION_INPUTS, splits=splits)


def refuse_launches(monkeypatch) -> None:
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(flash2_forward.forward_kernel), "run", launched)
    assert type(flash2_backward.query_kernel).run is launched
