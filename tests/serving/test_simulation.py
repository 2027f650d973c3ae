"""Whole traces through the real scheduler on a made-up clock, and what memory holds at every step."""

from dataclasses import asdict

import pytest

from serving import traces
from serving.allocator import Allocator
from serving.contiguous import RESERVATIONS, ContiguousAllocator
from serving.memory_use import MemoryUse, memory_use
from serving.scheduler import Scheduler
from serving.sequence import State
from serving.simulation import Simulation
from serving.traces import Lengths, Request, Workload

SMALL = Workload(Lengths(20.0, 0.7, 60), Lengths(15.0, 0.7, 60))
SLOTS = 15 * 32  # no power of two
LONGEST = 128


def scheduler_on(system, block_size=4, **options):
    if system == "paged":
        memory = Allocator(SLOTS // block_size, SLOTS // block_size, block_size=block_size)
    else:
        memory = ContiguousAllocator(SLOTS)
    return Scheduler(memory, **({"preemption": "recompute", "token_budget": 64} | options))


def simulation_on(system, trace, scheduler=None, **options):
    reservation = {} if system == "paged" else {"reservation": system}
    scheduler = scheduler or scheduler_on(system)
    return Simulation(scheduler, trace, longest=LONGEST, **reservation, **options)


def checked_use(simulation, plan):
    """Memory use, with what must hold of it at every step."""
    use = simulation.memory_use(plan)
    assert use.slots == SLOTS and min(asdict(use).values()) >= 0
    pool = simulation.scheduler.allocator.gpu
    in_use = sum(count > 0 for count in pool.reference_counts)
    size = simulation.scheduler.allocator.block_size
    assert use.tokens + use.reserved + use.internal + use.rounding == in_use * size
    return use


@pytest.mark.parametrize("system", [*RESERVATIONS, "paged"])
@pytest.mark.parametrize(
    ("parallel", "method"), [(1, "sampling"), (3, "sampling"), (3, "beam")], ids=str
)
def test_every_slot_is_counted_once_at_every_step(system, parallel, method):
    trace = traces.requests(SMALL, 40, rate=float("inf"))
    uses = []
    simulation = simulation_on(system, trace, parallel=parallel, method=method)
    outcome = simulation.run(lambda plan: 1.0, lambda s, plan: uses.append(checked_use(s, plan)))
    assert len(outcome.served) == 40 and outcome.steps == len(uses) == outcome.seconds
    total = {kind: sum(asdict(use)[kind] for use in uses) for kind in asdict(uses[0])}
    assert total["tokens"] and total["reserved"] and total["free"]
    assert bool(total["internal"]) == (system != "oracle")
    assert bool(total["rounding"]) == (system in ("pow2", "oracle"))
    if system != "paged":
        assert outcome.preemptions == 0
    assert use_at_the_end(simulation) == MemoryUse(0, 0, 0, 0, SLOTS)


def use_at_the_end(simulation):
    return memory_use(simulation.scheduler.allocator, {}, {})


@pytest.mark.parametrize(
    ("system", "first", "last"),
    [
        ("max", MemoryUse(10, 6, 112, 0, 352), MemoryUse(16, 0, 112, 0, 352)),
        ("pow2", MemoryUse(10, 6, 1, 15, 448), MemoryUse(16, 0, 1, 15, 448)),
        ("oracle", MemoryUse(10, 6, 0, 0, 464), MemoryUse(16, 0, 0, 0, 464)),
        ("paged", MemoryUse(10, 6, 0, 0, 464), MemoryUse(16, 0, 0, 0, 464)),
    ],
)
def test_use_of_one_request_by_hand(system, first, last):
    trace = [Request(0.0, prompt=10, output=7)]  # 16 slots in the end, 2 x 8 with blocks of 8
    uses = []
    simulation = simulation_on(system, trace, scheduler_on(system, block_size=8))
    simulation.run(lambda plan: 1.0, lambda s, plan: uses.append(checked_use(s, plan)))
    assert (uses[0], uses[-1], len(uses)) == (first, last, 7)


def test_shared_slots_are_counted_once():
    """Two siblings of 6 tokens in blocks of 4: one block is shared, and the last one copied."""
    allocator = Allocator(8, block_size=4)
    allocator.allocate(1, range(6))
    allocator.fork(1, 2)
    assert memory_use(allocator, {1: 6, 2: 6}, {1: 7, 2: 7}) == MemoryUse(6, 1, 1, 0, 24)
    allocator.append([1, 2])
    assert memory_use(allocator, {1: 7, 2: 7}, {1: 7, 2: 7}) == MemoryUse(10, 0, 2, 0, 20)


def test_the_last_block_is_all_that_paging_can_waste():
    trace = traces.requests(SMALL, 60, rate=float("inf"))
    simulation = simulation_on("paged", trace)

    def observe(simulation, plan):
        use = checked_use(simulation, plan)
        assert use.internal <= 3 * len(simulation.scheduler.allocator.tables)

    outcome = simulation.run(lambda plan: 1.0, observe)
    assert outcome.preemptions > 0


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_a_trace_is_served_whole_under_pressure(preemption):
    trace = traces.requests(SMALL, 80, rate=float("inf"), seed=3)
    scheduler = scheduler_on("paged", preemption=preemption)
    outcome = simulation_on("paged", trace, scheduler, parallel=2, method="beam").run(
        lambda plan: 1.0
    )
    assert sorted(served.request for served in outcome.served) == sorted(trace)
    assert outcome.preemptions > 0
    assert not scheduler.groups and not any(scheduler.allocator.gpu.reference_counts)


def test_latency_and_throughput_by_hand():
    trace = [Request(1.0, 5, 2), Request(1.5, 5, 4), Request(50.0, 5, 1)]
    outcome = simulation_on("paged", trace).run(lambda plan: 1.0)
    # The first runs from 1 to 3; the second from 2, when it is seen, to 6; the last from 50 to 51.
    assert outcome.served == [(trace[0], 3.0), (trace[1], 6.0), (trace[2], 51.0)]
    assert outcome.normalized_latency == pytest.approx((2 / 2 + 4.5 / 4 + 1 / 1) / 3)
    assert outcome.throughput == pytest.approx(3 / 50)
    assert (outcome.steps, outcome.seconds) == (6, 6.0)
    assert outcome.mean_running == pytest.approx((1 + 2 + 1 + 1 + 1 + 1) / 6)


def test_a_shared_prefix_is_computed_once():
    first, *others = traces.requests(SMALL.with_prefix(40), 5, rate=float("inf"))
    trace = [first, *(request._replace(arrival=500.0) for request in others)]
    computed = []

    def cost(plan):
        computed.append(plan.num_tokens)
        return 1.0

    simulation_on("paged", trace, scheduler_on("paged", token_budget=1000)).run(cost)
    assert computed[0] == first.prompt
    assert sum(computed) == sum(request.slots for request in trace) - 4 * 40


def test_beams_share_more_than_samples():
    trace = traces.requests(SMALL, 30, rate=float("inf"))
    saved = {}
    for method in ("sampling", "beam"):
        logical, physical = 0, 0

        def observe(simulation, plan):
            nonlocal logical, physical
            allocator = simulation.scheduler.allocator
            logical += sum(len(table.blocks) for table in allocator.tables.values())
            physical += sum(count > 0 for count in allocator.gpu.reference_counts)

        simulation_on("paged", trace, parallel=4, method=method).run(lambda plan: 1.0, observe)
        saved[method] = 1 - physical / logical
    assert 0 < saved["sampling"] < saved["beam"] < 0.75


def test_a_request_that_fits_nowhere_is_said():
    scheduler = scheduler_on("max")
    scheduler.allocator.gpu.take(256)
    scheduler.allocator.gpu.take(128)
    simulation = simulation_on("max", [Request(0.0, 5, 5)], scheduler)
    with pytest.raises(RuntimeError, match="fits nowhere"):
        simulation.run(lambda plan: 1.0)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method must be one of.*got 'greedy'"):
        simulation_on("paged", [], method="greedy")


def test_waiting_requests_hold_nothing():
    trace = traces.requests(SMALL, 40, rate=float("inf"))
    waited = []

    def observe(simulation, plan):
        scheduler = simulation.scheduler
        waited.append(len(scheduler.queues[State.WAITING]))
        for group in scheduler.queues[State.WAITING]:
            assert not group.sequences.keys() & scheduler.allocator.tables.keys()

    simulation_on("oracle", trace).run(lambda plan: 1.0, observe)
    assert max(waited) > 20
