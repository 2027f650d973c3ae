"""The bytes that reach HBM, read from the GPU's own counters by Nsight Compute (``ncu``).

    python -m benchmarks.dram_traffic --kernels naive --experiment naive_dram

One row a GPU kernel and length: ``kernel, launched, n, batch, heads, d, dtype, read_bytes,
written_bytes``. Needs ``ncu`` and the right to read hardware counters.
"""

import argparse
import csv
import importlib
import io
import itertools
import json
import shutil
import subprocess
import sys

from benchmarks import contestants
from benchmarks.attention import _integers, _names
from instruments import records

DTYPE, HEAD_DIM = "float16", 64
COUNTERS = {"read_bytes": "dram__bytes_read.sum", "written_bytes": "dram__bytes_write.sum"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the HBM traffic of kernels.")
    parser.add_argument("--kernels", type=_names(contestants.KERNELS), required=True)
    parser.add_argument("--lengths", type=_integers, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--experiment", help="name of the record")
    parser.add_argument("--keywords", type=json.loads, default={}, help="for the kernel, as JSON")
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.profiled:
        _call_once(chosen)
        return
    if not chosen.experiment:
        parser.error("--experiment is required")
    if shutil.which("ncu") is None:
        raise SystemExit("ncu (Nsight Compute) is not on the PATH; it reads the GPU's counters")
    rows = []
    for kernel, length in itertools.product(chosen.kernels, chosen.lengths):
        for row in profile(kernel, chosen.batch, chosen.heads, length, chosen.keywords):
            rows.append(row)
            print(
                f"{row['launched']} n {length}: {row['read_bytes']:,} bytes read, "
                f"{row['written_bytes']:,} written",
                flush=True,
            )
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def profile(kernel: str, batch: int, heads: int, length: int, keywords: dict) -> list[dict]:
    """Run one call of a kernel's launcher under ncu, in a process of its own."""
    command = ["ncu", "--clock-control", "none", "--csv", "--print-units", "base"]
    # Only the module's own kernels: not PyTorch's random numbers.
    module = contestants.KERNELS[kernel].split(":")[0]
    names = "|".join(vars(importlib.import_module(f"kernels.{module}")))
    command += ["--kernel-name-base", "function", "--kernel-name", f"regex:^({names})$"]
    command += ["--metrics", ",".join(COUNTERS.values())]
    command += [sys.executable, "-m", "benchmarks.dram_traffic", "--profiled", "--kernels", kernel]
    command += ["--batch", str(batch), "--heads", str(heads), "--lengths", str(length)]
    command += ["--keywords", json.dumps(keywords)]
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
                "batch": batch,
                "heads": heads,
                "d": HEAD_DIM,
                "dtype": DTYPE,
            },
        )
        for field, counter in COUNTERS.items():
            if line["Metric Name"] == counter:
                row[field] = int(float(line["Metric Value"].replace(",", "")))
    return list(rows.values())


def _call_once(chosen: argparse.Namespace) -> None:
    import torch

    kernel, length = chosen.kernels[0], chosen.lengths[0]
    inputs = contestants.random_inputs(DTYPE, chosen.batch, chosen.heads, length, HEAD_DIM)
    contestants.kernel(kernel, **chosen.keywords)(*inputs, False)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
