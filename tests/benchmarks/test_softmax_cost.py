"""The kernels without one of FlashAttention-2's savings: right, and different in that saving only."""

import subprocess
import sys

import pytest
import torch

import kernels
from benchmarks import softmax_cost
from instruments.timing import Timing
from kernels import reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", softmax_cost.KERNELS)
def test_every_kernel_computes_attention(name, dtype):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 2, 64, 32, device=kernels.device()).to(dtype)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 16}, {"num_warps": 4, "num_stages": 2}
    errors = reference.errors(
        softmax_cost.attention(name, *inputs, blocks), reference.attention(*inputs)
    )
    assert errors.within(reference.error_budget(*inputs))


@pytest.fixture(scope="module")
def counted():
    return {(row["kernel"], row["d"]): row for row in softmax_cost.count_instructions(90)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("d", softmax_cost.HEAD_DIMS)
def test_a_saving_is_the_instructions_it_saves(counted, d):
    assert {name for name, _ in counted} == set(softmax_cost.KERNELS)
    rows = {name: counted[name, d] for name in softmax_cost.KERNELS}
    issued = {name: row["instructions"] for name, row in rows.items()}
    once = rows["once"]
    tile, threads = once["block_m"] * once["block_n"], 32 * once["warps"]
    scores, outputs = tile // threads, once["block_m"] * d // threads  # that a thread has
    rows_of_a_thread = scores * 4 // once["block_n"]
    # An instruction of a warpgroup: 64 rows by the tile's columns by 16.
    warpgroups = once["warps"] // 4
    a_product = once["block_m"] // 64 // warpgroups
    assert {name: each["HGMMA"] for name, each in issued.items()} == dict.fromkeys(
        softmax_cost.KERNELS, a_product * (d + once["block_n"]) // 16
    )
    # One exponential a score and one a row, for its rescaling.
    assert issued["once"]["MUFU"] == issued["natural"]["MUFU"] == scores + rows_of_a_thread
    assert issued["each_step"]["MUFU"] == issued["once"]["MUFU"] + rows_of_a_thread
    assert issued["unfolded"]["FMUL"] == issued["once"]["FMUL"] + scores
    assert issued["natural"]["FMUL"] > issued["unfolded"]["FMUL"] + scores
    assert issued["each_step"]["FMUL"] >= issued["once"]["FMUL"] + outputs
    assert all(each["all"] >= issued["once"]["all"] for each in issued.values())


def test_a_row_has_the_time_and_the_instructions_of_its_kernel(monkeypatch):
    called = []

    def on_this_device(dtype, *shape):
        return torch.zeros(3, *shape, dtype=getattr(torch, dtype), device=kernels.device())

    def pretend(functions):
        called.extend(function().shape for function in functions.values())
        return {name: Timing((1.0 + len(name),) * 2) for name in functions}

    monkeypatch.setattr(softmax_cost, "random_inputs", on_this_device)
    monkeypatch.setattr(softmax_cost, "time_interleaved", pretend)
    monkeypatch.setattr(softmax_cost, "LENGTH", 128)
    monkeypatch.setattr(softmax_cost, "TOKENS", 256)
    monkeypatch.setattr(softmax_cost, "WIDTH", 64)
    counted = [
        {"kernel": n, "d": d, "all": (n, d)} for n in softmax_cost.KERNELS for d in (64, 128)
    ]
    rows = softmax_cost.time_kernels(64, counted)
    assert called == [(2, 1, 128, 64)] * len(rows)
    assert [row["kernel"] for row in rows] == list(softmax_cost.KERNELS)
    for row in rows:
        assert row["all"] == (row["kernel"], row["d"]) == (row["kernel"], 64)
        assert row["ms"] == 1.0 + len(row["kernel"])
        assert row["over_once"] == pytest.approx(5.0 / row["ms"], abs=5e-5)
        flops = 2 * 2 * (2 * 128 * 128 * 64)
        assert row["tflops"] == pytest.approx(1e-9 * flops / row["ms"], abs=5e-3)


LISTING = """
\t.L_x
LBB0:
--:-:-:-:1\tIADD3 R1, R1, 0x1;
--:-:-:-:1\t@P0 BRA LBB0;
LBB1:
--:-:-:-:1\tHGMMA.64x64x16.F32 R24, gdesc[UR4], RZ;
--:-:-:-:1\t@!P0 FADD R12, R13, R14;
--:-:-:-:1\t@P1 BRA LBB2;
LBB2:
--:-:-:-:1\tMUFU.EX2 R2, R3;
--:-:-:-:1\t@!UP0 BRA LBB1;
--:-:-:-:1\tEXIT ;
"""


def test_the_loop_is_read_from_the_machine_code():
    names = ["HGMMA", "FADD", "BRA", "MUFU", "BRA"]
    assert softmax_cost.loop_of_products(LISTING) == names
    with pytest.raises(ValueError, match="expected 1 loop that multiplies matrices, found 0"):
        softmax_cost.loop_of_products(LISTING.replace("HGMMA", "FFMA"))


@pytest.mark.parametrize("arguments", [[], ["--experiment", "x", "--instructions", "90"]])
def test_it_either_times_or_counts(arguments):
    command = [sys.executable, "-m", "benchmarks.softmax_cost", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--experiment" in done.stderr and "--instructions" in done.stderr


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so():
    command = [sys.executable, "-m", "benchmarks.softmax_cost", "--experiment", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "the kernels are timed on a CUDA GPU, and PyTorch sees none here\n"
