"""Serve traces for real at two points of each curve that ``benchmarks.serving`` simulates.

    python -m benchmarks.serving_real --experiment serving_real

Trace, scheduler and memory are the simulation's, but every step is carried out on one GPU: the model of
OPT-13B's shape, with random weights, computes the plan's tokens, and the clock goes on by the seconds that
took, the host's included. Only waiting is left out: where no request is there, the clock jumps to the next
arrival, and a step with new prompts is carried out twice, of which the second counts, because the first may
compile kernels. Contiguous memory is read through the same kernels, as blocks that lie side by side; and
because they read blocks of 16 slots, requests that would get less are left out, for all systems.

One row for each workload, system and rate: ``workload, system, rate``, which is ``part`` of what the system
serves, by the step times of a record, when many requests wait from the start; ``requests``; ``steps``;
``latency``, the mean over the requests of the seconds from arrival to end over the tokens generated, and
``simulated_latency``, the same by the record; ``decode_ms``, the mean of a step without new prompts, and
``simulated_decode_ms``, what the record says of the same steps.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import kernels
from benchmarks.memory_waste import BLOCK_SIZE, SLOTS, WORKLOADS, make_scheduler
from benchmarks.serving import FEWER_SYSTEMS, plan_cost
from benchmarks.step_times import OPT_13B, random_model
from instruments import records
from instruments.step_cost import StepCost
from serving import traces
from serving.model import Config
from serving.runner import Runner
from serving.scheduler import Run, StepPlan
from serving.simulation import Cost, Outcome, Simulation
from serving.traces import Request


@dataclass(frozen=True)
class Plan:
    """What to serve."""

    config: Config
    slots: int
    requests: dict[str, int]  # of each workload, served for real
    waiting: int  # times as many wait where the capacity is found
    parts: tuple[float, ...]
    recorded: int  # the most sequences in a step that is replayed as a CUDA graph


FULL = Plan(OPT_13B.config, SLOTS, {"sharegpt": 40, "alpaca": 200}, 8, (0.5, 0.9), 64)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Serve traces for real.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    parser.add_argument("--step-times", default="step_times", help="record of a step's times")
    arguments = parser.parse_args()
    if kernels.device().type != "cuda":
        raise SystemExit("traces are served for real on a CUDA GPU, and PyTorch sees none here")
    try:
        steps = records.load(arguments.step_times).rows
    except FileNotFoundError as error:
        raise SystemExit(f"{error}. python -m benchmarks.step_times makes it.") from None
    rows = []
    for row in serve_all(FULL, plan_cost(StepCost(steps))):
        print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
        rows.append(row)
    print("recorded in", records.save(arguments.experiment, rows).relative_to(records.ROOT))


def serve_all(plan: Plan, simulated: Cost) -> Iterator[dict]:
    """All rows."""
    runner = Runner(
        random_model(plan.config),
        num_blocks=plan.slots // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        max_sequences=plan.recorded,
    )
    for workload, system in itertools.product(plan.requests, FEWER_SYSTEMS):
        count = plan.requests[workload]
        many = make_trace(workload, plan.waiting * count, float("inf"))
        capacity = serve(plan, many, system, simulated).throughput
        for part in plan.parts:
            trace = make_trace(workload, count, part * capacity)
            carried_out = Execution(runner, simulated, contiguous=system != "paged")
            real = serve(plan, trace, system, carried_out)
            expected = serve(plan, trace, system, simulated)
            decode, simulated_decode = carried_out.mean_decode()
            yield {
                "workload": workload,
                "system": system,
                "rate": round(part * capacity, 4),
                "part": part,
                "requests": len(real.served),
                "steps": real.steps,
                "latency": round(real.normalized_latency, 5),
                "simulated_latency": round(expected.normalized_latency, 5),
                "decode_ms": round(1000 * decode, 3),
                "simulated_decode_ms": round(1000 * simulated_decode, 3),
            }


def make_trace(workload: str, count: int, rate: float) -> list[Request]:
    trace = traces.requests(WORKLOADS[workload], count, rate)
    # A buddy's piece is a power of two, and one of more than half a block is whole blocks.
    return [request for request in trace if request.slots > BLOCK_SIZE // 2]


def serve(plan: Plan, trace: list[Request], system: str, cost: Cost) -> Outcome:
    reservation = {} if system == "paged" else {"reservation": system}
    longest = plan.config.positions
    scheduler = make_scheduler(system, plan.slots)
    return Simulation(scheduler, trace, longest=longest, **reservation).run(cost)


class Execution:
    """A cost: the seconds that a plan takes when it is carried out.

    Args:
        simulated: a cost that is compared with it.
        contiguous: memory is in pieces, not in blocks.
    """

    def __init__(self, runner: Runner, simulated: Cost, *, contiguous: bool) -> None:
        self.runner, self.simulated, self.contiguous = runner, simulated, contiguous
        self.vocabulary = runner.model.config.vocabulary
        self._decodes: list[tuple[float, float]] = []

    def __call__(self, plan: StepPlan) -> float:
        single = all(len(run.tokens) == 1 for run in plan.runs)
        if not single:  # what it writes, it writes again
            self.runner.compute([self.runnable(run) for run in plan.runs]).argmax(-1).tolist()
        start = time.perf_counter()
        carried_out = replace(plan, runs=[self.runnable(run) for run in plan.runs])
        # What is chosen is needed on the host, and of no account: the trace knows the lengths.
        self.runner.execute(carried_out).argmax(-1).tolist()
        seconds = time.perf_counter() - start
        if single:
            self._decodes.append((seconds, self.simulated(plan)))
        return seconds

    def mean_decode(self) -> tuple[float, float]:
        """Mean seconds of a step without new prompts, carried out and simulated."""
        real, simulated = zip(*self._decodes, strict=True)
        return statistics.mean(real), statistics.mean(simulated)

    def runnable(self, run: Run) -> Run:
        """A run with tokens that the model knows, and a piece as the blocks that it is made of."""
        run = run._replace(tokens=[token % self.vocabulary for token in run.tokens])
        if not self.contiguous:
            return run
        first = run.slots[0] - run.start  # the piece's, a multiple of BLOCK_SIZE
        length = run.start + len(run.tokens)
        blocks = range(first // BLOCK_SIZE, (first + length - 1) // BLOCK_SIZE + 1)
        return run._replace(block_table=[*blocks])


if __name__ == "__main__":
    main()
