"""The sweeps: contestants agree with the oracle, and bad arguments are named."""

import importlib
import sys

import pytest
import torch

import kernels
from benchmarks import contestants, flash_attention_3
from benchmarks.attention import time_problem, timed_call
from instruments.io_model import AttentionShape
from kernels import reference


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["eager", "math"])
def test_peers_compute_attention(name, causal):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 33, 16, device=kernels.device())
    error = reference.errors(
        contestants.peer(name)(query, key, value, causal),
        reference.attention(query, key, value, causal=causal),
    )
    assert error.maximum < 1e-5


def test_kernels_are_found_by_name():
    query, key, value = torch.randn(3, 1, 1, 8, 16, device=kernels.device()).half()
    for name in contestants.KERNELS.keys() - {"flash3"}:  # which runs on Hopper only
        assert contestants.kernel(name)(query, key, value, False).shape == query.shape


def test_the_peer_fa3_says_which_library_it_needs(monkeypatch):
    monkeypatch.delenv(flash_attention_3.VARIABLE, raising=False)
    inputs = tuple(torch.randn(2, 3, 8, 16, dtype=torch.float16) for _ in range(3))
    with pytest.raises(FileNotFoundError, match="needs FLASH_ATTENTION_3 to name"):
        contestants.peer("fa3")(*inputs, False)


def test_the_peer_fa3_gets_the_same_tensors_with_the_heads_of_a_row_together():
    inputs = tuple(torch.randn(2, 3, 8, 16) for _ in range(3))
    for was, now in zip(inputs, contestants.laid_out("fa3", inputs), strict=True):
        assert torch.equal(was, now) and now.stride() == (384, 16, 48, 1)
    assert contestants.laid_out("fa2", inputs) is inputs
    for was, now in zip(inputs, contestants.laid_out("fa3_fp8", inputs), strict=True):
        assert torch.equal(was.to(torch.float8_e4m3fn).float(), now.float())
        assert now.stride() == (384, 16, 48, 1)


def test_the_fp8_kernel_alone_gets_what_it_reads():
    inputs = tuple(torch.randn(1, 2, 70, 64, device=kernels.device()).half() for _ in range(3))
    prepared = contestants.laid_out("fp8_prepared", inputs)
    assert [tuple(each.values.shape[2:]) for each in prepared] == [(70, 64), (70, 64), (64, 80)]
    assert [each.scale.shape[2] for each in prepared] == [2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--kernels", "nave", "--experiment", "x"], "'nave' is not one of naive"),
        (["attention", "--kernels", "naive", "--peers", "fa9", "--experiment", "x"], "'fa9'"),
        (["memory", "--kernels", "naive"], "--experiment"),
        (["dram_traffic", "--kernels", "naive"], "--experiment is required"),
    ],
)
def test_bad_arguments_are_named(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{arguments[0]}").main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("direction", "prepared", "a_call"), [("fwd", 0, 1), ("bwd", 1, 0), ("fwd+bwd", 0, 1)]
)
def test_a_timed_call_runs_the_direction_asked_for(direction, prepared, a_call):
    forwards = []

    def product(query, key, value, causal):
        forwards.append(causal)
        return query * key * value

    inputs = [torch.full((2,), number) for number in (2.0, 3.0, 5.0)]
    call = timed_call(product, inputs, True, direction)
    assert len(forwards) == prepared
    first, second = call(), call()
    assert forwards == [True] * (prepared + 2 * a_call)
    if direction == "fwd":
        assert torch.equal(first, torch.full((2,), 30.0))
    else:
        # The gradients of a product are in the inverse ratio of its factors.
        assert [x.shape for x in first] == [x.shape for x in inputs]
        torch.testing.assert_close(2 * first[0], 3 * first[1])
        torch.testing.assert_close(3 * first[1], 5 * first[2])
        assert not any(x.requires_grad for x in inputs)
    assert len(first) == len(second)


def test_a_peer_that_cannot_run_is_null_and_the_others_are_timed(monkeypatch):
    asked = []

    def out_of_memory(query, key, value, causal):
        asked.append(query.shape)
        raise torch.OutOfMemoryError("no room for S")

    def on_this_device(dtype, batch, heads, seq, head_dim):
        shape = (batch, heads, seq, head_dim)
        return tuple(torch.randn(3, *shape, device=kernels.device(), dtype=getattr(torch, dtype)))

    monkeypatch.setattr(contestants, "_eager", out_of_memory)
    monkeypatch.setattr(contestants, "random_inputs", on_this_device)
    monkeypatch.delenv(flash_attention_3.VARIABLE, raising=False)
    if kernels.device().type == "cpu":
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    shape = AttentionShape(32, 32, 16, "float16", 1, 2)
    (row,) = time_problem(["flash2"], ["eager", "fa3", "math"], shape, False, "fwd+bwd")
    assert asked == [(1, 2, 32, 16)]
    for name in ("eager", "fa3"):
        assert row["peers"][name] is row["speedup"][name] is None
    assert row["ms"] > 0 and None not in (row["peers"]["math"], row["speedup"]["math"])
    assert (row["kernel"], row["direction"]) == ("flash2", "fwd+bwd")
