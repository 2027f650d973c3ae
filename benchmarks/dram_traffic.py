"""The bytes that reach HBM, read from the GPU's own counters by Nsight Compute (``ncu``).

    python -m benchmarks.dram_traffic --kernel naive --experiment naive_dram

One row a GPU kernel and length: ``kernel, launched, n, batch, heads, d, dtype, read_bytes,
written_bytes``. Needs ``ncu`` and the right to read hardware counters.
"""

import argparse
import csv
import importlib
import io
import shutil
import subprocess
import sys

from benchmarks import contestants
from benchmarks.attention import _integers
from instruments import records

DTYPE, BATCH, HEADS, HEAD_DIM = "float16", 4, 16, 64
COUNTERS = {"read_bytes": "dram__bytes_read.sum", "written_bytes": "dram__bytes_write.sum"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the HBM traffic of a kernel module.")
    parser.add_argument("--kernel", choices=contestants.KERNELS, required=True)
    parser.add_argument("--lengths", type=_integers, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--experiment", help="name of the record")
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.profiled:
        _call_once(chosen.kernel, chosen.lengths[0])
        return
    if not chosen.experiment:
        parser.error("--experiment is required")
    if shutil.which("ncu") is None:
        raise SystemExit("ncu (Nsight Compute) is not on the PATH; it reads the GPU's counters")
    rows = []
    for length in chosen.lengths:
        for row in profile(chosen.kernel, length):
            rows.append(row)
            print(
                f"{row['launched']} n {length}: {row['read_bytes']:,} bytes read, "
                f"{row['written_bytes']:,} written",
                flush=True,
            )
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def profile(kernel: str, length: int) -> list[dict]:
    """Run one call of a kernel module under ncu, in a process of its own."""
    command = ["ncu", "--clock-control", "none", "--csv", "--print-units", "base"]
    # Only the module's own kernels: not PyTorch's random numbers.
    names = "|".join(vars(importlib.import_module(f"kernels.{kernel}")))
    command += ["--kernel-name-base", "function", "--kernel-name", f"regex:^({names})$"]
    command += ["--metrics", ",".join(COUNTERS.values())]
    command += [sys.executable, "-m", "benchmarks.dram_traffic", "--profiled"]
    command += ["--kernel", kernel, "--lengths", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=records.ROOT)
    if done.returncode:
        raise RuntimeError(f"ncu failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    table = done.stdout[done.stdout.index('"ID"') :]
    rows: dict[str, dict] = {}
    for line in csv.DictReader(io.StringIO(table)):
        row = rows.setdefault(
            line["ID"],
            {
                "kernel": kernel,
                "launched": line["Kernel Name"],
                "n": length,
                "batch": BATCH,
                "heads": HEADS,
                "d": HEAD_DIM,
                "dtype": DTYPE,
            },
        )
        for field, counter in COUNTERS.items():
            if line["Metric Name"] == counter:
                row[field] = int(float(line["Metric Value"].replace(",", "")))
    return list(rows.values())


def _call_once(kernel: str, length: int) -> None:
    import torch

    inputs = contestants.random_inputs(DTYPE, BATCH, HEADS, length, HEAD_DIM)
    contestants.kernel(kernel)(*inputs, False)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
