"""What FlashAttention-2's savings beside the matrix products are worth: its forward loop without each.

    python -m benchmarks.softmax_cost --experiment softmax_cost

Four kernels that compute the same attention. Their loop is that of
:func:`kernels.flash2_forward.forward_kernel` for whole tiles, with its tile sizes, and they are kept small
by what they leave out: masks, options, and lengths that are no multiple of a tile.

* ``once``: as chapter 5 has it. O is divided by the sum after the last tile, and the scale goes into the
  base-2 exponential's own factor.
* ``unfolded``: the scores are scaled by themselves, so that base 2 takes one more multiplication a score.
* ``natural``: the same with ``tl.exp``, which makes that multiplication itself. For results below 2^-126,
  which ``tl.exp2`` takes for zero, it also compares and scales every argument and every result.
* ``each_step``: O is kept normalised, as Algorithm 1 of FlashAttention prints it, at the price of one more
  multiplication of O a tile.

One row a kernel and head dimension: ``kernel, dtype, batch, heads, n, d, causal, ms, spread, tflops``,
``over_once``, the speed relative to ``once`` (the median of the ratios within each round), ``block_m,
block_n, warps``, and ``instructions``: how many a warp issues for one tile, by name, and ``all`` of
them, in the machine code for this GPU's architecture.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

# Before Triton: this decides whether its interpreter is used.
import kernels

# isort: split
import torch
import triton
import triton.language as tl

from benchmarks.attention import TOKENS, WIDTH
from benchmarks.contestants import random_inputs
from instruments import compile_report, records
from instruments.io_model import AttentionShape
from instruments.timing import time_interleaved
from kernels.configurations import POINTER_TYPES, Configuration
from kernels.flash2_forward import architecture, forward_blocks
from kernels.online_softmax import online_softmax_update
from kernels.score_options import LOG2_E_CONSTANT
from kernels.tiles import load_tile, store_tile

DTYPE, LENGTH, HEAD_DIMS = "float16", 4096, (64, 128)
COUNTED = ("FADD", "FMUL", "FFMA", "FMNMX", "MUFU", "HMMA", "HGMMA")
"""Additions, multiplications, both in one, maxima; exponentials and reciprocals; matrix products."""


@triton.jit
def places(query_ptr, key_ptr, value_ptr, seq, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr):
    """Where the program's head begins in each matrix, the tile's first row, and its queries."""
    blocks_m = seq // BLOCK_M
    start_m = (tl.program_id(0) % blocks_m) * BLOCK_M
    head = (tl.program_id(0) // blocks_m).to(tl.int64) * seq * HEAD_DIM
    query_tile = load_tile(
        query_ptr + head,
        start_m,
        tl.arange(0, BLOCK_M),
        tl.arange(0, HEAD_DIM),
        (0, 0, HEAD_DIM, 1),
        start_m + BLOCK_M,
        HEAD_DIM,
    )
    return head, start_m, query_tile, key_ptr + head, value_ptr + head


@triton.jit
def load_keys(key_head, value_head, start_n, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile of keys and one of values, with no mask."""
    in_n, dims = tl.arange(0, BLOCK_N), tl.arange(0, HEAD_DIM)
    end, strides = start_n + BLOCK_N, (0, 0, HEAD_DIM, 1)
    key_tile = load_tile(key_head, start_n, in_n, dims, strides, end, HEAD_DIM)
    return key_tile, load_tile(value_head, start_n, in_n, dims, strides, end, HEAD_DIM)


@triton.jit
def nothing_yet(HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr):
    """Maximum, sum and output of rows that have seen no key."""
    running_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    return running_max, running_sum, tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)


@triton.jit
def write(output_ptr, head, start_m, output, seq, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr):
    """The tile's output."""
    rows, dims = start_m + tl.arange(0, BLOCK_M), tl.arange(0, HEAD_DIM)
    store_tile(output_ptr + head, rows, dims, output, seq, HEAD_DIM)


@triton.jit
def once_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    scale,
    seq,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Chapter 5's loop: base 2 with the scale in its factor, and one division at the end."""
    head, start_m, query_tile, key_head, value_head = places(
        query_ptr, key_ptr, value_ptr, seq, HEAD_DIM, BLOCK_M
    )
    running_max, running_sum, accumulator = nothing_yet(HEAD_DIM, BLOCK_M)
    scale_log2 = scale * LOG2_E_CONSTANT
    for start_n in range(0, seq, BLOCK_N):
        key_tile, value_tile = load_keys(key_head, value_head, start_n, HEAD_DIM, BLOCK_N)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        running_max, running_sum, rescale, weights = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
    accumulator = accumulator / running_sum[:, None]
    write(output_ptr, head, start_m, accumulator, seq, HEAD_DIM, BLOCK_M)


@triton.jit
def unfolded_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    scale,
    seq,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The scores scaled by themselves; base 2 asks for a second factor."""
    head, start_m, query_tile, key_head, value_head = places(
        query_ptr, key_ptr, value_ptr, seq, HEAD_DIM, BLOCK_M
    )
    running_max, running_sum, accumulator = nothing_yet(HEAD_DIM, BLOCK_M)
    for start_n in range(0, seq, BLOCK_N):
        key_tile, value_tile = load_keys(key_head, value_head, start_n, HEAD_DIM, BLOCK_N)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        weights = tl.exp2((scores - new_max[:, None]) * LOG2_E_CONSTANT)
        rescale = tl.exp2((running_max - new_max) * LOG2_E_CONSTANT)
        running_sum = running_sum * rescale + tl.sum(weights, axis=1)
        running_max = new_max
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
    accumulator = accumulator / running_sum[:, None]
    write(output_ptr, head, start_m, accumulator, seq, HEAD_DIM, BLOCK_M)


@triton.jit
def natural_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    scale,
    seq,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The scores scaled by themselves, and Triton's exponential to base e."""
    head, start_m, query_tile, key_head, value_head = places(
        query_ptr, key_ptr, value_ptr, seq, HEAD_DIM, BLOCK_M
    )
    running_max, running_sum, accumulator = nothing_yet(HEAD_DIM, BLOCK_M)
    for start_n in range(0, seq, BLOCK_N):
        key_tile, value_tile = load_keys(key_head, value_head, start_n, HEAD_DIM, BLOCK_N)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_max[:, None])
        rescale = tl.exp(running_max - new_max)
        running_sum = running_sum * rescale + tl.sum(weights, axis=1)
        running_max = new_max
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee"
        )
    accumulator = accumulator / running_sum[:, None]
    write(output_ptr, head, start_m, accumulator, seq, HEAD_DIM, BLOCK_M)


@triton.jit
def each_step_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    scale,
    seq,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O normalised after every tile: it is always the attention over the keys so far."""
    head, start_m, query_tile, key_head, value_head = places(
        query_ptr, key_ptr, value_ptr, seq, HEAD_DIM, BLOCK_M
    )
    running_max, running_sum, output = nothing_yet(HEAD_DIM, BLOCK_M)
    scale_log2 = scale * LOG2_E_CONSTANT
    for start_n in range(0, seq, BLOCK_N):
        key_tile, value_tile = load_keys(key_head, value_head, start_n, HEAD_DIM, BLOCK_N)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee")
        running_max, new_sum, rescale, weights = online_softmax_update(
            scores, running_max, running_sum, scale_log2
        )
        # Undo the last division, add, divide again; one reciprocal a row serves all its columns.
        output = output * (running_sum * rescale)[:, None]
        output = tl.dot(weights.to(value_tile.dtype), value_tile, output, input_precision="ieee")
        output = output * (1.0 / new_sum)[:, None]
        running_sum = new_sum
    write(output_ptr, head, start_m, output, seq, HEAD_DIM, BLOCK_M)


KERNELS = {
    "once": once_kernel,
    "unfolded": unfolded_kernel,
    "natural": natural_kernel,
    "each_step": each_step_kernel,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the forward loop without its savings.")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--experiment", help="name of the record")
    wanted.add_argument(
        "--instructions", type=int, metavar="ARCH", help="time nothing, print what is issued on it"
    )
    chosen = parser.parse_args()
    if chosen.instructions:
        print(json.dumps(list(count_here(chosen.instructions))))
        return
    if not torch.cuda.is_available():
        raise SystemExit("the kernels are timed on a CUDA GPU, and PyTorch sees none here")
    counted = count_instructions(architecture(torch.empty(0, device="cuda")))
    rows = [row for head_dim in HEAD_DIMS for row in time_kernels(head_dim, counted)]
    print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))


def time_kernels(head_dim: int, counted: list[dict]) -> list[dict]:
    """One row for each kernel, all timed in the same rounds."""
    batch, heads = TOKENS // LENGTH, WIDTH // head_dim
    inputs = random_inputs(DTYPE, batch, heads, LENGTH, head_dim)
    blocks = forward_blocks(inputs[0].dtype, head_dim, architecture(inputs[0]))
    taken = time_interleaved(
        {name: functools.partial(attention, name, *inputs, blocks) for name in KERNELS}
    )
    flops = AttentionShape(LENGTH, LENGTH, head_dim, DTYPE, batch, heads).flops
    rows = []
    for name, timing in taken.items():
        (code,) = (c for c in counted if (c["kernel"], c["d"]) == (name, head_dim))
        rows.append(
            {
                "kernel": name,
                "dtype": DTYPE,
                "batch": batch,
                "heads": heads,
                "n": LENGTH,
                "d": head_dim,
                "causal": False,
                "ms": round(timing.median, 5),
                "spread": round(timing.spread, 4),
                "tflops": round(1e-9 * flops / timing.median, 2),
                "over_once": round(timing.speedup_over(taken["once"]), 4),
                **code,
            }
        )
        print(rows[-1], flush=True)
    return rows


def attention(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: tuple[dict, dict],
) -> torch.Tensor:
    """Full attention by one of the kernels.

    Args:
        query, key, value: contiguous, of one shape ``(batch, heads, seq, head_dim)``; ``seq`` is a multiple
            of both tile sizes, ``head_dim`` a power of two.
        blocks: tile sizes and launch options, as :func:`kernels.flash2_forward.forward_blocks` has them.
    """
    batch, heads, seq, head_dim = query.shape
    sizes, options = tiles(blocks)
    output = torch.empty_like(query)
    KERNELS[name][(batch * heads * (seq // sizes["BLOCK_M"]),)](
        query, key, value, output, head_dim**-0.5, seq, HEAD_DIM=head_dim, **sizes, **options
    )
    return output


def tiles(blocks: tuple[dict, dict]) -> tuple[dict, dict]:
    """Without BLOCK_D, which is HEAD_DIM here."""
    sizes, options = blocks
    return {name: sizes[name] for name in ("BLOCK_M", "BLOCK_N")}, options


def configurations(arch: int) -> Iterator[tuple[str, Configuration]]:
    """Each kernel's name and form at each head dimension, as :func:`attention` launches it."""
    dtype = getattr(torch, DTYPE)
    pointers = ("query_ptr", "key_ptr", "value_ptr", "output_ptr")
    types = dict.fromkeys(pointers, POINTER_TYPES[dtype]) | {"scale": "fp32", "seq": "i32x16"}
    for head_dim in HEAD_DIMS:
        sizes, options = tiles(forward_blocks(dtype, head_dim, arch))
        constants = {"HEAD_DIM": head_dim, **sizes}
        for name, kernel in KERNELS.items():
            label = f"{DTYPE}, head_dim {head_dim}"
            yield name, Configuration(label, kernel, types, constants, options, (arch,))


def count_instructions(arch: int) -> list[dict]:
    """For each kernel and head dimension: ``kernel, d, block_m, block_n, warps, instructions``.

    Counted in a process of its own where this one runs kernels through the CPU interpreter, which cannot
    compile.
    """
    if not kernels.INTERPRETED:
        return list(count_here(arch))
    command = [sys.executable, "-m", "benchmarks.softmax_cost", "--instructions", str(arch)]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        cwd=records.ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for sm_{arch} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def count_here(arch: int) -> Iterator[dict]:
    """The same in this process, in which Triton must be able to compile."""
    for name, configuration in configurations(arch):
        compiled = compile_report.compile_configuration(configuration, arch)
        loop = loop_of_products(compiled.asm["sass"])
        counts, constants = Counter(loop), configuration.constants
        yield {
            "kernel": name,
            "d": constants["HEAD_DIM"],
            "block_m": constants["BLOCK_M"],
            "block_n": constants["BLOCK_N"],
            "warps": configuration.options["num_warps"],
            "instructions": {each: counts[each] for each in COUNTED} | {"all": len(loop)},
        }


def loop_of_products(machine_code: str) -> list[str]:
    """Names of the instructions in the loop that multiplies matrices, in their order."""
    names, labels, loops = [], {}, []
    for line in machine_code.splitlines():
        if label := re.match(r"\W*(LBB\d+):", line):
            labels[label[1]] = len(names)
        # Lines such as: --:-:-:-:1 <tab> @!P0 FADD R12, R13, R14;
        if instruction := re.search(r"\t(?:@!?U?P\w+ )?([A-Z]\w*)(.*)", line):
            name, operands = instruction.groups()
            names.append(name)
            start = labels.get(operands.strip(" ;")) if name == "BRA" else None
            # A branch to an earlier label closes a loop.
            if start is not None and {"HMMA", "HGMMA"} & set(names[start:]):
                loops.append(names[start:])
    if len(loops) != 1:
        raise ValueError(f"expected 1 loop that multiplies matrices, found {len(loops)}")
    return loops[0]


if __name__ == "__main__":
    main()
