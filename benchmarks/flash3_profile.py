"""Where the time of Hopper's forward kernels goes, read from the GPU's counters by Nsight Compute.

    python -m benchmarks.flash3_profile --experiment flash3_profile

16 384 tokens in one sequence, with and without a causal mask, for designs of :mod:`benchmarks.ablation` and
for peers. One row each: ``contestant, launched`` (the kernel's name), ``direction, dtype, batch, heads, n,
d, causal, tflops``, the counts of :data:`COUNTERS`, and ``stalls``: what the warps spend their time on
or wait for, as shares of it, the largest first. A counter that this GPU or this ``ncu`` does not have is
null. Each launch runs alone, several times over and from a cold cache, so times are not those of the other
records. Needs ``ncu`` and the right to read hardware counters.
"""

import argparse
import csv
import io
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import torch

from benchmarks import ablation, contestants, flash_attention_3
from benchmarks.attention import TOKENS, WIDTH
from instruments import records
from instruments.io_model import AttentionShape
from kernels import flash3

DTYPE = "float16"
CONTESTANTS = ("shipped", "maximum", "full", "flash2", "cudnn", "fa3")
OF_PEAK = ".avg.pct_of_peak_sustained_elapsed"
COUNTERS = {
    "ms": (1e-6, "gpu__time_duration.sum"),
    "sm_ghz": (
        1e-9,
        "sm__cycles_elapsed.avg.per_second",
        "smsp__cycles_elapsed.avg.per_second",
    ),
    # The share of the time in which the tensor cores multiply.
    "tensor_pct": (
        1,
        f"sm__pipe_tensor_cycles_active{OF_PEAK}",
        f"sm__pipe_tensor_op_hmma_cycles_active{OF_PEAK}",
    ),
    # Exponentials, multiply-adds, and integers with comparisons: shares of what the units could do.
    "exp_pct": (1, f"sm__inst_executed_pipe_xu{OF_PEAK}", f"smsp__inst_executed_pipe_xu{OF_PEAK}"),
    "fma_pct": (
        1,
        f"sm__pipe_fma_cycles_active{OF_PEAK}",
        f"sm__inst_executed_pipe_fma{OF_PEAK}",
    ),
    "alu_pct": (
        1,
        f"sm__inst_executed_pipe_alu{OF_PEAK}",
        f"sm__pipe_alu_cycles_active{OF_PEAK}",
    ),
    "issue_pct": (1, f"sm__issue_active{OF_PEAK}", f"smsp__issue_active{OF_PEAK}"),
    # The L2 cache: its busiest part, its tags, what it sent to the SMs, and what it had.
    "l2_pct": (1, f"lts__throughput{OF_PEAK}"),
    "l2_sectors_pct": (1, f"lts__t_sectors{OF_PEAK}"),
    "l2_to_sm_bytes": (1, "l1tex__m_xbar2l1tex_read_bytes.sum"),
    "l2_to_sm_pct": (1, f"l1tex__m_xbar2l1tex_read_sectors{OF_PEAK}"),
    "l2_read_sectors": (1, "lts__t_sectors_op_read.sum"),
    "l2_hit_pct": (1, "lts__t_sector_hit_rate.pct"),
    "dram_read_bytes": (1, "dram__bytes_read.sum"),
    "dram_pct": (1, f"dram__throughput{OF_PEAK}"),
    # Shared memory: the busiest part, what loads and stores of the warps take, and reads of the banks.
    "l1_pct": (1, f"l1tex__throughput{OF_PEAK}"),
    "shared_pct": (1, f"l1tex__data_pipe_lsu_wavefronts_mem_shared{OF_PEAK}"),
    "banks_pct": (1, f"l1tex__data_bank_reads{OF_PEAK}"),
    "bank_conflicts": (1, "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"),
}
"""Field of a row: a factor from ncu's base units, and counters, of which the first that there is counts."""
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle"),
    *("long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction"),
    *("not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait"),
)
"""What a warp can be at: ``selected``, it issues; ``not_selected``, another one does; else what it waits
for. ``gmma`` is the product of a warpgroup."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Read what Hopper's kernels keep busy.")
    names = (*ablation.NAMES, *ablation.PEERS)
    parser.add_argument("--contestants", nargs="+", choices=names, default=CONTESTANTS)
    parser.add_argument("--head-dim", type=int, choices=ablation.PROBLEMS, default=128)
    parser.add_argument("--experiment", help="name of the record")
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.profiled:
        _call_each(chosen.contestants, chosen.head_dim)
        return
    if not chosen.experiment:
        parser.error("--experiment is required")
    if shutil.which("ncu") is None:
        raise SystemExit("ncu (Nsight Compute) is not on the PATH; it reads the GPU's counters")
    if "fa3" in chosen.contestants and not flash_attention_3.at_hand():
        print(f"without fa3: {flash_attention_3.VARIABLE} names no library", flush=True)
        chosen.contestants = [name for name in chosen.contestants if name != "fa3"]
    _compile(chosen.contestants, chosen.head_dim)
    rows = profile(chosen.contestants, chosen.head_dim)
    for row in rows:
        print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def profile(names: list[str], head_dim: int) -> list[dict]:
    """Run every contestant under ncu, in one process of their own."""
    command = ["ncu", "--clock-control", "none", "--csv", "--print-units", "base"]
    command += ["--profile-from-start", "off", "--kernel-name-base", "function"]
    command += ["--metrics", ",".join(counters_here())]
    command += [sys.executable, "-m", "benchmarks.flash3_profile", "--profiled"]
    command += ["--head-dim", str(head_dim), "--contestants", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=records.ROOT)
    if done.returncode or '"ID"' not in done.stdout:
        raise RuntimeError(f"ncu failed: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return rows_of(done.stdout[done.stdout.index('"ID"') :], names, problem(head_dim))


def counters_here() -> list[str]:
    """The counters to ask for: those that this ncu lists for Hopper, or all if it lists nothing."""
    wanted = [name for _, *spellings in COUNTERS.values() for name in spellings]
    wanted += [STALL.format(reason) for reason in STALLS]
    asked = subprocess.run(
        ["ncu", "--query-metrics", "--chips", "gh100"], capture_output=True, text=True
    )
    listed = set(re.findall(r"\b[a-z0-9]+__\w+", asked.stdout))
    return [name for name in wanted if not listed or name.partition(".")[0] in listed]


def rows_of(table: str, names: list[str], shape: AttentionShape) -> list[dict]:
    """Rows from ncu's table, which has a line for each launch and counter."""
    launches: dict[str, dict] = {}
    for line in csv.DictReader(io.StringIO(table)):
        launch = launches.setdefault(line["ID"], {"launched": line["Kernel Name"]})
        try:
            launch[line["Metric Name"]] = float(line["Metric Value"].replace(",", ""))
        except ValueError:  # "n/a"
            continue
    called = list(itertools.product(names, (False, True)))
    time = COUNTERS["ms"][1]
    # A call launches one kernel of attention, and may launch small ones that prepare it.
    longest = sorted(launches, key=lambda launch: -launches[launch].get(time, 0.0))[: len(called)]
    if len(longest) < len(called):
        found = ", ".join(launch["launched"] for launch in launches.values())
        raise RuntimeError(f"ncu saw fewer launches than the {len(called)} calls: {found}")
    rows = []
    for (name, causal), launch in zip(called, sorted(longest, key=int), strict=True):
        counted = {
            field: next(
                (factor * launches[launch][each] for each in spellings if each in launches[launch]),
                None,
            )
            for field, (factor, *spellings) in COUNTERS.items()
        }
        flops = shape.flops / 2 if causal else shape.flops
        rows.append(
            {
                "contestant": name,
                "launched": launches[launch]["launched"],
                "direction": "fwd",
                "dtype": shape.dtype,
                "batch": shape.batch,
                "heads": shape.heads,
                "n": shape.seq_query,
                "d": shape.head_dim,
                "causal": causal,
                "tflops": 1e-9 * flops / counted["ms"],
                **counted,
                "stalls": stalls(launches[launch]),
            }
        )
    return [
        {
            field: round(value, 4) if isinstance(value, float) else value
            for field, value in row.items()
        }
        for row in rows
    ]


def stalls(launch: dict) -> dict[str, float]:
    """Reasons with their shares, from the warps that each holds for every one that issues."""
    held = {reason: launch.get(STALL.format(reason), 0.0) for reason in STALLS}
    in_all = sum(held.values())
    shares = {reason: round(warps / in_all, 4) for reason, warps in held.items() if warps}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def problem(head_dim: int) -> AttentionShape:
    """One sequence of 16 384 tokens."""
    return AttentionShape(TOKENS, TOKENS, head_dim, DTYPE, 1, WIDTH // head_dim)


def _inputs(head_dim: int) -> tuple[torch.Tensor, ...]:
    shape = problem(head_dim)
    return contestants.random_inputs(DTYPE, shape.batch, shape.heads, TOKENS, head_dim)


def _compile(names: list[str], head_dim: int) -> None:
    """Leave the designs in Triton's cache, side by side, as compiling under ncu would be slow."""
    known = ablation.designs(head_dim)
    for causal in (False, True):
        ablation.compile_designs(
            {known[name] for name in names if name in known}, _inputs(head_dim), causal
        )


def _contestant(name: str, head_dim: int) -> Callable:
    known = ablation.designs(head_dim)
    if name in known:
        return lambda *inputs: flash3.attention(*inputs[:3], causal=inputs[3], design=known[name])
    return contestants.kernel(name) if name in contestants.KERNELS else contestants.peer(name)


def _call_each(names: list[str], head_dim: int) -> None:
    """What ncu looks at: the second call of each."""
    for name, causal in itertools.product(names, (False, True)):
        inputs = contestants.laid_out(name, _inputs(head_dim))
        call = _contestant(name, head_dim)
        call(*inputs, causal)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call(*inputs, causal)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
