"""Count what the memory for keys and values is used for under four ways to manage it.

    python -m benchmarks.memory_waste --experiment memory_waste

After Figure 2 of Kwon et al. 2023: a model of OPT-13B's shape leaves 12 GiB of an A100 to keys and values,
15 728 slots of 800 KiB. Requests with ShareGPT's or Alpaca's lengths all wait from the start, so memory is
never idle for lack of work, and the same scheduler serves them on each memory: contiguous pieces of a
buddy allocator, reserved as Orca's baselines do, or paged blocks of 16. Nothing runs on a GPU and nothing
is timed: every step counts once. The counts are the same on every machine.

One row for each workload and system: ``workload, system, block_size, requests, running``, the mean number
of requests in a step, and the mean shares of all slots, ``tokens, reserved, internal, rounding, free``
(``serving.memory_use`` says what each is), ``external``, the sum of the last two, and what the paper's
figures 2 and 13 say: for ShareGPT ``paper_tokens``, and ``paper_running``. The paper's requests arrive at 2
a second (ShareGPT) and 30 (Alpaca), which for Alpaca did not fill paged memory.
"""

import argparse
from dataclasses import asdict

from instruments import records
from serving import traces
from serving.allocator import Allocator
from serving.contiguous import RESERVATIONS, ContiguousAllocator
from serving.memory_use import MemoryUse
from serving.scheduler import Scheduler, StepPlan
from serving.sequence import State
from serving.simulation import Simulation

# 40 layers of keys and values, 5120 numbers of 2 bytes each.
SLOT_BYTES = 2 * 40 * 5120 * 2
SLOTS = 12 * 2**30 // SLOT_BYTES
BLOCK_SIZE = 16
SYSTEMS = (*RESERVATIONS, "paged")
WORKLOADS = {"sharegpt": traces.SHAREGPT, "alpaca": traces.ALPACA}
REQUESTS = {"sharegpt": 1000, "alpaca": 4000}
# Until so many have ended, the batch is still the first one, which began together.
WARM_UP = 1 / 4
PAPER_TOKENS = {"max": 0.204, "pow2": 0.268, "oracle": 0.382, "paged": 0.963}
PAPER_RUNNING = {
    "sharegpt": {"max": 7.00, "pow2": 9.81, "oracle": 13.62, "paged": 30.42},
    "alpaca": {"max": 7.00, "pow2": 43.24, "oracle": 72.75, "paged": 132.44},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Count what memory is used for.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    rows = [
        count_waste(workload, system, REQUESTS[workload])
        for workload in WORKLOADS
        for system in SYSTEMS
    ]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def make_scheduler(
    system: str,
    slots: int = SLOTS,
    *,
    block_size: int = BLOCK_SIZE,
    cpu_slots: int = 0,
    preemption: str = "recompute",
) -> Scheduler:
    """The same scheduler on one of the SYSTEMS' memories."""
    if system == "paged":
        memory = Allocator(slots // block_size, cpu_slots // block_size, block_size=block_size)
    else:
        memory = ContiguousAllocator(slots)
    return Scheduler(memory, token_budget=2048, max_sequences=256, preemption=preemption)


def count_waste(workload: str, system: str, requests: int, slots: int = SLOTS) -> dict:
    """One row: the mean over the steps in which the memory decides how many run."""
    trace = traces.requests(WORKLOADS[workload], requests, rate=float("inf"))
    scheduler = make_scheduler(system, slots)
    reservation = {} if system == "paged" else {"reservation": system}
    simulation = Simulation(scheduler, trace, **reservation)
    uses: list[MemoryUse] = []
    running = []

    def observe(simulation: Simulation, plan: StepPlan) -> None:
        left, waiting = len(simulation.requests), len(scheduler.queues[State.WAITING])
        if waiting and requests - left >= WARM_UP * requests:
            uses.append(simulation.memory_use(plan))
            running.append(len({run.request for run in plan.runs}))

    simulation.run(lambda plan: 1.0, observe)
    row = {
        "workload": workload,
        "system": system,
        "block_size": BLOCK_SIZE if system == "paged" else None,
        "requests": requests,
        "running": round(sum(running) / len(running), 2),
        **mean_shares(uses),
    }
    if workload == "sharegpt":
        row["paper_tokens"] = PAPER_TOKENS[system]
    row["paper_running"] = PAPER_RUNNING[workload][system]
    print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
    return row


def mean_shares(uses: list[MemoryUse]) -> dict[str, float]:
    """Mean share of the slots of each kind."""
    slots = uses[0].slots * len(uses)
    shares = {kind: sum(asdict(use)[kind] for use in uses) / slots for kind in asdict(uses[0])}
    shares["external"] = shares["rounding"] + shares["free"]
    return {kind: round(share, 4) for kind, share in shares.items()}


if __name__ == "__main__":
    main()
