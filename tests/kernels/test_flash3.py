"""FlashAttention-3 against the oracle: on a Hopper GPU itself, elsewhere its kernel in the simulator."""

import functools
import queue
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from allpairspy import AllPairs
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

import kernels
from instruments import simulated_flash3
from instruments.gluon_simulator import simulate
from kernels import flash3, reference
from kernels.flash3 import Design
from kernels.flash3_kernel import flash3_kernel
from kernels.flash3_pipeline import (
    Given,
    PairRing,
    Ring,
    Shared,
    make_barriers,
    make_tiles,
    rounds_of_work,
    work_tile,
)
from tests.kernels.bad_input import BAD_ATTENTION_INPUTS, GOOD_ATTENTION_INPUTS
from tests.kernels.grid import (
    assert_matches_oracle,
    exact_score_inputs,
    full_grid,
    inputs_far_apart,
    make_inputs,
    pairwise_grid,
)

ROOT = Path(__file__).resolve().parents[2]
ON_HOPPER = kernels.device().type == "cuda" and torch.cuda.get_device_capability() == (9, 0)
ATTENTION = flash3.attention if ON_HOPPER else simulated_flash3.attention
DTYPES = flash3.DTYPES
ALONE = {"specialized": False, "pingpong": False, "warpgroups": 2}
# One change of the shipped design each. Three stages of its tiles do not always fit.
STEPS = {
    "shipped": {},
    "one stage": {"stages": 1},
    "three stages": {"stages": 3, "block_n": 32},
    "no overlap": {"overlap": "none"},
    "maxima overlap": {"overlap": "maximum"},
    "the softmax overlaps": {"overlap": "softmax"},
    "pingpong": {"pingpong": True},
    "no pingpong": {"pingpong": False},
    "not persistent": {"persistent": False},
    "output through the queries": {"output_apart": False},
    "alone": ALONE,
    "plain": ALONE | {"stages": 1, "overlap": "none", "persistent": False, "output_apart": False},
}


def changed(step: str, head_dim: int) -> Design:
    return replace(flash3.shipped_design(head_dim), **STEPS[step])


# Where a step changes nothing of what is shipped at this head dimension, it would be tested twice.
STEPS_AT_64 = [
    step for step in STEPS if step == "shipped" or changed(step, 64) != flash3.shipped_design(64)
]
WORKERS = [ALONE] + [
    {"warpgroups": warpgroups, "pingpong": pingpong}
    for warpgroups in (2, 3)
    for pingpong in (False, True)
]
CHOICES = {
    "stages": (1, 2, 3),
    "overlap": flash3.OVERLAPS,
    "persistent": (False, True),
    "output_apart": (False, True),
}
# Any two choices of a design meet in one of these.
DESIGNS = [
    Design(64, **workers, **dict(zip(CHOICES, chosen, strict=True)))
    for workers, *chosen in AllPairs([WORKERS, *CHOICES.values()])
]


def on_hopper(test):
    """Mark a test that needs a Hopper GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")(test))


def tensors(seq_query, seq_key, *, dtype=torch.float16, heads=(2, 1), head_dim=64, batch=1, seed=0):
    torch.manual_seed(seed)
    return tuple(
        torch.randn(batch, h, n, head_dim).to(dtype).to(kernels.device())
        for h, n in ((heads[0], seq_query), (heads[1], seq_key), (heads[1], seq_key))
    )


@pytest.mark.parametrize(
    "cell", (full_grid if ON_HOPPER else pairwise_grid)(dtypes=DTYPES), ids=str
)
def test_matches_the_oracle(cell):
    assert_matches_oracle(ATTENTION, *make_inputs(cell), causal=cell.causal)


# Few on a GPU, where each compiles a kernel of its own.
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("design", DESIGNS[::3] if ON_HOPPER else DESIGNS, ids=repr)
def test_every_design(design, causal):
    several_rounds = {} if ON_HOPPER else {"programs": 2}
    attention = functools.partial(ATTENTION, design=design, **several_rounds)
    assert_matches_oracle(attention, *tensors(200, 222), causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_ten_thousand_that_are_exact(dtype):
    for causal in (False, True):
        assert_matches_oracle(ATTENTION, *exact_score_inputs(dtype, 1024), causal=causal, scale=1.0)


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(dtype, head_dim):
    query, key, value = (30 * x for x in tensors(63, 200, dtype=dtype, head_dim=head_dim))
    assert (query.float() @ key.float().mT).abs().max() > 3e4
    for causal in (False, True):
        options = {"causal": causal, "scale": 1.0}
        output, logsumexp = ATTENTION(query, key, value, **options, return_logsumexp=True)
        expected = reference.attention(query, key, value, return_logsumexp=True, **options)
        assert reference.errors(logsumexp, expected[1]).within(
            reference.logsumexp_budget(query, key, value, **options)
        )
        # Nearly all weights are 0 or 1 here, so PyTorch's rounding costs it nothing. The kernel's largest
        # weight is 1 only up to the rounding of the scaled maximum, which divides out of the output but
        # for one rounding of the weights and one of the output: half of eps each, of the sum of magnitudes.
        magnitudes = reference.attention(query, key, value.abs(), **options)
        budget = reference.error_budget(query, key, value, **options)
        allowed = budget.maximum + torch.finfo(dtype).eps * magnitudes
        assert ((output.double() - expected[0]).abs() <= allowed).all()


def test_a_maximum_that_rises_in_every_tile():
    # The worst case for the rescaling, whichever way the keys are walked.
    query, _, value = tensors(40, 600)
    key = (torch.arange(600.0, device=query.device) / 64)[:, None].expand_as(value).half()
    for keys in (key, key.flip(2)):
        assert_matches_oracle(ATTENTION, torch.ones_like(query), keys, value, scale=0.1)


@pytest.mark.parametrize("warpgroups", [2, 3])
@pytest.mark.parametrize("lengths", [(64, 65), (127, 128), (128, 128), (129, 128), (192, 320)])
def test_tiles_that_end_on_the_diagonal(lengths, warpgroups):
    attention = functools.partial(ATTENTION, design=Design(64, warpgroups))
    for causal in (False, True):
        assert_matches_oracle(attention, *tensors(*lengths, heads=(1, 1)), causal=causal)


@pytest.mark.parametrize("step", STEPS_AT_64)
def test_a_query_that_sees_no_key_gets_zeros(step):
    inputs = tensors(405, 2)
    attention = functools.partial(ATTENTION, design=changed(step, 64))
    output, logsumexp = attention(*inputs, causal=True, return_logsumexp=True)
    # Aligned at the bottom right, the first 403 of 405 queries come before both keys.
    assert (output[:, :, :403] == 0).all() and (logsumexp[:, :, :403] == -torch.inf).all()
    assert output[:, :, 403:].abs().amax(-1).min() > 0 and logsumexp[:, :, 403:].isfinite().all()


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
    query, key = (
        torch.randn(shape, device=kernels.device()).half() for shape in (query_shape, key_shape)
    )
    output, logsumexp = ATTENTION(query, key, key, return_logsumexp=True)
    assert output.shape == query.shape and (output == 0).all()
    assert logsumexp.shape == query.shape[:-1] and (logsumexp == -torch.inf).all()


def one_element_later(tensor):
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory[1:].view_as(tensor).copy_(tensor)


def in_wider_rows(tensor, columns):
    *shape, head_dim = tensor.shape
    return tensor.new_empty(*shape, head_dim + columns)[..., :head_dim].copy_(tensor)


LAYOUTS = {  # what it is, and whether the TMA reads it where it lies
    "batch-seq-head": (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), True),
    "rows 16 bytes apart": (lambda x: in_wider_rows(x, 8), True),
    "rows 4 bytes too far apart": (lambda x: in_wider_rows(x, 2), False),
    "head_dim not contiguous": (lambda x: x.mT.contiguous().mT, False),
    "every second element": (lambda x: x.repeat_interleave(2, -1)[..., ::2], False),
    "not 16-byte aligned": (one_element_later, False),
    "one head for all": (lambda x: x[:, :1].expand_as(x), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_at_most_one_copy(layout):
    lay_out, in_place = LAYOUTS[layout]
    laid_out = [lay_out(x) for x in tensors(70, 150, heads=(2, 2), head_dim=40)]
    contiguous = [x.contiguous() for x in laid_out]
    assert torch.equal(ATTENTION(*laid_out), ATTENTION(*contiguous))
    output = torch.empty_like(contiguous[0])
    design = flash3.shipped_design(40)
    _, arguments, _ = flash3.launch(*laid_out, output, output, False, 1.0, design, 1)
    for tensor, descriptor in zip(laid_out, arguments, strict=False):
        assert (descriptor.base.data_ptr() == tensor.data_ptr()) == in_place


@pytest.mark.parametrize("step", ["shipped", "one stage", "alone"])
def test_any_number_of_programs_gives_the_same(step):
    inputs = tensors(333, 200, heads=(4, 2))
    simulated = functools.partial(
        simulated_flash3.attention, *inputs, causal=True, design=changed(step, 64)
    )
    expected = simulated(programs=132)
    for programs in (1, 2, 7):
        assert torch.equal(simulated(programs=programs, seed=programs), expected)


@pytest.mark.parametrize("step", STEPS_AT_64)
def test_any_timing_gives_the_same(step):
    inputs = tensors(70, 500, heads=(2, 2))
    simulated = functools.partial(
        simulated_flash3.attention, *inputs, design=changed(step, 64), programs=1
    )
    expected = simulated(seed=0)
    for seed in range(1, 6):
        assert torch.equal(simulated(seed=seed), expected)


@given_any(
    lengths=st.tuples(*[st.integers(1, 2000 if ON_HOPPER else 300)] * 2),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.integers(2, 32).map(lambda eighth: 8 * eighth),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    # On a GPU each of the others would compile some twenty kernels.
    step=st.sampled_from(["shipped"] if ON_HOPPER else list(STEPS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=1000 if ON_HOPPER else 15, deadline=None, database=None, derandomize=True)
def try_any_shape(lengths, step, causal, **options):
    print(f"lengths {lengths}, {step}, causal {causal}, {options}", flush=True)
    attention = functools.partial(ATTENTION, design=changed(step, options["head_dim"]))
    assert_matches_oracle(attention, *tensors(*lengths, **options), causal=causal)


@pytest.mark.timeout(600)
def test_any_shape():
    # In a process of its own: a kernel that hangs on a GPU would take this one with it.
    run_watched([sys.executable, "-m", "tests.kernels.test_flash3"], seconds_a_line=60)


def run_watched(command: list[str], seconds_a_line: float) -> None:
    """Run a command that prints what it is about to try; fail with its last lines if it fails or hangs."""
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines, printed = queue.Queue(), []

    def listen():
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        while (line := lines.get(timeout=seconds_a_line)) is not None:
            printed.append(line)
    except queue.Empty:
        pytest.fail(f"it hangs; the last it said is: {''.join(printed[-1:])}")
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, "".join(printed[-40:])


def test_a_hang_is_named():
    hanging = "import time; print('lengths (1, 2)', flush=True); time.sleep(60)"
    with pytest.raises(pytest.fail.Exception, match=r"it hangs; .*lengths \(1, 2\)"):
        run_watched([sys.executable, "-c", hanging], seconds_a_line=1)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_watched([sys.executable, "-c", "1 / 0"], seconds_a_line=10)


@pytest.mark.parametrize("design", DESIGNS, ids=repr)
def test_every_tile_that_is_seen_is_loaded_once(design):
    tiles_of_queries = -(-300 // (design.consumers * design.rows))
    done = simulated_flash3.run(*tensors(300, 200), design=design, programs=2)
    loaded = Counter(
        (span.buffer.partition("[")[0], span.tile[2])
        for span in done.run.trace
        if span.name == "fill" and span.buffer.startswith("shared.pairs")
    )
    # For each tile of queries of two heads, which share one of keys.
    assert loaded == {
        (f"shared.pairs.{name}", row): 2 * tiles_of_queries
        for name in ("key", "value")
        for row in range(0, 200, design.block_n)
    }


@gluon.jit
def work_kernel(
    query,
    key,
    value,
    output,
    found_ptr,
    scale_log2,
    heads_together,
    CAUSAL: gl.constexpr,
    CONSUMERS: gl.constexpr,
    ROUNDS: gl.constexpr,
):
    """Write down a program's share of the work: head, kv_head, start_m and tiles, round after round."""
    given = Given(query, key, value, output, found_ptr, scale_log2, heads_together)
    barriers = make_barriers(CONSUMERS, 1)
    queries = Ring(make_tiles(query, CONSUMERS), barriers, barriers)
    pairs = PairRing(make_tiles(key, 1), make_tiles(value, 1), barriers, barriers)
    shared = Shared(queries, pairs, queries.tiles, barriers)
    for round in range(rounds_of_work(given, shared)):
        work = work_tile(round, 0, given, shared, CAUSAL)
        place = found_ptr + (gl.program_id(0) * ROUNDS + round) * 4
        gl.store(place, work.head)
        gl.store(place + 1, work.kv_head)
        gl.store(place + 2, work.start_m)
        gl.store(place + 3, work.tiles)


def work_of(heads, kv_heads, seq_query, seq_key, causal, design, programs, batch=1):
    """What each program of a launch does: a list of (head, kv_head, start_m, tiles) a program."""
    query, key = (
        torch.empty(batch, h, n, 16).half() for h, n in ((heads, seq_query), (kv_heads, seq_key))
    )
    grid, arguments, _ = flash3.launch(
        query, key, key, query.clone(), query, causal, 1.0, design, programs
    )
    blocks = -(-seq_query // (design.consumers * design.rows))
    rounds = -(-batch * heads * blocks // grid[0])
    found = torch.full((grid[0], rounds, 4), -1, dtype=torch.int32)
    simulate(
        work_kernel,
        grid,
        *arguments[:4],
        found,
        *arguments[5:],
        CAUSAL=causal,
        CONSUMERS=design.consumers,
        ROUNDS=rounds,
    )
    return [[tuple(work) for work in share if work[0] >= 0] for share in found.tolist()]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "seq_query", "seq_key", "programs"),
    [
        (1, 1, 1, 1, 132),
        (2, 1, 129, 70, 3),
        (3, 3, 500, 500, 2),
        (4, 2, 1000, 900, 7),
        (5, 5, 700, 1500, 5),
        (6, 2, 128, 2000, 4),
        (7, 1, 1100, 1100, 13),
        (12, 4, 300, 300, 8),
        (8, 8, 1024, 1024, 132),
        (33, 11, 520, 600, 20),
    ],
)
def test_every_tile_is_done_once_and_programs_do_as_much_as_each_other(
    heads, kv_heads, seq_query, seq_key, programs, causal
):
    for design in (Design(64), Design(64, persistent=False)):
        shares = work_of(heads, kv_heads, seq_query, seq_key, causal, design, programs, batch=2)
        done = sorted(work[:3] for share in shares for work in share)
        assert done == [
            (head, head // (heads // kv_heads), start_m)
            for head in range(2 * heads)
            for start_m in range(0, seq_query, 128)
        ]
        if design.persistent:
            lengths = [[tiles for *_, tiles in share] for share in shares]
            longest = max(map(max, lengths))
            busy = [sum(tiles) for tiles in lengths]
            assert max(busy) <= sum(busy) / len(busy) + longest


@pytest.mark.parametrize("attention", [flash3.attention, simulated_flash3.attention])
@pytest.mark.parametrize(("wrong", "error", "message"), BAD_ATTENTION_INPUTS)
def test_bad_input_is_refused_before_any_launch(wrong, error, message, attention, monkeypatch):
    refuse_launches(monkeypatch)
    inputs = {name: in_16_bits(x) for name, x in (GOOD_ATTENTION_INPUTS | wrong).items()}
    with pytest.raises(error, match=message.replace("float32", "bfloat16")):
        attention(**inputs)


def in_16_bits(argument):
    is_wide = isinstance(argument, torch.Tensor) and argument.dtype == torch.float32
    return argument.bfloat16() if is_wide else argument


@pytest.mark.parametrize("attention", [flash3.attention, simulated_flash3.attention])
def test_what_the_tma_or_the_tensor_cores_cannot_take_is_refused(attention, monkeypatch):
    refuse_launches(monkeypatch)
    with pytest.raises(ValueError, match="head_dim 20; accepted: multiples of 8"):
        attention(*tensors(5, 5, head_dim=20))
    with pytest.raises(TypeError, match="float32; accepted: torch.float16, torch.bfloat16"):
        attention(*tensors(5, 5, dtype=torch.float32))


def refuse_launches(monkeypatch) -> None:
    def launched(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(flash3_kernel), "run", launched)
    monkeypatch.setattr(simulated_flash3, "simulate", launched)


def test_elsewhere_than_on_hopper_it_says_what_runs_there(monkeypatch):
    came = "the CPU"
    if kernels.device().type == "cuda":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        came = f"{torch.cuda.get_device_name()}, of compute capability 8.0"
    message = f"compute capability 9.0 (Hopper), but query is on {came}: kernels.flash2 computes"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        flash3.attention(*tensors(5, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warpgroups": 1}, "warpgroups must be 2 or 3, and 2 without specialized; got 1"),
        ({"warpgroups": 4}, "warpgroups must be 2 or 3, .* got 4 with specialized=True"),
        (ALONE | {"warpgroups": 3}, "2 without specialized; got 3 with specialized=False"),
        (ALONE | {"pingpong": True}, "pingpong needs specialized"),
        ({"overlap": "all"}, r"overlap must be one of \('none', 'maximum', 'softmax'\); got 'all'"),
        ({"overlap": True}, "overlap must be one of .*; got True"),
    ],
)
def test_a_design_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Design(64, **options)


@on_hopper
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_hundred_runs_agree_in_every_bit(causal, head_dim):
    inputs = tensors(2500, 2111, heads=(8, 2), head_dim=head_dim)
    first = flash3.attention(*inputs, causal=causal, return_logsumexp=True)
    for _ in range(99):
        again = flash3.attention(*inputs, causal=causal, return_logsumexp=True)
        assert all(map(torch.equal, again, first))


@on_hopper
@pytest.mark.parametrize("far", ["batch", "head", "row", "head_dim"])
def test_elements_further_apart_than_32_bits_count(far):
    near, spread = inputs_far_apart(far)
    assert torch.equal(flash3.attention(*spread), flash3.attention(*near))


@on_hopper
def test_outputs_beyond_2_to_the_31_elements():
    length, head_dim = 2**18 + 5, 128
    torch.manual_seed(0)
    # One key: the output is the value, so the last rows of 65 heads are known without the oracle.
    query = torch.randn(1, 65, length, head_dim, device="cuda", dtype=torch.float16)
    value = torch.randn(1, 65, 1, head_dim, device="cuda", dtype=torch.float16)
    assert query.numel() > 2**31
    output = flash3.attention(query, value, value)
    assert torch.equal(output[:, -1, -9:], value[:, -1].expand(1, 9, head_dim))


@on_hopper
def test_a_cuda_graph_replays_it():
    inputs = tensors(1300, 2000, heads=(4, 2), head_dim=128)
    flash3.attention(*inputs, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flash3.attention(*inputs, causal=True)
    for x in inputs:
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, flash3.attention(*inputs, causal=True))


@on_hopper
def test_launches_on_two_streams_do_not_meet():
    pairs = [tensors(2000, 3000, heads=(8, 8), head_dim=128, seed=seed) for seed in (0, 1)]
    expected = [flash3.attention(*inputs) for inputs in pairs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in pairs]
    for _ in range(10):
        found = []
        for stream, inputs in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                found.append(flash3.attention(*inputs))
        torch.cuda.synchronize()
        assert all(map(torch.equal, found, expected))


if __name__ == "__main__":
    try_any_shape()
