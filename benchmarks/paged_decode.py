"""How fast decoding reads a paged cache, beside the same with no pages, and beside its peers.

    python -m benchmarks.paged_decode --experiment paged_decode

One step of decoding: a query a sequence, all sequences equally long, blocks anywhere in the cache. All
contestants are timed in the same rounds, on the same numbers:

* ``paged``: :func:`kernels.paged.decode`; ``fp8``: the same from a cache in e4m3, half as large.
* ``contiguous``: the same kernel on a cache whose blocks are as long as a sequence, so that a table has
  one entry a sequence: what pages cost is the difference.
* ``fa3``, ``fa3_contiguous``: FlashAttention-3 with a block table, and on sequences one after the other.
* ``sdpa``: PyTorch's ``scaled_dot_product_attention``, contiguous.

One row a problem: ``kernel, direction, dtype, batch, heads, kv_heads, n, d, block_size, ms, spread, tbs``
of ``paged``; ``predicted_ms``, the bytes of all keys and values at the rate of a copy, as the record
``ceilings`` has it, and START_MS; ``peers``, name to TB/s (null where one cannot run); ``speedup``, name to
how many times faster than that peer: the median of the ratios within each round; ``disagreement``, name to
its output's largest distance from that of ``paged``. TB/s are the bytes of all keys and values over the
time. The caches are larger than the L2 cache of any GPU, and that is overwritten before each call.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import flash_attention_3
from instruments import records
from instruments.timing import Timing, time_interleaved
from kernels import paged

DTYPE, HEADS, HEAD_DIM = torch.float16, 32, 128


@dataclass(frozen=True)
class Problem:
    """A step of decoding."""

    batch: int
    tokens: int
    kv_heads: int = 8
    block_size: int = 16

    @property
    def bytes(self) -> int:
        """Of all keys and values, each read once."""
        return 2 * self.batch * self.tokens * self.kv_heads * HEAD_DIM * DTYPE.itemsize


# From the launch to the first byte, and from the last byte to the end; an estimate.
START_MS = 0.005
OURS = ("paged", "fp8", "contiguous")
PEERS = ("contiguous", "fp8", "fa3", "fa3_contiguous", "sdpa")
PROBLEMS = (
    Problem(64, 4096),
    Problem(64, 4096, kv_heads=32),
    Problem(8, 32768),
    Problem(256, 1024),
    Problem(1, 131072),
    Problem(16, 1024),
    Problem(64, 4096, block_size=64),
    Problem(64, 4096, block_size=256),
    Problem(64, 4096, block_size=1),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time decoding from a paged cache.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    if kernels.device().type != "cuda":
        raise SystemExit("decoding is timed on a CUDA GPU, and PyTorch sees none here")
    rows = [time_problem(problem) for problem in PROBLEMS]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def time_problem(problem: Problem) -> dict:
    """One row."""
    calls, outputs = {}, {}
    for name, prepare in contestants(problem).items():
        try:
            call = prepare()
            outputs[name] = call()
        except (FileNotFoundError, RuntimeError) as error:
            if name in OURS:
                raise
            print(f"{name}: {error}", flush=True)
        else:
            calls[name] = call
    disagreement = {
        name: (output - outputs["paged"]).abs().max().item() for name, output in outputs.items()
    }
    return row(problem, time_interleaved(calls), disagreement)


def row(problem: Problem, taken: dict[str, Timing], disagreement: dict[str, float]) -> dict:
    """What was measured, printed too."""
    ours = taken["paged"]

    def tbs(name: str) -> float:
        read = problem.bytes / 2 if name == "fp8" else problem.bytes
        return round(1e-9 * read / taken[name].median, 3)

    measured = {
        "kernel": "paged",
        "direction": "decode",
        "dtype": str(DTYPE).removeprefix("torch."),
        "batch": problem.batch,
        "heads": HEADS,
        "kv_heads": problem.kv_heads,
        "n": problem.tokens,
        "d": HEAD_DIM,
        "block_size": problem.block_size,
        "ms": round(ours.median, 5),
        "spread": round(ours.spread, 4),
        "tbs": tbs("paged"),
        "predicted_ms": round(predicted_ms(problem), 5),
        "peers": {name: tbs(name) if name in taken else None for name in PEERS},
        "speedup": {
            name: round(ours.speedup_over(taken[name]), 3) if name in taken else None
            for name in PEERS
        },
        "disagreement": {name: disagreement[name] for name in PEERS if name in disagreement},
    }
    others = "  ".join(f"{name} {speed}" for name, speed in measured["peers"].items())
    print(
        f"{problem.batch} x {problem.tokens}, {problem.kv_heads} KV heads, blocks of "
        f"{problem.block_size}: {1000 * ours.median:.1f} us, predicted "
        f"{1000 * measured['predicted_ms']:.1f}, {measured['tbs']} TB/s | {others} | "
        f"faster than fa3 {measured['speedup']['fa3']}, contiguous "
        f"{measured['speedup']['contiguous']}",
        flush=True,
    )
    return measured


def predicted_ms(problem: Problem) -> float:
    """The time to read all keys and values once, as fast as a copy reads and writes."""
    (ceilings,) = records.load("ceilings").rows
    return START_MS + 1e-9 * problem.bytes / ceilings["copy_tbs"]


def contestants(problem: Problem) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
    """What prepares each contestant's call, by name."""
    batch, tokens = problem.batch, problem.tokens
    device = kernels.device()
    torch.manual_seed(0)
    query = torch.randn(batch, HEADS, HEAD_DIM, device=device, dtype=DTYPE)
    lengths = torch.full((batch,), tokens, device=device, dtype=torch.int32)
    sequences = [
        torch.randn(batch, tokens, problem.kv_heads, HEAD_DIM, device=device, dtype=DTYPE)
        for _ in range(2)
    ]
    whole = torch.arange(batch, device=device, dtype=torch.int32)[:, None]
    table, caches = paged_caches(sequences, problem.block_size)
    # Numbers from N(0, 1) that are larger are too few to matter.
    scale = torch.tensor(6 / 448, device=device)
    in_fp8 = [(cache / scale).clamp(-448, 448).to(paged.FP8) for cache in caches]
    transposed = [x.transpose(1, 2) for x in sequences]
    calls = {
        "paged": lambda: paged.decode(query, *caches, table, lengths),
        "fp8": lambda: paged.decode(
            query, *in_fp8, table, lengths, key_scale=scale, value_scale=scale
        ),
        "contiguous": lambda: paged.decode(query, *sequences, whole, lengths),
        "sdpa": lambda: scaled_dot_product_attention(
            query[:, :, None], *transposed, enable_gqa=HEADS != problem.kv_heads
        )[:, :, 0],
    }
    fa3 = {
        "fa3": lambda: flash_attention_3.decoder(query, *caches, lengths, table),
        "fa3_contiguous": lambda: flash_attention_3.decoder(query, *sequences, lengths),
    }
    return {name: lambda call=call: call for name, call in calls.items()} | fa3


def paged_caches(
    sequences: list[torch.Tensor], block_size: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sequences ``(batch, tokens, kv_heads, head_dim)`` in blocks of a random order, and their table."""
    batch, tokens = sequences[0].shape[:2]
    blocks = [x.reshape(-1, block_size, *x.shape[2:]) for x in sequences]
    order = torch.randperm(len(blocks[0]), device=blocks[0].device)
    caches = []
    for each in blocks:
        caches.append(torch.empty_like(each))
        caches[-1][order] = each
    return order.view(batch, tokens // block_size).int(), caches


if __name__ == "__main__":
    main()
