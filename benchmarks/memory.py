"""How much memory attention takes as the sequence grows, up to the length that no longer fits.

    python -m benchmarks.memory --kernels naive --peers eager,fa2 --experiment naive_memory

One row a kernel or peer and length: ``contestant, direction, n, batch, heads, d, dtype, causal,
peak_bytes``, the most the GPU held at once, inputs and output included; null where memory ran out.
``gpu_bytes`` is what the GPU has.
"""

import argparse

import torch

from benchmarks import contestants
from benchmarks.attention import DIRECTIONS, _integers, _names, timed_call
from instruments import records

DTYPE, HEAD_DIM = "float16", 64


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the memory attention holds.")
    parser.add_argument("--kernels", type=_names(contestants.KERNELS), required=True)
    parser.add_argument("--peers", type=_names(contestants.PEERS), default=[])
    parser.add_argument("--lengths", type=_integers, default=[2**i for i in range(10, 18)])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--direction", choices=DIRECTIONS, default="fwd")
    parser.add_argument("--experiment", required=True, help="name of the record")
    chosen = parser.parse_args()
    entrants = {name: contestants.kernel(name) for name in chosen.kernels}
    entrants |= {name: contestants.peer(name) for name in chosen.peers}
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    rows = []
    for name, function in entrants.items():
        for length in chosen.lengths:
            shape = (chosen.batch, chosen.heads, length, HEAD_DIM)
            peak = peak_bytes(function, shape, chosen.direction)
            rows.append(
                {
                    "contestant": name,
                    "direction": chosen.direction,
                    "n": length,
                    "batch": chosen.batch,
                    "heads": chosen.heads,
                    "d": HEAD_DIM,
                    "dtype": DTYPE,
                    "causal": False,
                    "peak_bytes": peak,
                    "gpu_bytes": gpu_bytes,
                }
            )
            print(name, length, "out of memory" if peak is None else f"{peak:,} bytes", flush=True)
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def peak_bytes(function, shape: tuple[int, int, int, int], direction: str) -> int | None:
    """The most memory held during one call, or None where it runs out."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        inputs = contestants.random_inputs(DTYPE, *shape)
        timed_call(function, inputs, False, direction)()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
