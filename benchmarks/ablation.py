"""What each of FlashAttention-3's ideas is worth: its kernel step by step, and without each of them.

    python -m benchmarks.ablation --experiment flash3_ablation

One kernel source, whose ideas are the switches of :class:`kernels.flash3.Design`, at the shape of the
paper's Table 2, of d 128; for the other head dimensions at 16 384 tokens, from ``full`` on. The designs:

* steps, each with what the ones before have: ``alone`` (two warpgroups that load for themselves, into one
  slot), ``stages``, ``producer``, ``overlap`` (of the whole softmax), ``pingpong`` and ``full``, which is
  persistent: the paper's schedule; beside them ``third_stage``, a producer with one slot more where it
  fits, and ``turns_first``, pingpong alone;
* ``full`` without one of them: ``no_producer``, ``one_stage``, ``no_overlap``, ``no_pingpong``,
  ``no_persistent``, and ``no_apart``, where the output leaves through the queries' shared memory; and
  ``maximum``, with only the maxima of the rows under the product;
* ``shipped``, what :func:`kernels.flash3.attention` runs by itself.

One row a design and problem: ``kernel, design, switches, direction, dtype, batch, heads, n, d, causal, ms,
spread, tflops``, ``of_full``, its speed over that of ``full``, ``peers`` and ``speedup`` as in
:mod:`benchmarks.attention`, and ``registers`` a thread at the launch, ``spill_bytes`` and
``shared_bytes``. All are timed in the same rounds. Names of the same design share its figures.
"""

import argparse
import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch
import triton

from benchmarks import contestants, flash_attention_3
from benchmarks.attention import TOKENS, WIDTH
from instruments import compile_report, records
from instruments.io_model import AttentionShape
from instruments.timing import time_interleaved
from kernels import flash3
from kernels.configurations import SHARED_BYTES
from kernels.flash3 import Design

DTYPE = "float16"
PROBLEMS = {
    128: AttentionShape(8448, 8448, 128, DTYPE, 4, 16),
    64: AttentionShape(TOKENS, TOKENS, 64, DTYPE, 1, WIDTH // 64),
    256: AttentionShape(TOKENS, TOKENS, 256, DTYPE, 1, WIDTH // 256),
}
"""By head dimension. The first is that of the paper's ablation."""
PEERS = ("flash2", "fa2", "cudnn", "fa3")


def designs(head_dim: int) -> dict[str, Design]:
    """The designs by name, from the one shipped for a head dimension."""
    shipped = flash3.shipped_design(head_dim)
    alone = Design(
        shipped.block_n,
        stages=1,
        specialized=False,
        overlap="none",
        persistent=False,
        output_apart=False,
    )
    stages = replace(alone, stages=shipped.stages)
    producer = replace(stages, specialized=True, warpgroups=shipped.warpgroups)
    overlap = replace(producer, overlap="softmax")
    pingpong = replace(overlap, pingpong=True)
    full = replace(pingpong, persistent=True, output_apart=shipped.output_apart)
    return {
        "alone": alone,
        "stages": stages,
        "producer": producer,
        "third_stage": replace(producer, stages=shipped.stages + 1),
        "turns_first": replace(producer, pingpong=True),
        "overlap": overlap,
        "pingpong": pingpong,
        "full": full,
        "no_producer": replace(full, specialized=False, pingpong=False, warpgroups=2),
        "one_stage": replace(full, stages=1),
        "no_overlap": replace(full, overlap="none"),
        "maximum": replace(full, overlap="maximum"),
        "no_pingpong": replace(full, pingpong=False),
        "no_persistent": replace(full, persistent=False),
        "no_apart": replace(full, output_apart=False),
        "shipped": shipped,
    }


NAMES = tuple(designs(128))
WITHOUT_STEPS = NAMES[NAMES.index("full") :]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time FlashAttention-3's designs.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="DESIGN")
    parser.add_argument("--head-dims", nargs="+", type=int, choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    chosen = parser.parse_args()
    if kernels.device().type != "cuda":
        raise SystemExit("the designs are timed on a Hopper GPU, and PyTorch sees no GPU here")
    if "fa3" in chosen.peers and not flash_attention_3.at_hand():
        print(f"without fa3: {flash_attention_3.VARIABLE} names no library", flush=True)
    rows = []
    for head_dim in chosen.head_dims:
        names = chosen.only or (NAMES if head_dim == 128 else WITHOUT_STEPS)
        named = {name: designs(head_dim)[name] for name in ("full", *names)}
        for causal in (False, True):
            rows += time_designs(named, PROBLEMS[head_dim], causal, chosen.peers)
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def time_designs(
    named: dict[str, Design], shape: AttentionShape, causal: bool, peers: tuple[str, ...]
) -> list[dict]:
    """One row for each name whose design fits in an SM's shared memory; ``full`` is among them."""
    problem = (shape.batch, shape.heads, shape.seq_query, shape.head_dim)
    inputs = contestants.random_inputs(shape.dtype, *problem)
    compiled = compile_designs(set(named.values()), inputs, causal)
    calls = {
        design: functools.partial(flash3.attention, *inputs, causal=causal, design=design)
        for design, facts in compiled.items()
        if facts["shared_bytes"] <= SHARED_BYTES[90]
    }
    for name in peers:
        if name != "fa3" or flash_attention_3.at_hand():
            known = contestants.kernel if name in contestants.KERNELS else contestants.peer
            calls[name] = functools.partial(
                known(name), *contestants.laid_out(name, inputs), causal
            )
    taken = time_interleaved(calls)
    # Half of the products fall away under a causal mask: the papers' convention.
    flops = shape.flops / 2 if causal else shape.flops
    tflops = {each: round(1e-9 * flops / timing.median, 2) for each, timing in taken.items()}
    rows = []
    for name, design in named.items():
        if design not in taken:
            print(f"{name} d {shape.head_dim}: does not fit", flush=True)
            continue
        timing = taken[design]
        rows.append(
            {
                "kernel": "flash3",
                "design": name,
                "switches": dataclasses.asdict(design),
                "direction": "fwd",
                "dtype": shape.dtype,
                "batch": shape.batch,
                "heads": shape.heads,
                "n": shape.seq_query,
                "d": shape.head_dim,
                "causal": causal,
                "ms": round(timing.median, 5),
                "spread": round(timing.spread, 4),
                "tflops": tflops[design],
                "of_full": round(timing.speedup_over(taken[named["full"]]), 4),
                "peers": {peer: tflops.get(peer) for peer in peers},
                "speedup": {
                    peer: round(timing.speedup_over(taken[peer]), 3) if peer in taken else None
                    for peer in peers
                },
                **compiled[design],
            }
        )
        print(
            f"d {shape.head_dim} n {shape.seq_query} {'causal' if causal else 'full'} {name}: "
            f"{timing.median:.3f} ms, {tflops[design]} TFLOP/s, {rows[-1]['of_full']} of full, "
            f"{rows[-1]['registers']} registers, {rows[-1]['spill_bytes']} bytes spilled",
            flush=True,
        )
    print("  ".join(f"{peer} {tflops.get(peer)}" for peer in peers), flush=True)
    return rows


def compile_designs(chosen: set[Design], inputs: tuple, causal: bool) -> dict[Design, dict]:
    """What the compiler makes of designs, several at a time; their launches find it done.

    Returns:
        For each ``registers, spill_bytes, shared_bytes``.
    """
    query, key, value = inputs
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)

    def compiled(design: Design):
        grid, arguments, constants = flash3.launch(
            query, key, value, torch.empty_like(query), logsumexp, causal, 1.0, design, 1
        )
        return flash3.flash3_kernel.warmup(
            *arguments, **constants, num_warps=design.warps, grid=grid
        )

    def facts(kernel) -> dict:
        inspected = compile_report.inspect_compiled(kernel)
        return {name: inspected[name] for name in ("registers", "spill_bytes", "shared_bytes")}

    with ThreadPoolExecutor() as threads:
        with triton.AsyncCompileMode(threads):
            for design in chosen:
                compiled(design)
        finished = [compiled(design) for design in chosen]
        return dict(zip(chosen, threads.map(facts, finished), strict=True))


if __name__ == "__main__":
    main()
