"""The error of FP8 attention, and what each idea takes off it: Table 3 of FlashAttention-3, and more.

    python -m benchmarks.fp8_error --experiment fp8_error

Contestants: ``eager``, standard attention in float16; ``fp8``, all ideas, as :mod:`kernels.fp8_reference`
emulates them; and ``fp8`` without some of them:

* ``per_tensor``: one scale a tensor, and no rotation; ``no_block_scales``; ``no_rotation``;
* ``weights_to_one``: weights are not raised before they are rounded;
* ``one_level``: products with V are added in few bits throughout, not tile by tile.

On a Hopper GPU also ``kernel``, :func:`kernels.fp8.attention` itself, and where its library is at hand
``fa3_fp8``, FlashAttention-3's with one scale a tensor. Everything else runs on any device.

Inputs, all rounded to float16, see :data:`DISTRIBUTIONS`: ``outliers`` are the paper's. Queries are drawn
alike and do not know of each other, so some of them stand for all.

One row a contestant, distribution, length and head dimension: ``contestant, distribution, dtype, batch,
heads, queries, n, d, causal, seeds``, ``rmse``, the root of the mean square error over all draws,
``rmse_of_a_seed``, for each, ``max_error``, and ``output_rms``, how large the exact output is.
"""

import argparse
import functools
from collections.abc import Callable

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch

from benchmarks import contestants, flash_attention_3
from instruments import records
from kernels import fp8, fp8_hopper, fp8_reference, hadamard, reference

DTYPE, BATCH, HEADS, QUERIES = "float16", 1, 4, 512
SEEDS = (0, 1, 2)
LENGTHS, HEAD_DIMS = (1024, 2048, 4096, 8192, 16384), (64, 128, 256)
LENGTH, HEAD_DIM = 8192, 128
"""Of the paper's table, as far as it says; others are measured for ``outliers`` only."""

OUTLIERS, OUTLIER_SCALE = 1e-3, 10.0
CHANNELS, CHANNEL_SCALE = 4, 20.0
SWITCHES = {
    "fp8": {},
    "per_tensor": {"per": "tensor", "seed": None},
    "no_block_scales": {"per": "tensor"},
    "no_rotation": {"seed": None},
    "weights_to_one": {"weight_bits": 0},
    "one_level": {"accumulator": "one level"},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the error of attention in FP8.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    problems = [(name, LENGTH, HEAD_DIM) for name in DISTRIBUTIONS]
    problems += [("outliers", n, HEAD_DIM) for n in LENGTHS if n != LENGTH]
    problems += [("outliers", LENGTH, d) for d in HEAD_DIMS if d != HEAD_DIM]
    rows = [row for problem in problems for row in measure(*problem, all_contestants())]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def all_contestants() -> tuple[str, ...]:
    """Those that can run here."""
    names = ("eager", *SWITCHES)
    if kernels.device().type == "cuda" and torch.cuda.get_device_capability() == (9, 0):
        names += ("kernel",) + ("fa3_fp8",) * flash_attention_3.at_hand()
    return names


def measure(distribution: str, length: int, head_dim: int, names: tuple[str, ...]) -> list[dict]:
    """One row for each contestant."""
    errors: dict[str, list[reference.Errors]] = {name: [] for name in names}
    sizes = []
    for seed in SEEDS:
        inputs = draw(distribution, seed, length, head_dim)
        exact = reference.attention(*inputs)
        sizes.append(exact.square().mean().item())
        for name in names:
            errors[name].append(reference.errors(contestant(name)(*inputs), exact))
    rows = []
    for name, of_seeds in errors.items():
        each = [error.root_mean_square for error in of_seeds]
        rows.append(
            {
                "contestant": name,
                "distribution": distribution,
                "dtype": DTYPE,
                "batch": BATCH,
                "heads": HEADS,
                "queries": QUERIES,
                "n": length,
                "d": head_dim,
                "causal": False,
                "seeds": len(SEEDS),
                "rmse": _root_mean_square(each),
                "rmse_of_a_seed": each,
                "max_error": max(error.maximum for error in of_seeds),
                "output_rms": _root_mean_square([size**0.5 for size in sizes]),
            }
        )
        print(f"{distribution} n {length} d {head_dim} {name}: {rows[-1]['rmse']:.3e}", flush=True)
    return rows


def contestant(name: str) -> Callable:
    """A function of query, key and value."""
    if name == "eager":
        return functools.partial(contestants.peer("eager"), causal=False)
    if name == "kernel":
        return fp8.attention
    if name == "fa3_fp8":
        return _per_tensor_library

    def emulated(query, key, value):
        switches = {"accumulator": "two levels"} | SWITCHES[name]
        block = fp8_hopper.shipped_design(query.shape[-1]).block_n
        return fp8_reference.attention(query, key, value, key_block=block, **switches)

    return emulated


def _per_tensor_library(query, key, value):
    """FlashAttention-3's library, which wants inputs in e4m3 and a scale a head; here one a tensor."""
    scales = [x.abs().amax().float() / 448 for x in (query, key, value)]
    rounded = tuple(
        (x / scale).to(torch.float8_e4m3fn)
        for x, scale in zip((query, key, value), scales, strict=True)
    )
    rounded = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in rounded)
    of_heads = tuple(scale.expand(BATCH, HEADS).contiguous() for scale in scales)
    return flash_attention_3.attention(*rounded, False, of_heads)


def draw(distribution: str, seed: int, length: int, head_dim: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value: the same on every machine, because they are drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((BATCH, HEADS, rows, head_dim) for rows in (QUERIES, length, length))
    drawn = DISTRIBUTIONS[distribution](
        [torch.randn(s, generator=generator) for s in shapes], generator
    )
    return tuple(x.to(getattr(torch, DTYPE)).to(kernels.device()) for x in drawn)


def _gaussian(tensors, generator):
    return tensors


def _outliers(tensors, generator):
    """To one element in a thousand another draw is added, with a standard deviation of 10."""

    def with_outliers(tensor):
        chosen = torch.rand(tensor.shape, generator=generator) < OUTLIERS
        return tensor + OUTLIER_SCALE * torch.randn(tensor.shape, generator=generator) * chosen

    return [with_outliers(x) for x in tensors]


def _heavy_tails(tensors, generator):
    """Student's t with 3 degrees of freedom, which has a variance, of 3, and no more moments."""

    def divided(tensor):
        squares = torch.randn((3, *tensor.shape), generator=generator).square()
        return tensor / squares.mean(0).sqrt()

    return [divided(x) for x in tensors]


def _channels(tensors, generator):
    """Some dimensions are 20 times as large, the same in Q and in K for all rows, as in language models."""
    query, key, value = tensors
    large = _some_large(query, generator)
    return [*_scores_as_usual(query, key, large, large), value]


def _other_channels(tensors, generator):
    """As ``channels``, but those that are large in Q are not so in K."""
    query, key, value = tensors
    large = _some_large(query, generator)
    return [*_scores_as_usual(query, key, large, large.roll(1)), value]


def _some_large(tensor, generator):
    """How large each dimension is: 1, or 20 for some that are no neighbours."""
    large = torch.ones(tensor.shape[-1])
    large[2 * torch.randperm(len(large) // 2, generator=generator)[:CHANNELS]] = CHANNEL_SCALE
    return large


def _scores_as_usual(query, key, of_query, of_key):
    """Query and key, so large in each dimension; but together so that scores vary as those of N(0, 1)."""
    smaller = (of_query * of_key).square().mean() ** -0.25
    return query * of_query * smaller, key * of_key * smaller


def _adversarial(tensors, generator):
    """Rows that the rotation turns into outliers: one of its own rows is added, ten times as long.

    Whoever knows the signs can do so; this is why they are drawn.
    """
    query, key, value = tensors
    size = query.shape[-1]
    signs = hadamard.random_signs(size, 0).cpu()
    unit = torch.zeros(size)
    unit[0] = 1.0
    back = fp8_reference.rotate(unit, torch.ones(size)) * signs
    return [query + OUTLIER_SCALE * back, key + OUTLIER_SCALE * back, value]


DISTRIBUTIONS = {
    "outliers": _outliers,
    "gaussian": _gaussian,
    "heavy_tails": _heavy_tails,
    "channels": _channels,
    "other_channels": _other_channels,
    "adversarial": _adversarial,
}
"""How query, key and value come about from draws of N(0, 1)."""


def _root_mean_square(numbers: list[float]) -> float:
    return (sum(number**2 for number in numbers) / len(numbers)) ** 0.5


if __name__ == "__main__":
    main()
