"""Traces served for real, at toy size: steps are carried out, and memory is read where it was written."""

import subprocess
import sys

import pytest
import torch

import kernels
from benchmarks import serving_real
from benchmarks.memory_waste import BLOCK_SIZE, make_scheduler
from serving.model import Config, Model
from serving.runner import Runner
from serving.simulation import Simulation
from serving.traces import Request

CONFIG = Config(layers=2, width=32, heads=2, vocabulary=50, positions=64)
TOY = serving_real.Plan(
    CONFIG, slots=512, requests={"alpaca": 6}, waiting=2, parts=(0.5, 0.9), recorded=8
)


@pytest.fixture
def runner():
    torch.manual_seed(0)
    model = Model(CONFIG).to(kernels.device()).eval().requires_grad_(False)
    return Runner(model, num_blocks=512 // BLOCK_SIZE, max_sequences=8)


@pytest.mark.parametrize("system", ["max", "oracle", "paged"])
def test_every_step_reads_what_steps_before_it_wrote(runner, system):
    # The first arrives alone; the second and third share a step with it, in chunks of 12 tokens.
    trace = [Request(0.0, 20, 4), Request(1.5, 17, 3), Request(1.5, 30, 5)]
    scheduler = make_scheduler(system, 512)
    scheduler.token_budget = 12
    reservation = {} if system == "paged" else {"reservation": system}
    simulation = Simulation(scheduler, trace, longest=64, **reservation)
    execution = serving_real.Execution(runner, lambda plan: 1.0, contiguous=system != "paged")
    sequences, seen = {}, 0

    def carry_out(plan):
        nonlocal seen
        logits = []  # of the one that counts
        execute = runner.execute
        runner.execute = lambda plan: logits.append(execute(plan)) or logits[0]
        assert execution(plan) > 0
        runner.execute = execute
        for run in plan.runs:
            tokens = [token % CONFIG.vocabulary for token in run.tokens]
            known = sequences.setdefault(run.sequence, [])
            assert len(known) == run.start
            known += tokens
        sampled = [run for run in plan.runs if run.samples]
        assert len(sampled) == len(logits[0])
        for run, found in zip(sampled, logits[0], strict=True):
            tokens = torch.tensor(sequences[run.sequence], device=found.device)
            expected = runner.model(tokens[None])[0, -1]
            assert found.argmax() == expected.argmax()
            seen += 1
        return 1.0

    outcome = simulation.run(carry_out)
    assert len(outcome.served) == 3 and seen == 4 + 3 + 5


def test_a_row_for_each_system_and_rate(monkeypatch):
    made = []

    def small(config):
        made.append(config)
        return Model(config).to(kernels.device()).eval().requires_grad_(False)

    def trace(workload, count, rate):
        return [Request(place / rate, 9 + place, 3) for place in range(count)]

    monkeypatch.setattr(serving_real, "random_model", small)
    monkeypatch.setattr(serving_real, "make_trace", trace)
    rows = list(serving_real.serve_all(TOY, lambda plan: 0.5))
    assert made == [CONFIG]
    assert [(row["system"], row["part"]) for row in rows] == [
        (system, part) for system in ("max", "oracle", "paged") for part in TOY.parts
    ]
    for row in rows:
        assert row["requests"] == 6 and row["latency"] > 0
        assert row["simulated_latency"] >= 0.5  # a token takes a step at least
        assert row["decode_ms"] > 0 and row["simulated_decode_ms"] == 500


def test_no_piece_is_less_than_a_block():
    trace = serving_real.make_trace("alpaca", 300, 1.0)
    assert min(request.slots for request in trace) > BLOCK_SIZE // 2
    assert len(trace) > 290


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_real", "--experiment", "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "traces are served for real on a CUDA GPU, and PyTorch sees none here"
    )
