"""Serve a trace without a model: the scheduler and the memory are real, time comes from a cost model.

Requests arrive by the trace's clock. Each step is planned by the scheduler, takes as long as ``cost`` says
its plan takes, and gives every sequence that samples its next token. What is generated is of no account but
for its length, so it is a number that no other sequence has.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import NamedTuple

from serving.contiguous import ContiguousAllocator, reserved_slots
from serving.memory_use import MemoryUse, memory_use
from serving.scheduler import Continuation, Scheduler, StepPlan
from serving.sequence import SequenceGroup
from serving.traces import Request

Cost = Callable[[StepPlan], float]
METHODS = ("sampling", "beam")


class Served(NamedTuple):
    """A request that ended."""

    request: Request
    finished: float  # in seconds


@dataclass
class Outcome:
    """What happened to a trace."""

    served: list[Served] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0  # in steps, without waiting for arrivals
    preemptions: int = 0
    running: float = 0.0  # requests in a step times its seconds, summed

    @property
    def normalized_latency(self) -> float:
        """Mean over the requests of the seconds from arrival to end over the tokens generated."""
        latencies = [(end - request.arrival) / request.output for request, end in self.served]
        return sum(latencies) / len(latencies)

    @property
    def throughput(self) -> float:
        """Requests a second, from the first arrival to the last end."""
        first = min(served.request.arrival for served in self.served)
        return len(self.served) / (max(served.finished for served in self.served) - first)

    @property
    def mean_running(self) -> float:
        """Requests in a step, averaged over the time in steps."""
        return self.running / self.seconds


class Simulation:
    """A trace on its way through a scheduler.

    Args:
        parallel: sequences a request generates.
        method: how they go on: "sampling", each by itself, or "beam": the parent of each is drawn from
            all, evenly, at every step.
        reservation: what contiguous memory is asked for, as ``serving.contiguous`` names it.
        longest: the longest sequence the model allows, which the reservation "max" asks for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        trace: list[Request],
        *,
        parallel: int = 1,
        method: str = "sampling",
        reservation: str = "max",
        longest: int = 2048,
        seed: int = 0,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        self.scheduler = scheduler
        self.trace = sorted(trace)
        self.parallel, self.method = parallel, method
        self.reservation, self.longest = reservation, longest
        self.requests: dict[int, Request] = {}  # by the scheduler's number
        self._arrived = 0
        self._random = Random(seed)
        self._tokens = count(1 << 62)

    def run(
        self, cost: Cost, observe: Callable[["Simulation", StepPlan], None] | None = None
    ) -> Outcome:
        """Serve the whole trace; ``observe`` sees every plan before it is carried out."""
        outcome, now = Outcome(), 0.0
        while self._arrived < len(self.trace) or self.scheduler.groups:
            if not self.scheduler.groups:
                now = max(now, self.trace[self._arrived].arrival)
            self._admit_until(now)
            plan = self.scheduler.schedule()
            if not (plan.runs or plan.preempted or plan.resumed):
                raise RuntimeError("the first request in the queue fits nowhere")
            if observe:
                observe(self, plan)
            seconds = cost(plan)
            now += seconds
            outcome.steps += 1
            outcome.seconds += seconds
            outcome.preemptions += len(plan.preempted)
            outcome.running += seconds * len({run.request for run in plan.runs})
            for group in self.scheduler.finish_step(self._results(plan)):
                outcome.served.append(Served(self.requests.pop(group.number), now))
        return outcome

    def memory_use(self, plan: StepPlan) -> MemoryUse:
        """What the slots are used for once the plan has been carried out."""
        written, final = {}, {}
        for number, group in self.scheduler.groups.items():
            for sequence in group.sequences.values():
                written[sequence.number] = sequence.computed
                final[sequence.number] = self.requests[number].slots
        for run in plan.runs:
            written[run.sequence] += len(run.tokens)
        return memory_use(self.scheduler.allocator, written, final)

    def _admit_until(self, now: float) -> None:
        while self._arrived < len(self.trace) and self.trace[self._arrived].arrival <= now:
            request = self.trace[self._arrived]
            group = self.scheduler.add(
                request.tokens(self._arrived),
                max_new_tokens=request.output,
                parallel=self.parallel,
            )
            self._arrived += 1
            self.requests[group.number] = request
            if isinstance(self.scheduler.allocator, ContiguousAllocator):
                asked = reserved_slots(
                    self.reservation, request.prompt, request.output, self.longest
                )
                self.scheduler.allocator.promise(min(group.sequences), asked, self.parallel)

    def _results(self, plan: StepPlan) -> dict[int, list[Continuation]]:
        sampled = {run.request for run in plan.runs if run.samples}
        return {
            request: [
                Continuation(parent, next(self._tokens))
                for parent in self._parents(self.scheduler.groups[request])
            ]
            for request in sampled
        }

    def _parents(self, group: SequenceGroup) -> list[int]:
        """The sequence that each of the next ones continues."""
        numbers = [*group.sequences]
        if len(numbers) == 1:
            return numbers * self.parallel
        if self.method == "beam":
            return self._random.choices(numbers, k=self.parallel)
        return numbers
