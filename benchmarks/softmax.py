"""Time the row softmax kernels beside PyTorch's, and beside a copy of the same matrix.

    python -m benchmarks.softmax --experiment softmax

A softmax must read its matrix once and write as much, which is what a copy does: the copy is the roof.
One row a kernel, dtype and length: ``kernel, dtype, rows, columns, ms, spread, tbs, of_copy, of_torch``.
``tbs`` counts the matrix read once and written once, whatever the kernel reads; ``of_copy`` and
``of_torch`` are speeds relative to the copy and to ``torch.softmax``, medians of the ratios within
each round.
"""

import argparse

import torch

from instruments import records
from instruments.timing import time_interleaved
from kernels import online_softmax

KERNELS = {
    "three_pass": online_softmax.three_pass_softmax,
    "two_pass": online_softmax.two_pass_softmax,
    "fused": online_softmax.fused_softmax,
    "split": online_softmax.split_softmax,
}
ELEMENTS = 2**28
COLUMNS = (1024, 2048, 4096, 8192, 16384, 32768)
FEW_LONG_ROWS = ((1, 2**20), (8, 2**20), (64, 2**20))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time row softmax beside a copy.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    rows = []
    for dtype in ("float16", "bfloat16", "float32"):
        for columns in COLUMNS:
            rows += time_shape(dtype, ELEMENTS // columns, columns)
    for few, columns in FEW_LONG_ROWS:
        rows += time_shape("float16", few, columns)
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def time_shape(dtype: str, rows: int, columns: int) -> list[dict]:
    """One row for each kernel that takes rows of this length, all timed in the same rounds."""
    torch.manual_seed(0)
    values = torch.randn(rows, columns, device="cuda", dtype=getattr(torch, dtype))
    target = torch.empty_like(values)
    entrants = {
        name: lambda function=function: function(values)
        for name, function in KERNELS.items()
        if name != "fused" or columns <= online_softmax.LONGEST_FUSED_ROW
    }
    entrants["torch"] = lambda: values.softmax(1)
    entrants["copy"] = lambda: target.copy_(values)
    taken = time_interleaved(entrants)
    moved = 2 * values.numel() * values.element_size()
    found = [
        {
            "kernel": name,
            "dtype": dtype,
            "rows": rows,
            "columns": columns,
            "ms": round(timing.median, 5),
            "spread": round(timing.spread, 4),
            "tbs": round(1e-9 * moved / timing.median, 3),
            "of_copy": round(timing.speedup_over(taken["copy"]), 4),
            "of_torch": round(timing.speedup_over(taken["torch"]), 4),
        }
        for name, timing in taken.items()
    ]
    print(
        f"{dtype} {rows}x{columns}:",
        "  ".join(f"{row['kernel']} {row['of_copy']:.3f}" for row in found),
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
