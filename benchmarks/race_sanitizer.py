"""Look for races in FlashAttention-3's kernel with Triton's concurrency sanitizer.

    python -m benchmarks.race_sanitizer --experiment flash3_races

The sanitizer, ConSan, compiles checks into the kernel: each program keeps note of who reads and writes
which part of shared memory, and which barrier says so to whom. An access that no barrier orders, and a wait
that nothing can end, stop the kernel with an assertion. What it sees is one run, at the timing of that run.

The sanitizer of Triton 3.6 takes each copy by the TMA for an arrival at its barrier, and the call that says
how many bytes to expect for none. Two copies that share a barrier and its one arrival it takes for two
phases, and then reports deadlocks that are none. So here each copy announces its own bytes, and a barrier
of K and V counts two arrivals: ``COUNTED``, the only changes of the kernel.

One row a design and mask: ``design, switches, head_dim, causal, found`` (what the sanitizer said: nothing,
if all is well), ``error``, the output's largest against float64 if the kernel ended, and ``seconds``, most
of them the compiler's. The last rows are kernels with a ``mistake`` planted, to see that the sanitizer
would have found one. Each runs in a process of its own, as an assertion ends a process's use of the GPU,
and is given up after some minutes.
"""

import argparse
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch
import triton

from benchmarks import ablation
from instruments import records
from kernels import flash3
from kernels.reference import attention as reference

LIMIT_SECONDS = 240
SHAPE = dict(batch=1, heads=2, seq_query=300, seq_key=700)
PROGRAMS = 3
# Module, its text, and what replaces it.
COUNTED = (
    (
        "flash3_pipeline",
        "    mbarrier.expect(full, given.key.block_type.nbytes * (KEY + VALUE))\n",
        "    if KEY + VALUE == 1:\n        mbarrier.arrive(full, count=1)\n",
    ),
    (
        "flash3_pipeline",
        "    if KEY:\n",
        "    if KEY:\n        mbarrier.expect(full, given.key.block_type.nbytes)\n",
    ),
    (
        "flash3_pipeline",
        "    if VALUE:\n",
        "    if VALUE:\n        mbarrier.expect(full, given.key.block_type.nbytes)\n",
    ),
    (
        "flash3_kernel",
        "            make_barriers(STAGES, 1),\n",
        "            make_barriers(STAGES, 2),\n",
    ),
)
MISTAKES = {
    "a slot released before its product is done": (
        "flash3_kernel",
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n"
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n"
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n",
    ),
    "queries read before they have landed": (
        "flash3_kernel",
        "        wait_full(shared.queries, round * CONSUMERS + INDEX)\n",
        "",
    ),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Look for races in FlashAttention-3's kernel.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if kernels.device().type != "cuda":
        raise SystemExit("the sanitizer needs a Hopper GPU, and PyTorch sees no GPU here")
    if chosen.one:
        return run_one(*chosen.one)
    cases = [(d, "shipped", causal, "") for d in ablation.PROBLEMS for causal in (False, True)]
    steps = ablation.designs(128).items()
    unlike = {design: name for name, design in steps if name != "shipped"}
    unlike.pop(flash3.shipped_design(128), None)
    cases += [(128, name, True, "") for name in unlike.values()]
    cases += [(128, "shipped", True, mistake) for mistake in MISTAKES]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        rows = list(workers.map(lambda case: in_a_process(*case, chosen.experiment), cases))
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def in_a_process(head_dim: int, name: str, causal: bool, mistake: str, experiment: str) -> dict:
    """One row."""
    command = [sys.executable, "-m", "benchmarks.race_sanitizer", "--experiment", experiment]
    command += ["--one", str(head_dim), name, str(int(causal)), mistake]
    environment = os.environ | {"TRITON_INSTRUMENTATION_MODE": "consan"}
    start = time.monotonic()
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
        said = ended.stdout + "\n" + ended.stderr
        found = sorted(set(re.findall(r"Assertion `(.*?)` failed", said)))
        if ended.returncode and not found:
            found = re.findall(r"CUDA error: .*", said)[:1] or [said.strip().splitlines()[-1]]
    except subprocess.TimeoutExpired:
        said, found = "", [f"no end after {LIMIT_SECONDS} s"]
    row = {
        "design": name,
        "mistake": mistake,
        "switches": dataclasses.asdict(ablation.designs(head_dim)[name]),
        "head_dim": head_dim,
        "causal": causal,
        "found": found,
        "error": float(error[1]) if (error := re.search(r"^error: (\S+)$", said, re.M)) else None,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(head_dim, name, "causal" if causal else "full", mistake, found, row["error"], flush=True)
    return row


def run_one(head_dim: str, name: str, causal: str, mistake: str) -> None:
    """Run a design once, on several tiles of queries a program, and say how far off the output is."""
    triton.set_allocator(scratch)
    flash3_kernel = changed_kernel(*COUNTED, *([MISTAKES[mistake]] if mistake else []))
    design, causal = ablation.designs(int(head_dim))[name], bool(int(causal))
    batch, heads, seq_query, seq_key = SHAPE.values()
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(batch, heads, length, int(head_dim), dtype=torch.float16, device="cuda")
        for length in (seq_query, seq_key, seq_key)
    )
    output, logsumexp = torch.empty_like(query), query.new_empty(query.shape[:-1]).float()
    scale = int(head_dim) ** -0.5
    grid, arguments, constants = flash3.launch(
        query, key, value, output, logsumexp, causal, scale, design, PROGRAMS
    )
    flash3_kernel[grid](*arguments, num_warps=design.warps, **constants)
    torch.cuda.synchronize()
    exact = reference(query, key, value, causal=causal)
    print("error:", float((output - exact).abs().max()), flush=True)


def scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory for the sanitizer's notes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def changed_kernel(*changes: tuple[str, str, str]):
    """The kernel, with changes of its modules' text."""
    folder = Path(tempfile.mkdtemp())
    for name in ("flash3_pipeline", "flash3_kernel"):
        source = Path(kernels.__file__).with_name(f"{name}.py").read_text("utf-8")
        for module, right, wrong in changes:
            if module == name:
                if source.count(right) != 1:
                    raise ValueError(f"expected this text once in {name}.py: {right!r}")
                source = source.replace(right, wrong)
        source = source.replace("from kernels.flash3_pipeline", "from changed_flash3_pipeline")
        Path(folder, f"changed_{name}.py").write_text(source, "utf-8")
    sys.path.insert(0, str(folder))
    return importlib.import_module("changed_flash3_kernel").flash3_kernel


if __name__ == "__main__":
    main()
