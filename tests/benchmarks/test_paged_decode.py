"""Decoding's contestants compute the same on the same numbers, and a row says what was measured."""

import sys

import pytest
import torch

import kernels
from benchmarks import flash_attention_3, paged_decode
from benchmarks.paged_decode import Problem
from instruments.timing import Timing

SMALL = Problem(2, 32, kv_heads=8)


@pytest.fixture
def few_heads(monkeypatch):
    monkeypatch.setattr(paged_decode, "HEADS", 8)


def test_contestants_agree(few_heads, monkeypatch):
    # FlashAttention-3's library is stood for by what it is handed.
    given = []
    monkeypatch.setattr(flash_attention_3, "decoder", lambda *arguments: given.append(arguments))
    outputs = {}
    for name, prepare in paged_decode.contestants(SMALL).items():
        call = prepare()
        if call is not None:
            outputs[name] = call()
    assert [*outputs, "fa3", "fa3_contiguous"] == ["paged", "fp8", "contiguous", "sdpa"] + [
        name for name in paged_decode.PEERS if name.startswith("fa3")
    ]
    assert torch.equal(outputs["paged"], outputs["contiguous"])
    # Rounding in float16, and with 3 bits after the first of numbers that are averaged over 32 tokens.
    for name, allowed in (("sdpa", 4 * 2**-10), ("fp8", 2**-3)):
        assert (outputs[name] - outputs["paged"]).abs().max() < allowed
    query, keys, values, lengths, table = given[0]
    assert query.shape == (2, 8, 128) and keys.shape == values.shape == (4, 16, 8, 128)
    assert table.shape == (2, 2) and lengths.tolist() == [32, 32]
    assert given[1][1].shape == (2, 32, 8, 128) and len(given[1]) == 4


@pytest.mark.parametrize("block_size", [1, 16])
def test_a_paged_cache_holds_the_sequences(block_size):
    sequences = [torch.arange(2 * 32 * 3.0).view(2, 32, 3, 1), torch.randn(2, 32, 3, 1)]
    table, caches = paged_decode.paged_caches(sequences, block_size)
    assert table.dtype == torch.int32 and sorted(table.flatten()) == list(range(64 // block_size))
    for sequence, cache in zip(sequences, caches, strict=True):
        assert torch.equal(cache[table.long()].flatten(1, 2), sequence)
    assert not torch.equal(caches[0].flatten(0, 1), sequences[0].flatten(0, 1))


def test_a_row_says_what_was_measured(monkeypatch):
    calls = dict.fromkeys(("paged", "fp8", "contiguous", "sdpa"), lambda: torch.zeros(2))
    calls["contiguous"] = lambda: torch.tensor([0.0, -0.5])

    def not_there():
        raise FileNotFoundError("no library")

    prepared = {name: lambda call=call: call for name, call in calls.items()} | {"fa3": not_there}
    milliseconds = {"paged": 2.0, "fp8": 1.0, "contiguous": 1.0, "sdpa": 4.0}
    monkeypatch.setattr(paged_decode, "contestants", lambda _: prepared)
    monkeypatch.setattr(
        paged_decode,
        "time_interleaved",
        lambda given: {name: Timing((milliseconds[name],) * 2) for name in given},
    )
    problem = Problem(10, 1000, kv_heads=4, block_size=8)
    row = paged_decode.time_problem(problem)
    assert problem.bytes == 2 * 10 * 1000 * 4 * 128 * 2
    in_all = 2e-9 * 10 * 1000 * 4 * 128 * 2
    assert row["ms"] == 2.0 and row["tbs"] == round(in_all / 2, 3)
    # Half the bytes in half the time.
    assert row["peers"]["fp8"] == row["tbs"] == round(row["peers"]["sdpa"] * 2, 3)
    assert row["peers"]["fa3"] is None and row["speedup"]["fa3"] is None
    assert row["speedup"]["sdpa"] == 2.0 and row["speedup"]["contiguous"] == 0.5
    assert row["disagreement"] == {"contiguous": 0.5, "fp8": 0.0, "sdpa": 0.0}
    assert (row["batch"], row["n"], row["kv_heads"], row["block_size"]) == (10, 1000, 4, 8)
    assert 0.005 < row["predicted_ms"] < 0.05


def test_a_failure_of_ours_is_not_passed_over(monkeypatch):
    def broken():
        raise RuntimeError("ours")

    monkeypatch.setattr(paged_decode, "contestants", lambda _: {"paged": broken})
    with pytest.raises(RuntimeError, match="ours"):
        paged_decode.time_problem(SMALL)


def test_the_peer_fa3_says_which_library_it_needs(monkeypatch):
    monkeypatch.delenv(flash_attention_3.VARIABLE, raising=False)
    query, cache = torch.zeros(2, 8, 128), torch.zeros(4, 16, 8, 128)
    lengths = torch.zeros(2, dtype=torch.int32)
    for table in (None, lengths[:, None]):
        with pytest.raises(FileNotFoundError, match="needs FLASH_ATTENTION_3 to name"):
            flash_attention_3.decoder(query, cache, cache, lengths, table)


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paged_decode", "--experiment", "x"])
    with pytest.raises(SystemExit, match="^decoding is timed on a CUDA GPU, and PyTorch sees none"):
        paged_decode.main()
