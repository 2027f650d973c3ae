"""Requests are admitted in order, preempted whole, and every one that was accepted ends."""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.allocator import Allocator
from serving.scheduler import Continuation, Scheduler
from serving.sequence import State
from tests.serving.memory import check_pools
from tests.serving.worker import (
    Worker,
    WorkerFault,
    check_scheduler,
    expected_outputs,
    make_flaky,
    schedule,
)


def make(gpu_blocks=16, cpu_blocks=0, block_size=2, watermark=0.0, **options) -> Scheduler:
    allocator = Allocator(gpu_blocks, cpu_blocks, block_size=block_size, watermark=watermark)
    return Scheduler(allocator, **options)


def step(scheduler: Scheduler, worker: Worker):
    plan = schedule(scheduler)
    scheduler.finish_step(worker.execute(plan))
    check_pools(scheduler.allocator)
    check_scheduler(scheduler)
    return plan


def tokens_of(plan) -> list[tuple[int, int]]:
    return [(run.request, len(run.tokens)) for run in plan.runs]


def run_to_the_end(scheduler: Scheduler, worker: Worker) -> list:
    plans = []
    while scheduler.groups:
        plans.append(step(scheduler, worker))
        assert plans[-1].runs, "a step in which nobody goes on"
    return plans


def check_empty(scheduler: Scheduler) -> None:
    check_pools(scheduler.allocator)
    assert not scheduler.allocator.tables
    assert not any(scheduler.queues.values())


def test_one_request_is_prefilled_and_generates():
    scheduler = make()
    worker = Worker(scheduler)
    group = scheduler.add([1, 2, 3], max_new_tokens=3)
    plans = run_to_the_end(scheduler, worker)
    assert [tokens_of(plan) for plan in plans] == [[(0, 3)], [(0, 1)], [(0, 1)]]
    assert plans[1].runs[0].start == 3
    assert plans[1].runs[0].slots == [3]
    assert group.state is State.FINISHED
    assert group.outputs == expected_outputs(group, beam=False)
    check_empty(scheduler)


def test_a_long_prompt_is_computed_in_chunks_beside_tokens_of_others():
    scheduler = make(token_budget=4)
    worker = Worker(scheduler)
    scheduler.add([1, 2], max_new_tokens=9)
    scheduler.add([*range(10)], max_new_tokens=1)
    plans = [step(scheduler, worker) for _ in range(4)]
    assert [tokens_of(plan) for plan in plans] == [
        [(0, 2), (1, 2)],
        [(0, 1), (1, 3)],
        [(0, 1), (1, 3)],
        [(0, 1), (1, 2)],
    ]
    assert [plan.runs[1].samples for plan in plans] == [False, False, False, True]


def test_a_group_that_the_budget_cannot_hold_whole_lets_a_smaller_one_run():
    scheduler = make(token_budget=3)
    worker = Worker(scheduler)
    for parallel in (2, 2, 1):
        scheduler.add([parallel], max_new_tokens=2, parallel=parallel)
    plans = run_to_the_end(scheduler, worker)
    assert [tokens_of(plan) for plan in plans] == [
        [(0, 1), (1, 1), (2, 1)],
        [(0, 1), (0, 1), (2, 1)],
        [(1, 1), (1, 1)],
    ]


def test_requests_join_and_leave_between_steps():
    scheduler = make(max_sequences=2)
    worker = Worker(scheduler)
    for new in (1, 3, 2):
        scheduler.add([5, new], max_new_tokens=new)
    ran = [
        [request for request, _ in tokens_of(plan)] for plan in run_to_the_end(scheduler, worker)
    ]
    assert ran == [[0, 1], [1, 2], [1, 2]]


def test_nobody_overtakes_a_request_that_waits_for_room():
    scheduler = make(gpu_blocks=4)
    worker = Worker(scheduler)
    scheduler.add([1] * 4, max_new_tokens=2)
    scheduler.add([2] * 6, max_new_tokens=1)
    scheduler.add([3], max_new_tokens=1)
    assert [request for request, _ in tokens_of(step(scheduler, worker))] == [0]
    step(scheduler, worker)
    assert [request for request, _ in tokens_of(step(scheduler, worker))] == [1, 2]


def test_the_watermark_keeps_room_for_those_that_run():
    scheduler = make(gpu_blocks=4, watermark=0.25)
    worker = Worker(scheduler)
    scheduler.add([1] * 4, max_new_tokens=3)
    scheduler.add([2] * 4, max_new_tokens=1)
    assert len(step(scheduler, worker).runs) == 1
    assert run_to_the_end(scheduler, worker)[-1].preempted == []


def test_a_request_as_large_as_the_memory_is_admitted_below_the_watermark():
    scheduler = make(gpu_blocks=4, watermark=0.5)
    scheduler.add([1] * 7, max_new_tokens=2)
    run_to_the_end(scheduler, Worker(scheduler))
    check_empty(scheduler)


@pytest.mark.parametrize(
    ("preemption", "cpu_blocks", "swaps"),
    [("swap", 8, True), ("swap", 1, False), ("recompute", 8, False)],
)
def test_the_latest_request_is_preempted_whole_and_comes_back(preemption, cpu_blocks, swaps):
    scheduler = make(gpu_blocks=6, cpu_blocks=cpu_blocks, preemption=preemption)
    worker = Worker(scheduler)
    groups = [scheduler.add([token] * 4, max_new_tokens=7) for token in (1, 2)]
    plans = run_to_the_end(scheduler, worker)
    (preempting,) = (plan for plan in plans if plan.preempted)
    assert preempting.preempted == [1]
    assert len(preempting.swap_out) == (3 if swaps else 0)
    assert [plan.resumed for plan in plans if plan.resumed] == ([[1]] if swaps else [])
    assert sum(len(plan.swap_in) for plan in plans) == (3 if swaps else 0)
    for group in groups:
        assert group.outputs == expected_outputs(group, beam=False)
    check_empty(scheduler)


def test_blocks_that_hold_nothing_yet_are_not_copied():
    scheduler = make(gpu_blocks=6, cpu_blocks=6, token_budget=3)
    worker = Worker(scheduler)
    scheduler.add([1] * 2, max_new_tokens=5)
    group = scheduler.add([2] * 8, max_new_tokens=2)
    plans = run_to_the_end(scheduler, worker)
    (preempting,) = (plan for plan in plans if plan.preempted)
    (resuming,) = (plan for plan in plans if plan.resumed)
    # Of its 8 tokens in 4 blocks, 5 are computed by then, 1 + 2 + 2.
    assert len(preempting.swap_out) == len(resuming.swap_in) == 3
    assert group.outputs == expected_outputs(group, beam=False)
    check_empty(scheduler)


@pytest.mark.parametrize("beam", [False, True])
def test_sequences_of_a_group_share_the_prompt_and_copy_on_write(beam):
    scheduler = make(gpu_blocks=32, block_size=4)
    worker = Worker(scheduler)
    group = scheduler.add([1] * 6, max_new_tokens=8, parallel=3)
    worker.beams = {group.number} if beam else set()
    plans = run_to_the_end(scheduler, worker)
    assert tokens_of(plans[0]) == [(0, 6)]
    assert tokens_of(plans[1]) == [(0, 1)] * 3
    assert len(plans[1].copies) == 2
    assert len({run.block_table[0] for run in plans[1].runs}) == 1
    assert len(group.outputs) == 3
    assert group.outputs == expected_outputs(group, beam)
    check_empty(scheduler)


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_a_group_as_large_as_the_memory_survives_a_failed_step(preemption):
    scheduler = make(gpu_blocks=11, cpu_blocks=11, preemption=preemption)
    worker = Worker(scheduler)
    earlier = scheduler.add([1] * 5, max_new_tokens=4)
    group = scheduler.add([1] * 5, max_new_tokens=6, parallel=3)
    for _ in range(3):
        step(scheduler, worker)
    scheduler.schedule()
    scheduler.fail_step(WorkerFault())
    check_scheduler(scheduler)
    run_to_the_end(scheduler, worker)
    assert earlier.outputs == expected_outputs(earlier, beam=False)
    assert group.outputs == expected_outputs(group, beam=False)
    check_empty(scheduler)


def test_a_shared_prompt_is_computed_once():
    scheduler = make()
    worker = Worker(scheduler)
    scheduler.add([1, 2, 3, 4, 5], max_new_tokens=1)
    step(scheduler, worker)
    scheduler.add([1, 2, 3, 4, 6], max_new_tokens=1)
    scheduler.add([1, 2, 3, 4, 6], max_new_tokens=1, salt=b"private")
    assert tokens_of(step(scheduler, worker)) == [(1, 1), (2, 5)]


def test_an_end_token_ends_a_sequence_and_is_part_of_the_output():
    scheduler = make()
    group = scheduler.add([1], max_new_tokens=9, end_token=4)
    for token in (3, 4):
        (run,) = scheduler.schedule().runs
        ended = scheduler.finish_step({0: [Continuation(run.sequence, token)]})
    assert ended == [group]
    assert group.outputs == [[3, 4]]


def test_a_sampler_can_end_sequences_and_requests():
    scheduler = make()
    group = scheduler.add([1], max_new_tokens=9, parallel=2)
    (run,) = scheduler.schedule().runs
    parent = run.sequence
    scheduler.finish_step({0: [Continuation(parent, 5, ends=True), Continuation(parent, 6)]})
    assert group.outputs == [[5]]
    assert len(scheduler.schedule().runs) == 1
    assert scheduler.finish_step({0: []}) == [group]
    assert group.state is State.FINISHED
    check_empty(scheduler)


@pytest.mark.parametrize("when", ["waiting", "running", "swapped", "during a step"])
def test_a_cancelled_request_leaves_nothing_behind(when):
    scheduler = make(gpu_blocks=6, cpu_blocks=6)
    worker = Worker(scheduler)
    other = scheduler.add([1] * 4, max_new_tokens=7)
    group = scheduler.add([2] * 4, max_new_tokens=7)
    plan = None
    if when == "running":
        step(scheduler, worker)
    while when == "swapped" and group.state is not State.SWAPPED:
        step(scheduler, worker)
    if when == "during a step":
        plan = schedule(scheduler)
    assert scheduler.cancel(group.number)
    assert group.state is State.CANCELLED
    assert not scheduler.cancel(group.number)
    if plan:
        results = worker.execute(plan)
        assert results.keys() == {other.number}
        scheduler.finish_step(results)
    check_scheduler(scheduler)
    run_to_the_end(scheduler, worker)
    assert other.outputs == expected_outputs(other, beam=False)
    check_empty(scheduler)


def test_results_of_a_request_cancelled_meanwhile_are_ignored():
    scheduler = make()
    worker = Worker(scheduler)
    group = scheduler.add([1], max_new_tokens=2)
    results = worker.execute(scheduler.schedule())
    scheduler.cancel(group.number)
    assert scheduler.finish_step(results) == []
    assert group.outputs == []
    check_empty(scheduler)


def test_a_request_that_breaks_every_step_ends_alone():
    scheduler = make()
    worker = Worker(scheduler)
    groups = [scheduler.add([token] * 3, max_new_tokens=4) for token in range(4)]
    poison = groups[2].number
    while scheduler.groups:
        plan = schedule(scheduler)
        if poison in {run.request for run in plan.runs}:
            ended = scheduler.fail_step(WorkerFault("out of memory"))
            assert ended in ([], [groups[2]])
        else:
            scheduler.finish_step(worker.execute(plan))
        check_scheduler(scheduler)
    for group in groups:
        if group.number == poison:
            assert group.state is State.FAILED
            assert str(group.error) == "out of memory"
        else:
            assert group.state is State.FINISHED
            assert group.outputs == expected_outputs(group, beam=False)
    check_empty(scheduler)


def test_after_a_failed_step_each_runs_alone_until_its_next_token():
    scheduler = make()
    worker = Worker(scheduler)
    groups = [scheduler.add([token], max_new_tokens=5) for token in (1, 2)]
    for expected in ([0, 1], [0], [1], [0, 1], [0], [1], [0, 1]):
        plan = schedule(scheduler)
        assert [run.request for run in plan.runs] == expected
        if len(expected) == 2:
            assert scheduler.fail_step(WorkerFault()) == []
        else:
            scheduler.finish_step(worker.execute(plan))
    run_to_the_end(scheduler, worker)
    for group in groups:
        assert group.outputs == expected_outputs(group, beam=False)


def test_a_request_lost_on_its_way_to_the_cpu_is_computed_again():
    scheduler = make(gpu_blocks=6, cpu_blocks=8)
    worker = Worker(scheduler)
    groups = [scheduler.add([token] * 4, max_new_tokens=7) for token in (1, 2)]
    while not (plan := schedule(scheduler)).swap_out:
        scheduler.finish_step(worker.execute(plan))
    scheduler.fail_step(WorkerFault())  # before anything was copied
    assert groups[1].state is State.WAITING
    run_to_the_end(scheduler, worker)
    for group in groups:
        assert group.outputs == expected_outputs(group, beam=False)


def test_a_request_lost_on_its_way_back_is_computed_again():
    scheduler = make(gpu_blocks=6, cpu_blocks=8, token_budget=3)
    worker = Worker(scheduler)
    scheduler.add([1], max_new_tokens=5)
    scheduler.add([2], max_new_tokens=9)
    group = scheduler.add([3], max_new_tokens=2, parallel=3)
    while not (plan := schedule(scheduler)).resumed:
        scheduler.finish_step(worker.execute(plan))
    assert group.number not in {run.request for run in plan.runs}  # the budget is too small yet
    scheduler.fail_step(WorkerFault())  # before anything was copied
    assert group.state is State.WAITING
    run_to_the_end(scheduler, worker)
    assert group.outputs == expected_outputs(group, beam=False)


def test_an_error_of_one_request_ends_that_one():
    scheduler = make()
    worker = Worker(scheduler)
    good, bad = (scheduler.add([token], max_new_tokens=3) for token in (1, 2))
    plan = schedule(scheduler)
    error = WorkerFault("no such image")
    assert scheduler.finish_step(worker.execute(plan) | {bad.number: error}) == [bad]
    assert bad.state is State.FAILED
    assert bad.error is error
    run_to_the_end(scheduler, worker)
    assert good.outputs == expected_outputs(good, beam=False)
    check_empty(scheduler)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValueError, "the prompt is empty: a request needs at least one token"),
        ("text", {}, TypeError, "a prompt is made of whole numbers, got str"),
        ([1, 0.5], {}, TypeError, "a prompt is made of whole numbers, got float"),
        ([-1], {}, ValueError, "a token is at least 0 and below 2\\*\\*63, got -1"),
        ([1], {"salt": "tenant"}, TypeError, "salt must be bytes, got str"),
        ([1], {"max_new_tokens": 0}, ValueError, "max_new_tokens .* at least 1; got 0"),
        ([1], {"parallel": 1.5}, ValueError, "parallel must be a whole number"),
        ([1], {"parallel": 5}, ValueError, "parallel is 5, but a step has room for 4 sequences"),
        (
            [1],
            {"temprature": 1.0},
            TypeError,
            "unknown option temprature; accepted: max_new_tokens, parallel, end_token, salt",
        ),
        (
            [1] * 30,
            {"max_new_tokens": 4},
            ValueError,
            r"can never fit: 1 x 33 tokens \(30 of prompt, 3 generated and read again\) "
            "need 34 slots in blocks of 2, and the cache has 32",
        ),
    ],
)
def test_a_bad_request_is_refused_and_harms_nobody(prompt, options, error, message):
    scheduler = make(token_budget=4)
    worker = Worker(scheduler)
    good = scheduler.add([1, 2, 3], max_new_tokens=3)
    step(scheduler, worker)
    with pytest.raises(error, match=message):
        scheduler.add(prompt, **{"max_new_tokens": 2, **options})
    check_scheduler(scheduler)
    run_to_the_end(scheduler, worker)
    assert good.outputs == expected_outputs(good, beam=False)


@pytest.mark.parametrize("prompt", [1, 2, 7])
@pytest.mark.parametrize("parallel", [1, 3])
def test_the_largest_request_that_is_accepted_ends(prompt, parallel):
    scheduler = make(gpu_blocks=9, watermark=0.3)
    new = 1
    while True:
        try:
            group = scheduler.add([1] * prompt, max_new_tokens=new, parallel=parallel)
        except ValueError:
            break
        scheduler.cancel(group.number)
        new += 1
    group = scheduler.add([1] * prompt, max_new_tokens=new - 1, parallel=parallel)
    plans = run_to_the_end(scheduler, Worker(scheduler))
    assert group.state is State.FINISHED
    assert not any(plan.preempted for plan in plans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preemption": "drop"}, r"preemption must be one of \('swap', 'recompute'\), got 'drop'"),
        ({"token_budget": 0}, "token_budget must be a whole number, at least 1; got 0"),
        ({"max_sequences": None}, "max_sequences must be a whole number, at least 1; got None"),
        ({"max_failures": 1}, "max_failures must be a whole number, at least 2; got 1"),
    ],
)
def test_an_impossible_scheduler_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_steps_come_one_at_a_time():
    scheduler = make()
    for act in (lambda: scheduler.finish_step({}), lambda: scheduler.fail_step(WorkerFault())):
        with pytest.raises(RuntimeError, match="no step is under way"):
            act()
    scheduler.schedule()
    with pytest.raises(RuntimeError, match="the last step is still under way"):
        scheduler.schedule()


def test_results_that_do_not_fit_the_plan_change_nothing():
    scheduler = make()
    scheduler.add([1], max_new_tokens=2)
    (run,) = scheduler.schedule().runs
    good = [Continuation(run.sequence, 1)]
    for results, message in [
        ({}, r"lacking \[0\], not asked for \[\]"),
        ({0: good, 3: good}, r"lacking \[\], not asked for \[3\]"),
        ({0: [Continuation(99, 1)]}, r"request 0 has no sequences \[99\]; it has \[0\]"),
        ({0: good * 2}, "request 0 may have 1 sequences, and 2 would go on"),
    ]:
        with pytest.raises(ValueError, match=message):
            scheduler.finish_step(results)
    assert scheduler.finish_step({0: good}) == []
    check_scheduler(scheduler)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests, steps, faults and cancellations in any order; in the end, everything has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(
            gpu_blocks=12, cpu_blocks=6, watermark=0.1, token_budget=6, max_sequences=5
        )
        self.worker = Worker(self.scheduler)
        self.accepted = []
        self.plan = None
        self.faulty = False

    @rule(
        prompt=st.lists(st.integers(0, 1), max_size=14),
        max_new_tokens=st.integers(1, 8),
        parallel=st.integers(1, 3),
        beam=st.booleans(),
    )
    def add(self, prompt, max_new_tokens, parallel, beam):
        try:
            group = self.scheduler.add(
                prompt, max_new_tokens=max_new_tokens, parallel=parallel, end_token=3
            )
        except ValueError:
            assert not prompt or parallel * (len(prompt) + max_new_tokens) > 24 - 2 * parallel
            return
        self.accepted.append(group)
        if beam:
            self.worker.beams.add(group.number)

    @precondition(lambda self: self.plan is None)
    @rule()
    def plan_step(self):
        self.plan = schedule(self.scheduler)
        if self.scheduler.groups:
            assert self.plan.runs, "nobody goes on"
            first = next(iter(self.scheduler.groups))
            if not self.faulty:
                assert first in {run.request for run in self.plan.runs}, "the earliest starves"

    @precondition(lambda self: self.plan is not None)
    @rule()
    def finish(self):
        results = self.worker.execute(self.plan)
        self.plan = None
        self.scheduler.finish_step(results)

    @precondition(lambda self: self.plan is not None)
    @rule(stop_after=st.integers(0, 6))
    def fail(self, stop_after):
        with pytest.raises(WorkerFault):
            self.worker.execute(self.plan, stop_after)
        self.plan = None
        self.faulty = True
        self.scheduler.fail_step(WorkerFault())

    @precondition(lambda self: self.scheduler.groups)
    @rule(data=st.data())
    def cancel(self, data):
        assert self.scheduler.cancel(data.draw(st.sampled_from([*self.scheduler.groups])))

    @invariant()
    def nothing_is_lost(self):
        check_pools(self.scheduler.allocator)
        check_scheduler(self.scheduler)

    def teardown(self):
        if self.plan is not None:
            self.finish()
        run_to_the_end(self.scheduler, self.worker)
        for group in self.accepted:
            check_ended(group, self.worker)
        check_empty(self.scheduler)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, derandomize=True
)


def check_ended(group, worker: Worker) -> None:
    """A request ended, and with the tokens it would have had alone."""
    assert group.state in (State.FINISHED, State.CANCELLED, State.FAILED)
    assert (group.error is not None) == (group.state is State.FAILED)
    expected = expected_outputs(group, group.number in worker.beams)
    if group.state is State.FINISHED:
        assert group.outputs == expected
    else:
        assert group.outputs == expected[: len(group.outputs)]


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_requests_with_faults_at_every_step(seed, preemption):
    """A thousand in each of ten runs: any step may lack blocks, fail, or see a request cancelled."""
    random = Random(f"{seed} {preemption}")
    scheduler = make(
        gpu_blocks=48,
        cpu_blocks=24,
        block_size=4,
        watermark=0.05,
        token_budget=48,
        max_sequences=24,
        preemption=preemption,
    )
    worker = Worker(scheduler)
    for pool in (scheduler.allocator.gpu, scheduler.allocator.cpu):
        make_flaky(pool, random, 0.03)
    prefixes = [[random.randrange(7) for _ in range(random.randrange(20))] for _ in range(6)]
    groups, ended = [], []
    steps = 0
    while len(groups) < 1000 or scheduler.groups:
        while len(groups) < 1000 and len(scheduler.groups) < 30:
            prompt = random.choice(prefixes) + [random.randrange(7)] * random.randint(1, 8)
            group = scheduler.add(
                prompt,
                max_new_tokens=random.randint(1, 20),
                parallel=random.choice([1, 1, 1, 2, 4]),
                end_token=random.choice([None, 6]),
            )
            groups.append(group)
            if random.random() < 0.5:
                worker.beams.add(group.number)
        plan = schedule(scheduler)
        if random.random() < 0.05:
            ended += cancel_one(scheduler, random)
        if random.random() < 0.04:
            with pytest.raises(WorkerFault):
                worker.execute(plan, stop_after=random.randrange(3 + len(plan.runs)))
            ended += scheduler.fail_step(WorkerFault("the worker died"))
        else:
            results = worker.execute(plan)
            if results and random.random() < 0.01:
                results[random.choice([*results])] = WorkerFault("this request only")
            ended += scheduler.finish_step(results)
        if random.random() < 0.05:
            ended += cancel_one(scheduler, random)
        check_pools(scheduler.allocator)
        check_scheduler(scheduler)
        steps += 1
        assert steps < 20_000, "requests do not end"
    assert sorted(group.number for group in ended) == [*range(1000)]
    for group in groups:
        check_ended(group, worker)
    states = [group.state for group in groups]
    assert {*states} == {State.FINISHED, State.CANCELLED, State.FAILED}
    assert states.count(State.FINISHED) > 700
    check_empty(scheduler)


def cancel_one(scheduler: Scheduler, random: Random) -> list:
    if not scheduler.groups:
        return []
    group = random.choice([*scheduler.groups.values()])
    assert scheduler.cancel(group.number)
    return [group]
