"""Time attention kernels beside their peers, interleaved, and record them.

    python -m benchmarks.attention --kernels naive --peers eager,math,efficient,fa2,cudnn --experiment
    naive

One row a problem: ``kernel, direction, dtype, batch, heads, kv_heads, n, d, causal, ms, spread,
tflops``, ``peers``, name to TFLOP/s (null where the peer cannot run), and ``speedup``, name to how many
times faster than that peer: the median of the ratios within each round. By default a batch holds
16384 tokens and the model is 2048 wide, as in the FlashAttention papers. A backward pass is credited with
2.5 times the forward's FLOPs: five products for two.
"""

import argparse
import itertools

import torch

from benchmarks import contestants
from instruments import records
from instruments.io_model import AttentionShape
from instruments.timing import time_interleaved

TOKENS, WIDTH = 16384, 2048
# FLOPs of a direction over those of the forward pass.
DIRECTIONS = {"fwd": 1.0, "bwd": 2.5, "fwd+bwd": 3.5}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time attention kernels beside their peers.")
    parser.add_argument("--kernels", type=_names(contestants.KERNELS), required=True)
    parser.add_argument("--peers", type=_names(contestants.PEERS), default=[])
    parser.add_argument("--lengths", type=_integers, default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--head-dims", type=_integers, default=[64, 128])
    parser.add_argument(
        "--dtypes", type=_names(("float16", "bfloat16", "float32")), default=["float16"]
    )
    parser.add_argument("--directions", type=_names(DIRECTIONS), default=["fwd"])
    parser.add_argument("--batch", type=int, help=f"instead of {TOKENS} tokens in all")
    parser.add_argument("--heads", type=int, help=f"instead of {WIDTH} / head dimension")
    parser.add_argument("--experiment", required=True, help="name of the record")
    chosen = parser.parse_args()
    rows = []
    problems = itertools.product(
        chosen.directions, chosen.dtypes, chosen.head_dims, chosen.lengths, (False, True)
    )
    for direction, dtype, head_dim, length, causal in problems:
        batch = chosen.batch or max(1, TOKENS // length)
        heads = chosen.heads or WIDTH // head_dim
        shape = AttentionShape(length, length, head_dim, dtype, batch, heads)
        rows += time_problem(chosen.kernels, chosen.peers, shape, causal, direction)
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def time_problem(
    kernels, peers, shape: AttentionShape, causal: bool, direction: str = "fwd"
) -> list[dict]:
    """One row for each kernel on one problem, every contestant timed in the same rounds."""
    length, head_dim, dtype = shape.seq_query, shape.head_dim, shape.dtype
    inputs = contestants.random_inputs(dtype, shape.batch, shape.heads, length, head_dim)
    entrants = {name: contestants.kernel(name) for name in kernels}
    entrants |= {name: contestants.peer(name) for name in peers}
    prepared = {
        name: _prepared(function, contestants.laid_out(name, inputs), causal, direction)
        for name, function in entrants.items()
    }
    taken = time_interleaved({name: call for name, call in prepared.items() if call})
    # Half of the products fall away under a causal mask: the papers' convention.
    flops = DIRECTIONS[direction] * (shape.flops / 2 if causal else shape.flops)
    speed = {name: 1e-9 * flops / timing.median for name, timing in taken.items()}
    rows = []
    for name in kernels:
        if name not in taken:
            print(f"{name} {dtype} d {head_dim} n {length}: out of memory", flush=True)
            continue
        rows.append(
            {
                "kernel": name,
                "direction": direction,
                "dtype": dtype,
                "batch": shape.batch,
                "heads": shape.heads,
                "kv_heads": shape.heads,
                "n": length,
                "d": head_dim,
                "causal": causal,
                "ms": round(taken[name].median, 5),
                "spread": round(taken[name].spread, 4),
                "tflops": round(speed[name], 2),
                "peers": {p: round(speed[p], 2) if p in speed else None for p in peers},
                "speedup": {
                    p: round(taken[name].speedup_over(taken[p]), 3) if p in taken else None
                    for p in peers
                },
            }
        )
        others = "  ".join(f"{p} {t}" for p, t in rows[-1]["peers"].items())
        print(
            f"{name} {direction} {dtype} d {head_dim} n {length} {'causal' if causal else 'full'}: "
            f"{rows[-1]['ms']:.3f} ms, {rows[-1]['tflops']} TFLOP/s | {others}",
            flush=True,
        )
    return rows


def _prepared(function, inputs, causal, direction):
    """The call to time, or None: a peer may lack the dtype, or memory run out."""
    try:
        call = timed_call(function, inputs, causal, direction)
        call()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    except FileNotFoundError as error:  # a peer's library that is not at hand
        print(error, flush=True)
        return None
    except RuntimeError as error:
        # How PyTorch says that the one backend it may use does not take these inputs.
        if "No available kernel" not in str(error):
            raise
        return None
    finally:
        torch.cuda.empty_cache()
    return call


def timed_call(function, inputs, causal: bool, direction: str):
    """A function of no arguments that runs the forward pass, the backward pass, or both."""
    if direction == "fwd":
        return lambda: function(*inputs, causal)
    leaves = [x.detach().requires_grad_() for x in inputs]
    grad_output = torch.randn_like(leaves[0])
    if direction == "fwd+bwd":
        return lambda: torch.autograd.grad(function(*leaves, causal), leaves, grad_output)
    output = function(*leaves, causal)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _names(known):
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
