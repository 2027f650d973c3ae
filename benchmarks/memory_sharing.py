"""Count the blocks that the sequences of a request share, in parallel sampling and in beam search.

    python -m benchmarks.memory_sharing --experiment memory_sharing

After Figure 15 of Kwon et al. 2023. Requests with Alpaca's or ShareGPT's lengths are served on paged memory
of 15 728 slots, each generating 2, 4 or 6 sequences. Nothing runs on a GPU and nothing is timed. How the
beams of a real model fork is not known here: the parent of each is drawn from all of them, evenly, at
every step.

One row for each: ``workload, method, parallel, block_size, requests, saved``: the blocks that the block
tables name, less those that are there, over those that they name; and ``paper_saved``, where the paper's
text says it.
"""

import argparse
import itertools

from benchmarks.memory_waste import BLOCK_SIZE, WORKLOADS, make_scheduler
from instruments import records
from serving import traces
from serving.scheduler import StepPlan
from serving.simulation import METHODS, Simulation

PARALLEL = (2, 4, 6)
REQUESTS = {"alpaca": 1000, "sharegpt": 200}
# The least and the most that the text gives.
PAPER_SAVED = {
    ("alpaca", "sampling", 2): 0.061,
    ("alpaca", "sampling", 6): 0.098,
    ("alpaca", "beam", 2): 0.376,
    ("alpaca", "beam", 6): 0.552,
    ("sharegpt", "sampling", 2): 0.162,
    ("sharegpt", "sampling", 6): 0.305,
    ("sharegpt", "beam", 2): 0.443,
    ("sharegpt", "beam", 6): 0.663,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Count the blocks that sequences share.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    rows = [
        count_sharing(workload, method, parallel, REQUESTS[workload])
        for workload, method, parallel in itertools.product(REQUESTS, METHODS, PARALLEL)
    ]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def count_sharing(
    workload: str, method: str, parallel: int, requests: int, block_size: int = BLOCK_SIZE
) -> dict:
    """One row: over all steps of a trace whose requests all wait from the start."""
    trace = traces.requests(WORKLOADS[workload], requests, rate=float("inf"))
    scheduler = make_scheduler("paged", block_size=block_size)
    named = there = 0

    def observe(simulation: Simulation, plan: StepPlan) -> None:
        nonlocal named, there
        memory = scheduler.allocator
        named += sum(len(table.blocks) for table in memory.tables.values())
        there += len(memory.gpu.reference_counts) - len(memory.gpu.free)

    Simulation(scheduler, trace, parallel=parallel, method=method).run(lambda plan: 1.0, observe)
    row = {
        "workload": workload,
        "method": method,
        "parallel": parallel,
        "block_size": block_size,
        "requests": requests,
        "saved": round(1 - there / named, 4),
    }
    if (workload, method, parallel) in PAPER_SAVED:
        row["paper_saved"] = PAPER_SAVED[workload, method, parallel]
    print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
    return row


if __name__ == "__main__":
    main()
