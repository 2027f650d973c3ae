"""The sweeps over rates at toy size, by step times that are made up."""

import json
import subprocess
import sys

import pytest

from benchmarks import serving
from instruments.step_cost import StepCost
from serving.allocator import Copy
from serving.scheduler import Run, StepPlan

BLOCK_SIZES = serving.BLOCK_SIZES  # before a test replaces them


def made_up_steps():
    """A step takes 10 ms, a microsecond more for each token read; swapping a slot takes 10 us."""
    steps = [{"step": "tokens", "tokens": n, "ms": 10.0} for n in (1, 2048)]
    steps += [
        {"step": "decode", "sequences": b, "tokens_read": t, "block_size": size, "ms": t / 1000}
        for b in (1, 256)
        for t in (1, 100_000)
        for size in BLOCK_SIZES
    ]
    steps += [
        {"step": "prefill", "tokens": n, "tokens_before": t, "ms": n * 0.01}
        for n in (2, 2048)
        for t in (0, 2048)
    ]
    steps += [{"step": "swap", "block_size": size, "slots": 100, "ms": 1.0} for size in BLOCK_SIZES]
    return steps


COST = serving.plan_cost(StepCost(made_up_steps()))


def test_a_plans_seconds():
    def run(start, count):
        return Run(0, 0, [0] * count, start, [], [], True)

    copies = [Copy(0, 1)] * 3
    plan = StepPlan(swap_out=copies, swap_in=copies[:1], runs=[run(99, 1), run(0, 50), run(20, 1)])
    assert serving.plan_cost(StepCost(made_up_steps()), 16)(plan) == pytest.approx(
        1e-3 * (10 + 0.121 + 0.5 + 0.01 * 4 * 16)
    )


def test_paged_memory_serves_more_at_the_same_latency():
    systems = ("max", "paged")
    rows = list(serving.over_rates("sampling", "alpaca", systems, COST, 60, slots=4096))
    by_system = {
        system: {row["rate"]: row["latency"] for row in rows if row["system"] == system}
        for system in systems
    }
    capacities = {row["system"]: row["capacity"] for row in rows}
    for system in systems:
        rates = [part * capacities[system] for part in serving.PARTS]
        assert [*by_system[system]] == pytest.approx(rates, 1e-3)
    assert capacities["paged"] > 1.5 * capacities["max"]
    # Where the one cannot keep up, the other does not feel it.
    highest = max(by_system["max"])
    assert by_system["max"][highest] > 2 * min(by_system["paged"].values())
    # With next to no queue a token takes a step.
    assert min(by_system["paged"].values()) < 0.02
    assert all(row["requests"] == 60 for row in rows)
    json.dumps(rows)


def test_a_rate_that_is_too_much_is_the_last(monkeypatch):
    monkeypatch.setattr(serving, "LIMIT", 0.018)
    rows = list(serving.over_rates("sampling", "alpaca", ("max",), COST, 60, slots=4096))
    assert len(rows) < len(serving.PARTS)
    assert [row["latency"] > 0.018 for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize(
    "how", [{"parallel": 3, "method": "sampling"}, {"parallel": 3, "method": "beam"}]
)
def test_siblings_share_paged_memory_only(how):
    rates = {
        system: serving.serve("alpaca", system, float("inf"), 40, COST, slots=2048, **how)
        for system in ("oracle", "paged")
    }
    assert rates["paged"].throughput > 1.2 * rates["oracle"].throughput


def test_a_shared_prefix_is_not_computed_again():
    busy = {
        system: serving.serve("prefix 341", system, float("inf"), 40, COST).seconds
        for system in ("oracle", "paged")
    }
    assert busy["paged"] < busy["oracle"]


def test_chats_prompts_are_long():
    trace = serving.make_trace("chat", 50, 1.0)
    assert max(request.prompt for request in trace) == 1024


def test_block_sizes_and_the_two_ways_to_make_room(monkeypatch):
    monkeypatch.setattr(serving, "BLOCK_SIZES", (4, 64))
    rows = list(serving.over_block_sizes("alpaca", made_up_steps(), 80, slots=2048))
    assert [(row["block_size"], row["scenario"], row["preemption"]) for row in rows] == [
        (size, scenario, preemption)
        for size in (4, 64)
        for scenario, preemption in (
            ("block_size", "recompute"),
            ("preemption", "recompute"),
            ("preemption", "swap"),
        )
    ]
    assert any(row["preemptions"] for row in rows if row["scenario"] == "preemption")
    json.dumps(rows)


def test_the_sweep_has_every_scenario(monkeypatch):
    monkeypatch.setattr(serving, "PARTS", (0.5,))
    monkeypatch.setattr(serving, "PARALLEL", (2,))
    monkeypatch.setattr(serving, "BLOCK_SIZES", (16,))
    rows = list(serving.sweep(made_up_steps(), most=5))
    assert {row["scenario"] for row in rows} == {
        "sampling",
        "parallel",
        "beam",
        "prefix",
        "chat",
        "block_size",
        "preemption",
    }
    assert {row["system"] for row in rows if row["scenario"] == "sampling"} == set(serving.SYSTEMS)
    assert {row.get("prefix") for row in rows} == {None, 80, 341}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: --experiment"),
        (["--experiment", "x", "--requests", "0"], 2, "--requests is at least 1, not 0"),
        (
            ["--experiment", "x", "--step-times", "nothing"],
            1,
            "python -m benchmarks.step_times makes it on a GPU",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, code, message):
    command = [sys.executable, "-m", "benchmarks.serving", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and message in done.stderr
    assert "Traceback" not in done.stderr
