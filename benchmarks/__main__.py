"""Run every sweep and record it: ``python -m benchmarks``."""

import subprocess
import sys

import torch

SWEEPS = (
    "ceilings",
    "attention --kernels naive --peers eager,math,efficient,fa2,cudnn --experiment naive",
    "memory --kernels naive --peers eager,fa2 --experiment naive_memory",
    "dram_traffic --kernels naive --experiment naive_dram",
    "softmax --experiment softmax",
    "attention --kernels flash1 --peers eager,fa2,cudnn,flex --experiment flash1",
    "attention --kernels flash1_printed --peers eager,fa2 --head-dims 64 "
    "--lengths 1024,4096,16384 --experiment flash1_printed",
    "attention --kernels naive,flash1_printed,flash1 --peers eager,fa2 --lengths 1024 --head-dims 64 "
    "--batch 64 --heads 16 --experiment fig2_left",
    "dram_traffic --kernels naive,flash1_printed,flash1 --lengths 1024 --batch 64 --heads 16 "
    "--experiment fig2_left_dram",
    "dram_traffic --kernels flash1_printed,flash1 --experiment flash1_dram",
    "memory --kernels naive,flash1 --peers eager,fa2 --batch 16 --heads 8 "
    "--lengths 128,256,512,1024,2048,4096,8192,16384,32768,65536 --experiment flash1_memory",
    "block_size --experiment flash1_block_size",
    "block_sparse --experiment block_sparse",
    "attention --kernels flash1,flash2 --peers fa2,cudnn,flex --experiment flash2",
    "attention --kernels flash2 --peers fa2,cudnn,flex --directions bwd --experiment flash2_backward",
    "memory --kernels flash2 --peers eager,fa2 --batch 16 --heads 8 --direction fwd+bwd "
    "--lengths 128,256,512,1024,2048,4096,8192,16384,32768,65536 --experiment flash2_memory",
    "attention --kernels flash2 --peers eager,fa2 --directions fwd+bwd --experiment flash2_eager",
    "occupancy --experiment occupancy",
    "softmax_cost --experiment softmax_cost",
    "training --experiment training",
    "attention --kernels flash3 --peers fa3,cudnn,fa2 --head-dims 64,128,256 --experiment flash3",
    "ablation --experiment flash3_ablation",
    "numerical_error --experiment numerical_error",
    "flash3_profile --experiment flash3_profile",
    "copy_rate --experiment copy_rate",
    "race_sanitizer --experiment flash3_races",
    "attention --kernels fp8 --peers fa3_fp8,fp8_prepared,fa3 --head-dims 64,128,256 --experiment fp8",
    "fp8_error --experiment fp8_error",
    "paged_decode --experiment paged_decode",
    "memory_waste --experiment memory_waste",
    "memory_sharing --experiment memory_sharing",
    "step_times --experiment step_times",
    "serving --experiment serving",
    "serving_real --experiment serving_real",
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
