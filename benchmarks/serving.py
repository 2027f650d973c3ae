"""Serve traces on paged and on contiguous memory: latency and throughput against the rate of requests.

    python -m benchmarks.serving --experiment serving

After Figures 12 to 19 of Kwon et al. 2023, for a model of OPT-13B's shape whose keys and values have the
12 GiB that an A100 leaves them, 15 728 slots. Scheduler, trace and step times are the same for every
system: only the memory differs. No GPU is needed: how long a step takes comes from the record
``step_times``, which ``python -m benchmarks.step_times`` makes on one, and the clock is simulated.
Contiguous memory gets its siblings' copies for nothing.

Rows, told apart by ``scenario``; all have ``workload, system, rate, requests``, ``latency``, the mean over
the requests of the seconds from arrival to end over the tokens generated, ``throughput`` in requests a
second, ``running``, the mean number of requests in a step, ``preemptions``, and ``gpu``, whose step times
they are:

* ``sampling``: one output a request (Figures 12 and 13);
* ``parallel`` and ``beam``: ``parallel`` outputs (Figure 14);
* ``prefix``: a translation after ``prefix`` tokens that all requests share (Figure 16);
* ``chat``: prompts with a conversation before them (Figure 17);
* ``block_size`` and ``preemption``: paged memory with blocks of ``block_size``, the latter at a rate that
  overfills it, with ``preemption`` "swap" or "recompute" (Figures 18 and 19).

Rates are parts of ``capacity``, what the system serves when all requests wait from the start; for block
sizes and preemption, what paged memory with the usual blocks serves. A system whose latency is past LIMIT
at one rate is not asked for the next. Traces are so long that a queue has time to grow where one must.
"""

import argparse
import itertools
from collections.abc import Iterator

from benchmarks.memory_waste import SLOTS, SYSTEMS, WORKLOADS, make_scheduler
from instruments import records
from instruments.step_cost import BLOCK_SIZE, StepCost
from serving import traces
from serving.scheduler import StepPlan
from serving.simulation import Cost, Outcome, Simulation
from serving.traces import Request

PARTS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
LIMIT = 1.0  # seconds a token
# In a trace: ten minutes of arrivals and more near the capacity of paged memory, and some two for Alpaca.
REQUESTS = {
    "sharegpt": 4000,
    "alpaca": 12_000,
    "parallel": 3000,
    "beam": 3000,
    "prefix": 6000,
    "chat": 2000,
}
PARALLEL = (2, 4, 6)
PREFIXES = (80, 341)
BLOCK_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
# Where requests differ much, the middle baseline adds little.
FEWER_SYSTEMS = ("max", "oracle", "paged")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Serve traces by a simulated clock.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    parser.add_argument("--step-times", default="step_times", help="record of a step's times")
    parser.add_argument("--requests", type=int, help="the most in a trace")
    arguments = parser.parse_args()
    if arguments.requests is not None and arguments.requests < 1:
        parser.error(f"--requests is at least 1, not {arguments.requests}")
    try:
        steps = records.load(arguments.step_times)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}. python -m benchmarks.step_times makes it on a GPU.") from None
    rows = []
    for row in sweep(steps.rows, arguments.requests):
        row["gpu"] = steps.environment["gpu"]
        print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
        rows.append(row)
    print("recorded in", records.save(arguments.experiment, rows).relative_to(records.ROOT))


def sweep(steps: list[dict], most: int | None = None) -> Iterator[dict]:
    """All rows, from the rows of a record of step times; ``most`` makes traces shorter."""
    cost = plan_cost(StepCost(steps))
    requests = {name: min(count, most or count) for name, count in REQUESTS.items()}
    for workload in WORKLOADS:
        yield from over_rates("sampling", workload, SYSTEMS, cost, requests[workload])
    for (scenario, method), parallel in itertools.product(
        (("parallel", "sampling"), ("beam", "beam")), PARALLEL
    ):
        how = {"parallel": parallel, "method": method}
        for row in over_rates(scenario, "alpaca", FEWER_SYSTEMS, cost, requests[scenario], **how):
            yield row | {"parallel": parallel}
    for prefix in PREFIXES:
        workload = f"prefix {prefix}"
        for row in over_rates("prefix", workload, FEWER_SYSTEMS, cost, requests["prefix"]):
            yield row | {"prefix": prefix}
    yield from over_rates("chat", "chat", FEWER_SYSTEMS, cost, requests["chat"])
    for workload in WORKLOADS:
        yield from over_block_sizes(workload, steps, requests[workload])


def plan_cost(cost: StepCost, block_size: int = BLOCK_SIZE) -> Cost:
    """Seconds of a scheduler's plan."""

    def seconds(plan: StepPlan) -> float:
        decodes = [run.start + 1 for run in plan.runs if len(run.tokens) == 1]
        prefills = [(len(run.tokens), run.start) for run in plan.runs if len(run.tokens) > 1]
        moved = (len(plan.swap_out) + len(plan.swap_in)) * block_size
        return cost.seconds(decodes=decodes, prefills=prefills, swapped=moved)

    return seconds


def make_trace(workload: str, requests: int, rate: float) -> list[Request]:
    """A trace by the workload's name, which for a shared prefix is its length."""
    if workload == "chat":
        return traces.chat(requests, rate)
    if workload.startswith("prefix"):
        translation = traces.TRANSLATION.with_prefix(int(workload.split()[1]))
        return traces.requests(translation, requests, rate)
    return traces.requests(WORKLOADS[workload], requests, rate)


def serve(
    workload: str,
    system: str,
    rate: float,
    requests: int,
    cost: Cost,
    scheduler: dict | None = None,
    slots: int = SLOTS,
    **how,
) -> Outcome:
    """One trace on one memory."""
    if system != "paged":
        how["reservation"] = system
    simulation = Simulation(
        make_scheduler(system, slots, **(scheduler or {})),
        make_trace(workload, requests, rate),
        **how,
    )
    return simulation.run(cost)


def over_rates(
    scenario: str,
    workload: str,
    systems: tuple[str, ...],
    cost: Cost,
    requests: int,
    slots: int = SLOTS,
    **how,
) -> Iterator[dict]:
    """One row for each system and rate, up to the rate that is too much for it."""
    for system in systems:
        waiting = serve(workload, system, float("inf"), requests, cost, slots=slots, **how)
        capacity = waiting.throughput
        for part in PARTS:
            rate = part * capacity
            outcome = serve(workload, system, rate, requests, cost, slots=slots, **how)
            yield {"scenario": scenario, **measured(workload, system, rate, outcome)} | {
                "capacity": round(capacity, 4)
            }
            if outcome.normalized_latency > LIMIT:
                break


def over_block_sizes(
    workload: str, steps: list[dict], requests: int, slots: int = SLOTS
) -> Iterator[dict]:
    """Latency at most of the capacity, and at more than it with either way to make room."""
    usual = plan_cost(StepCost(steps))
    capacity = serve(workload, "paged", float("inf"), requests, usual, slots=slots).throughput
    for block_size in BLOCK_SIZES:
        cost = plan_cost(StepCost(steps, block_size), block_size)
        for scenario, part, preemption in (
            ("block_size", 0.8, "recompute"),
            ("preemption", 1.1, "recompute"),
            ("preemption", 1.1, "swap"),
        ):
            scheduler = {"block_size": block_size, "preemption": preemption, "cpu_slots": slots}
            rate = part * capacity
            outcome = serve(workload, "paged", rate, requests, cost, scheduler, slots)
            yield {"scenario": scenario, **measured(workload, "paged", rate, outcome)} | {
                "block_size": block_size,
                "preemption": preemption,
                "capacity": round(capacity, 4),
            }


def measured(workload: str, system: str, rate: float, outcome: Outcome) -> dict:
    """What every row has."""
    return {
        "workload": workload,
        "system": system,
        "rate": round(rate, 4),
        "requests": len(outcome.served),
        "latency": round(outcome.normalized_latency, 5),
        "throughput": round(outcome.throughput, 4),
        "running": round(outcome.mean_running, 2),
        "preemptions": outcome.preemptions,
    }


if __name__ == "__main__":
    main()
