"""Run every sweep and record it: ``python -m benchmarks``."""

import subprocess
import sys

import torch

SWEEPS = (
    "ceilings",
    "attention --kernels naive --peers eager,math,efficient,fa2,cudnn --experiment naive",
    "memory --kernels naive --peers eager,fa2 --experiment naive_memory",
    "dram_traffic --kernel naive --experiment naive_dram",
    "softmax --experiment softmax",
)


def main() -> None:
    """Run the sweeps in turn; one that fails is named at the end, and the others still run."""
    if not torch.cuda.is_available():
        raise SystemExit("the benchmarks need a CUDA GPU, and PyTorch sees none here")
    failed = []
    for number, sweep in enumerate(SWEEPS, start=1):
        print(f"[{number}/{len(SWEEPS)}] python -m benchmarks.{sweep}", flush=True)
        module, *arguments = sweep.split()
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        if subprocess.run(command).returncode:
            failed.append(sweep)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
