"""Time FlashAttention-1 as printed with tiles of keys of several sizes: Figure 2, middle, of the paper.

    python -m benchmarks.block_size --experiment flash1_block_size

One row a size: ``block_m, block_n, batch, heads, n, d, dtype, ms, spread, requested_bytes`` and
``read_bytes, written_bytes``, what Nsight Compute counts at the memory (null without it). A wider tile
means fewer rounds, and every round reads and writes the output of all queries.
"""

import argparse
import functools
import shutil
from collections.abc import Callable

from benchmarks import contestants, dram_traffic
from instruments import io_model, records
from instruments.timing import time_interleaved

DTYPE, BATCH, HEADS, LENGTH, HEAD_DIM = "float16", 64, 16, 1024, 64
BLOCK_M, BLOCK_N = 32, (16, 32, 64, 128, 256)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the printed order with tiles of many sizes.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    inputs = contestants.random_inputs(DTYPE, BATCH, HEADS, LENGTH, HEAD_DIM)
    taken = time_interleaved({n: functools.partial(sized(n), *inputs, False) for n in BLOCK_N})
    shape = io_model.AttentionShape(LENGTH, LENGTH, HEAD_DIM, DTYPE, BATCH, HEADS)
    rows = []
    for block_n, timing in taken.items():
        rows.append(
            {
                **sizes(block_n),
                "batch": BATCH,
                "heads": HEADS,
                "n": LENGTH,
                "d": HEAD_DIM,
                "dtype": DTYPE,
                "ms": round(timing.median, 5),
                "spread": round(timing.spread, 4),
                "requested_bytes": io_model.total_bytes(io_model.printed_requested(shape, block_n)),
                **counted(block_n),
            }
        )
        print(rows[-1], flush=True)
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def sizes(block_n: int) -> dict:
    """The keywords that set a tile's size."""
    return {"block_m": BLOCK_M, "block_n": block_n}


def sized(block_n: int) -> Callable:
    """The printed order with tiles of that size."""
    return contestants.kernel("flash1_printed", **sizes(block_n))


def counted(block_n: int) -> dict:
    """Bytes at the memory, if Nsight Compute is there."""
    if shutil.which("ncu") is None:
        return dict.fromkeys(dram_traffic.COUNTERS)
    (row,) = dram_traffic.profile("flash1_printed", BATCH, HEADS, LENGTH, sizes(block_n))
    return {counter: row[counter] for counter in dram_traffic.COUNTERS}


if __name__ == "__main__":
    main()
