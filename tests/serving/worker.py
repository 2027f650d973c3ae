"""A worker without a model, and what it must generate if nothing goes wrong with the memory.

Its next token follows from the digest of all tokens before (tests/serving/memory.py). So a request's
output is known without any paging, and one block read wrongly changes it.
"""

from random import Random

from serving.allocator import NoFreeBlocks
from serving.scheduler import Continuation, Scheduler, StepPlan
from serving.sequence import SequenceGroup, State
from tests.serving.memory import Memory, digest

VOCABULARY = 7


class WorkerFault(Exception):
    """What a worker may die of."""


def choose(digests: list[int], parallel: int, first: bool, beam: bool) -> list[tuple[int, int]]:
    """How sequences go on: (index of the parent, token), for sampling or like a beam search."""
    if first:
        return [(0, digest(digests[0], draw) % VOCABULARY) for draw in range(parallel)]
    if beam:
        parents = [digest(digests[0], draw) % len(digests) for draw in range(len(digests))]
        return [
            (parent, digest(digests[parent], draw) % VOCABULARY)
            for draw, parent in enumerate(parents)
        ]
    return [(index, value % VOCABULARY) for index, value in enumerate(digests)]


def expected_outputs(group: SequenceGroup, beam: bool) -> list[list[int]]:
    """What a request generates, computed from its tokens alone."""
    sequences, outputs = [group.prompt], []
    while sequences:
        digests = []
        for tokens in sequences:
            value = 0
            for token in tokens:
                value = digest(value, token)
            digests.append(value)
        first = len(sequences[0]) == len(group.prompt)
        chosen = choose(digests, group.parallel, first, beam)
        grown = [[*sequences[parent], token] for parent, token in chosen]
        sequences = []
        for tokens in grown:
            generated = tokens[len(group.prompt) :]
            if tokens[-1] == group.end_token or len(generated) == group.max_new_tokens:
                outputs.append(generated)
            else:
                sequences.append(tokens)
    return outputs


class Worker:
    """Carries out a scheduler's plans, and can be told to die in the middle of one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.memory = Memory(scheduler.allocator)
        self.beams: set[int] = set()  # requests whose sequences go on like beams

    def execute(self, plan: StepPlan, stop_after: int | None = None) -> dict[int, list]:
        """Returns the results; raises WorkerFault once ``stop_after`` parts of the plan are done."""
        memory = self.memory
        groups = self.scheduler.groups
        parts = [
            lambda: memory.copy(plan.swap_out, memory.gpu, memory.cpu),
            lambda: memory.copy(plan.swap_in, memory.cpu, memory.gpu),
            lambda: memory.copy(plan.copies, memory.gpu, memory.gpu),
        ]
        digests: dict[int, list[int]] = {}

        def compute(run):
            before = groups[run.request].sequences[run.sequence].tokens[: run.start]
            memory.check(run.block_table, before, memory.gpu)
            value = memory.write(run.block_table, run.slots, run.tokens, run.start)
            if run.samples:
                digests.setdefault(run.request, []).append(value)

        # A request cancelled during the step is not computed, as its blocks are no longer its own.
        parts += [lambda r=run: compute(r) for run in plan.runs if run.request in groups]
        for part in parts[:stop_after]:
            part()
        if stop_after is not None:
            raise WorkerFault
        results = {}
        for request, values in digests.items():
            group = groups[request]
            numbers = [*group.sequences]
            first = len(group.sequences[numbers[0]].tokens) == len(group.prompt)
            results[request] = [
                Continuation(numbers[parent], token)
                for parent, token in choose(values, group.parallel, first, request in self.beams)
            ]
        return results


def schedule(scheduler: Scheduler) -> StepPlan:
    """The next plan, which lets nobody overtake, keeps to the limits and whose writes never meet."""
    before = {*scheduler.queues[State.RUNNING]}
    plan = scheduler.schedule()
    for group in {*scheduler.queues[State.RUNNING]} - before:
        if not group.failures:
            earlier = [other for other in scheduler.groups.values() if other.number < group.number]
            assert all(other.state is State.RUNNING for other in earlier), "overtaken"
    assert plan.num_tokens == sum(len(run.tokens) for run in plan.runs)
    assert plan.num_tokens <= scheduler.token_budget
    assert len(plan.runs) <= scheduler.max_sequences
    ran = {run.request for run in plan.runs}
    assert not {*plan.preempted} & (ran | {*plan.resumed}), "pushed out and let in at once"
    if any(scheduler.groups[request].failures for request in ran):
        assert len(ran) == 1, "a request whose last step failed runs beside another"
    slots = [slot for run in plan.runs for slot in run.slots]
    assert len(slots) == len(set(slots))
    targets = [copy.target for copy in [*plan.swap_in, *plan.copies]]
    assert len(targets) == len(set(targets))
    for request in {run.request for run in plan.runs if run.samples}:
        running = {run.sequence for run in plan.runs if run.request == request}
        assert running == scheduler.groups[request].sequences.keys(), "siblings sample together"
    return plan


def check_scheduler(scheduler: Scheduler) -> None:
    """Every request is in the one queue that its state names, in order of arrival."""
    queued = []
    for state, queue in scheduler.queues.items():
        assert all(group.state is state for group in queue)
        assert [group.number for group in queue] == sorted(group.number for group in queue)
        queued += [group.number for group in queue]
    assert sorted(queued) == [*scheduler.groups]
    running = sum(group.parallel for group in scheduler.queues[State.RUNNING])
    assert running == scheduler._running_sequences <= scheduler.max_sequences
    holders = set()
    for group in scheduler.groups.values():
        assert group.sequences
        held = group.sequences.keys() & scheduler.allocator.tables.keys()
        assert bool(held) == (group.state is not State.WAITING)
        assert not (group.failures and group.state is State.SWAPPED), "it should run alone instead"
        lost = group.sequences.keys() - held
        assert all(group.sequences[number].computed == 0 for number in lost)
        for number in held:
            on_gpu = scheduler.allocator.tables[number].pool is scheduler.allocator.gpu
            assert on_gpu == (group.state is State.RUNNING)
        holders |= held
    assert holders == scheduler.allocator.tables.keys(), "a sequence outlived its request"


def make_flaky(pool, random: Random, probability: float) -> None:
    """From now on, some requests for blocks fail although there are enough."""
    take = pool.take

    def flaky_take(count, spare=0):
        if random.random() < probability:
            raise NoFreeBlocks("a fault was injected")
        return take(count, spare)

    pool.take = flaky_take
