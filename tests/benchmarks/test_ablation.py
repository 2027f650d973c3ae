"""The ablation at toy size: which designs there are, and what is in a row."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

import kernels
from benchmarks import ablation, contestants, flash_attention_3
from instruments import simulated_flash3
from instruments.io_model import AttentionShape
from instruments.timing import Timing
from kernels import flash3, reference


def changed(before, after):
    was, now = dataclasses.asdict(before), dataclasses.asdict(after)
    return {name for name in was if was[name] != now[name]}


@pytest.mark.parametrize("head_dim", ablation.PROBLEMS)
def test_a_step_adds_one_idea_and_the_last_has_all(head_dim):
    named = ablation.designs(head_dim)
    steps = ("alone", "stages", "producer", "overlap", "pingpong", "full")
    added = [changed(named[a], named[b]) for a, b in zip(steps, steps[1:], strict=False)]
    # Who loads also says how many warpgroups compute; persistence, where the output goes.
    expected = [{"stages"}, {"specialized"}, {"overlap"}, {"pingpong"}, {"persistent"}]
    extras = [set(), {"warpgroups"}, set(), set(), {"output_apart"}]
    for found, idea, extra in zip(added, expected, extras, strict=True):
        assert idea <= found <= idea | extra
    full = named["full"]
    assert full.specialized and full.pingpong and full.persistent
    assert full.overlap == "softmax"
    assert named["turns_first"] == dataclasses.replace(named["pingpong"], overlap="none")
    assert named["third_stage"].stages == named["producer"].stages + 1


@pytest.mark.parametrize("head_dim", ablation.PROBLEMS)
def test_each_idea_is_taken_from_the_full_design_alone(head_dim):
    named = ablation.designs(head_dim)
    taken = {name: changed(named["full"], design) for name, design in named.items()}
    assert taken["one_stage"] == {"stages"} and named["one_stage"].stages == 1
    for idea in ("overlap", "pingpong", "persistent"):
        assert taken[f"no_{idea}"] == {idea}
    assert taken["maximum"] == {"overlap"}
    assert taken["no_apart"] <= {"output_apart"}
    assert {"specialized"} <= taken["no_producer"] <= {"specialized", "pingpong", "warpgroups"}
    assert named["shipped"] == flash3.shipped_design(head_dim)


@pytest.mark.parametrize("name", ablation.NAMES)
def test_every_design_computes_attention(name):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 128).half() for length in (200, 333, 333))
    design = ablation.designs(128)[name]
    output = simulated_flash3.attention(query, key, value, causal=True, design=design)
    errors = reference.errors(output, reference.attention(query, key, value, causal=True))
    assert errors.within(reference.error_budget(query, key, value, causal=True))


@pytest.fixture
def rows(monkeypatch):
    """Every design takes as many milliseconds as its place, and computes attention."""
    timed = []

    def on_this_device(dtype, *shape):
        return tuple(torch.randn(3, *shape, device=kernels.device()).to(getattr(torch, dtype)))

    def attention(query, key, value, *, causal, design):
        return reference.attention(query, key, value, causal=causal)

    def pretend(functions):
        assert all(function().shape == (1, 2, 32, 16) for function in functions.values())
        timed.extend(functions)
        return {name: Timing((place,) * 2) for place, name in enumerate(functions, start=1)}

    def compiled(chosen, inputs, causal):
        # In the order of the names, which a set has lost.
        known = [d for d in dict.fromkeys(ablation.designs(128).values()) if d in chosen]
        return {
            design: {
                "registers": place,
                "spill_bytes": 0,
                "shared_bytes": 2**30 if design.stages == 3 else 0,
            }
            for place, design in enumerate(known, start=1)
        }

    monkeypatch.delenv(flash_attention_3.VARIABLE, raising=False)
    monkeypatch.setattr(contestants, "random_inputs", on_this_device)
    monkeypatch.setattr(flash3, "attention", attention)
    monkeypatch.setattr(ablation, "time_interleaved", pretend)
    monkeypatch.setattr(ablation, "compile_designs", compiled)
    shape = AttentionShape(32, 32, 16, "float16", 1, 2)
    named = ablation.designs(128)
    rows = ablation.time_designs(named, shape, True, ("flash2", "fa3"))
    assert len(timed) == len(set(timed)) and timed[-1] == "flash2"
    return {row["design"]: row for row in rows}


def test_a_row_has_a_design_s_own_figures(rows):
    named = ablation.designs(128)
    assert set(rows) == set(named) - {"third_stage"}  # which does not fit
    flops = 4 * 2 * 32 * 32 * 16 / 2
    for name, row in rows.items():
        assert row["switches"] == dataclasses.asdict(named[name])
        # The third stage has a place among the compiled, and none among the timed.
        assert row["registers"] in (row["ms"], row["ms"] + 1)
        assert row["of_full"] == pytest.approx(rows["full"]["ms"] / row["ms"], abs=5e-5)
        assert row["tflops"] == pytest.approx(1e-9 * flops / row["ms"], abs=5e-3)
        assert row["speedup"]["flash2"] > 0 and row["peers"]["fa3"] is row["speedup"]["fa3"] is None
        assert row["causal"] and row["n"] == 32 and row["d"] == 16
    assert len({row["ms"] for row in rows.values()}) == len({named[name] for name in rows})
    json.dumps(list(rows.values()))


COMPILE = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:  # what compiling asks a driver for
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

driver.set_active(Hopper())
from benchmarks import ablation
inputs = torch.zeros(3, 1, 2, 256, 64, dtype=torch.float16).unbind()
named = {name: ablation.designs(64)[name] for name in ("alone", "shipped")}
facts = ablation.compile_designs(set(named.values()), inputs, False)
print(json.dumps({name: facts[design] for name, design in named.items()}))
"""


@pytest.mark.timeout(300)
def test_designs_are_compiled_side_by_side(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    # Of an SM's 64 Ki registers a launch of 16 warps gets at most 128 a thread.
    assert facts["shipped"]["registers"] == 128
    # Whatever is spilled is kept outside the loop over keys: test_flash3_compile looks.
    assert facts["shipped"]["spill_bytes"] <= 32
    # The tiles: 128 queries, and one slot of 128 keys and of as many values.
    tiles = 3 * 128 * 64 * 2
    assert tiles < facts["alone"]["shared_bytes"] < tiles + 1024


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation", "--experiment", "x"])
    with pytest.raises(
        SystemExit, match="^the designs are timed on a Hopper GPU, and PyTorch sees no GPU here$"
    ):
        ablation.main()
