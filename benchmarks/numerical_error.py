"""The error of attention in few bits where some inputs are large: Table 3 of FlashAttention-3.

    python -m benchmarks.numerical_error --experiment numerical_error

Query, key and value are drawn from N(0, 1), and to one element in a thousand another draw from N(0, 100) is
added: a standard deviation of 10, as the activations of language models have outliers. All contestants
get the same tensors in the dtype, and are compared with attention of those in float64. The paper names no
sizes; ours are below.

One row a contestant and head dimension: ``contestant, dtype, batch, heads, n, d, causal``, ``seeds``, how
many draws, ``rmse``, the root of the mean square error over all of them, ``rmse_of_a_seed``, for each,
``max_error``, and ``output_rms``, how large the exact output is. ``eager`` is standard attention, with S
and P in the dtype.
"""

import argparse

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch

from benchmarks import contestants, flash_attention_3
from instruments import records
from kernels import reference

DTYPE, BATCH, HEADS, LENGTH = "float16", 1, 4, 8192
HEAD_DIMS, SEEDS = (64, 128), (0, 1, 2)
OUTLIERS, OUTLIER_SCALE = 1e-3, 10.0
CONTESTANTS = ("eager", "math", "efficient", "fa2", "cudnn", "fa3", "flash1", "flash2", "flash3")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the error where some inputs are large.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    if kernels.device().type != "cuda":
        raise SystemExit("the kernels are compared on a Hopper GPU, and PyTorch sees no GPU here")
    rows = [row for head_dim in HEAD_DIMS for row in measure(head_dim, CONTESTANTS)]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def measure(head_dim: int, names: tuple[str, ...]) -> list[dict]:
    """One row for each contestant that can run here."""
    here = [name for name in names if name != "fa3" or flash_attention_3.at_hand()]
    errors: dict[str, list[reference.Errors]] = {name: [] for name in here}
    sizes = []
    for seed in SEEDS:
        inputs = with_outliers(seed, (BATCH, HEADS, LENGTH, head_dim))
        exact = reference.attention(*inputs)
        sizes.append(exact.square().mean().item())
        for name in here:
            known = contestants.kernel if name in contestants.KERNELS else contestants.peer
            output = known(name)(*contestants.laid_out(name, inputs), False)
            errors[name].append(reference.errors(output, exact))
    rows = []
    for name, of_seeds in errors.items():
        each = [error.root_mean_square for error in of_seeds]
        rows.append(
            {
                "contestant": name,
                "dtype": DTYPE,
                "batch": BATCH,
                "heads": HEADS,
                "n": LENGTH,
                "d": head_dim,
                "causal": False,
                "seeds": len(SEEDS),
                "rmse": _root_mean_square(each),
                "rmse_of_a_seed": each,
                "max_error": max(error.maximum for error in of_seeds),
                "output_rms": (sum(sizes) / len(sizes)) ** 0.5,
            }
        )
        print(f"d {head_dim} {name}: {rows[-1]['rmse']:.3e} (max {rows[-1]['max_error']:.1e})")
    return rows


def with_outliers(seed: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Query, key and value."""
    device = kernels.device()
    generator = torch.Generator(device).manual_seed(seed)

    def draw() -> torch.Tensor:
        usual, large = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
        chosen = torch.rand(shape, generator=generator, device=device) < OUTLIERS
        return (usual + OUTLIER_SCALE * large * chosen).to(getattr(torch, DTYPE))

    return draw(), draw(), draw()


def _root_mean_square(numbers: list[float]) -> float:
    return (sum(number**2 for number in numbers) / len(numbers)) ** 0.5


if __name__ == "__main__":
    main()
