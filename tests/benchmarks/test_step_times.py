"""The timing of a serving step's parts at toy size: rows that make a StepCost, and calls that compute
what they say."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

import kernels
from benchmarks import serving, step_times
from instruments.step_cost import StepCost
from instruments.timing import Timing
from kernels import reference
from serving.model import Config

TOY = step_times.Plan(
    Config(layers=2, width=32, heads=2, vocabulary=50, positions=64),
    slots=64,
    tokens=(1, 24),
    sequences=(1, 3),
    tokens_read=(16, 96),
    prefill_tokens=(2, 8, 16),
    tokens_before=(0, 20),
    block_sizes=(16, 1, 64),
    usual=(3, 16),
    swapped=64,
)


@pytest.fixture(scope="module")
def rows():
    """All rows; every call is made, once, and takes a millisecond for each call before it."""
    calls = itertools.count(1)

    def pretend(functions, **_):
        (function,) = functions.values()
        function()
        return {"call": Timing((float(next(calls)),))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_times, "time_interleaved", pretend)
        return list(step_times.time_steps(TOY))


def test_every_part_has_its_rows(rows):
    kinds = [row["step"] for row in rows]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"tokens": 2, "decode": 4 + 2, "prefill": 6, "swap": 3, "whole": 2}
    assert all(row["ms"] > 0 for row in rows)
    json.dumps(rows)


def test_a_step_cost_is_made_of_them(rows):
    for block_size in TOY.block_sizes:
        cost = StepCost(rows, block_size)
        assert cost.seconds(decodes=[20, 30], prefills=[(5, 3), (10, 0)], swapped=16) > 0
    whole = [row for row in rows if row["step"] == "whole"]
    for row, step in zip(whole, ({"decodes": [5, 5, 6]}, {"prefills": [(8, 0)]}), strict=True):
        assert row["predicted"] == pytest.approx(1000 * StepCost(rows).seconds(**step), abs=1e-4)


def test_the_plan_covers_what_the_sweeps_ask_for():
    plan = step_times.OPT_13B
    scheduler = serving.make_scheduler("paged")
    # Sequences that share blocks may read more tokens than there are slots.
    assert max(plan.tokens_read) > 3 * serving.SLOTS
    assert max(plan.sequences) >= scheduler.max_sequences
    assert max(plan.tokens) >= scheduler.token_budget
    assert max(plan.prefill_tokens) >= scheduler.token_budget
    assert max(plan.tokens_before) >= plan.config.positions
    assert set(serving.BLOCK_SIZES) <= set(plan.block_sizes)
    assert plan.usual[0] in plan.sequences and plan.usual[1] in plan.tokens_read
    assert all(plan.slots % size == plan.swapped % size == 0 for size in plan.block_sizes)


def test_the_plan_is_opt_13bs():
    with torch.device("meta"):
        model = step_times.Model(step_times.OPT_13B.config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1e-9 * count == pytest.approx(12.85, abs=0.05)


def inputs(block_size=4, contexts=(1, 9, 14)):
    torch.manual_seed(0)
    cache = step_times.random_cache(TOY.config, TOY.slots)
    blocks = step_times.in_blocks(cache, block_size)
    tables = step_times.random_tables(blocks, list(contexts))
    return blocks, tables, list(contexts)


def gathered(blocks, layer, table, length):
    """Keys and values of one sequence, (1, heads, tokens, head_dim)."""
    places = [int(table[p // blocks.shape[3]]) for p in range(length)]
    rows = [
        torch.stack([blocks[layer, which, b, p % blocks.shape[3]] for p, b in enumerate(places)])
        for which in (0, 1)
    ]
    return [each.transpose(0, 1)[None] for each in rows]


def test_what_is_timed_is_attention_over_the_tables():
    blocks, _, contexts = inputs()
    torch.manual_seed(1)
    attend = step_times.decoding(blocks, contexts)
    torch.manual_seed(1)
    tables = step_times.random_tables(blocks, contexts)
    query = step_times.random_rows(TOY.config, len(contexts))
    found = attend(1, query)
    for row, (table, length) in enumerate(zip(tables, contexts, strict=True)):
        key, value = gathered(blocks, 1, table, length)
        one = query[row][None, :, None]
        errors = reference.errors(found[row][None, :, None], reference.attention(one, key, value))
        assert errors.within(reference.error_budget(one, key, value))


def test_prefill_reads_what_is_before_and_no_later_token():
    blocks, _, _ = inputs()
    torch.manual_seed(1)
    attend = step_times.prefilling(blocks, 5, 8)
    torch.manual_seed(1)
    (table,) = step_times.random_tables(blocks, [13])
    query = step_times.random_rows(TOY.config, 5)
    key, value = gathered(blocks, 0, table, 13)
    batched = query.transpose(0, 1)[None]
    errors = reference.errors(
        attend(0, query).transpose(0, 1)[None],
        reference.attention(batched, key, value, causal=True),
    )
    assert errors.within(reference.error_budget(batched, key, value, causal=True))


def test_tables_go_through_all_blocks_before_any_again():
    blocks, _, _ = inputs()
    tables = step_times.random_tables(blocks, [30, 30, 30])  # 8 blocks each, of 16
    assert sorted(tables[:2].flatten().tolist()) == list(range(16))
    assert torch.equal(tables[2], tables[0])


def test_a_step_writes_its_slots_and_no_others():
    torch.manual_seed(0)
    model = step_times.random_model(TOY.config)
    cache = step_times.random_cache(TOY.config, TOY.slots)
    before = cache.clone()
    slots = torch.tensor([3, 40, 7], device=cache.device)
    with torch.inference_mode():
        logits = step_times.whole_step(model, cache, slots, lambda layer, query: query)()
    assert logits.shape == (3, 50) and logits.isfinite().all()
    changed = (cache != before).flatten(3).any(-1).all(dim=(0, 1)).nonzero().flatten().tolist()
    touched = (cache != before).flatten(3).any(-1).any(dim=1).any(dim=0).nonzero().flatten()
    assert changed == touched.tolist() == [3, 7, 40]


def test_parts_are_even():
    assert step_times.even_parts(10, 4) == [2, 2, 3, 3]
    assert step_times.even_parts(8, 8) == [1] * 8


@pytest.mark.skipif(kernels.device().type != "cpu", reason="says what happens without a GPU")
def test_without_a_gpu_one_sentence_says_so():
    command = [sys.executable, "-m", "benchmarks.step_times", "--experiment", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "a serving step is timed on a CUDA GPU, and PyTorch sees none here\n"
