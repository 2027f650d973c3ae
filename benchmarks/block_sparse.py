"""Time block-sparse attention against the fraction of visible blocks, beside FlexAttention.

    python -m benchmarks.block_sparse --experiment block_sparse

One row a pattern and shape: ``pattern, fraction, batch, heads, n, d, dtype, ms, spread, tflops`` (of the
visible blocks), ``dense_ms``, the time of this book's dense kernel, ``flex_ms``, that of FlexAttention with
the same blocks, and ``dense_ratio`` and ``flex_ratio``, how many times faster the block-sparse kernel is:
medians of the ratios within each round. Masks are in blocks of 128 and shared by all heads.
"""

import argparse

import torch
from torch.nn.attention.flex_attention import BlockMask

from benchmarks import contestants
from benchmarks.attention import TOKENS, WIDTH
from instruments import records
from instruments.io_model import AttentionShape
from instruments.timing import time_interleaved
from kernels import block_sparse, flash1

DTYPE, BLOCK_SIZE = "float16", 128
FRACTIONS = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
LENGTHS, HEAD_DIMS = (4096, 16384), (64, 128)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time block-sparse attention.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    rows = []
    for head_dim in HEAD_DIMS:
        for length in LENGTHS:
            for pattern, mask in patterns(length // BLOCK_SIZE).items():
                rows.append(time_pattern(pattern, mask, length, head_dim))
                print(rows[-1], flush=True)
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def patterns(blocks: int) -> dict[str, torch.Tensor]:
    """Random masks of each fraction, as many blocks in every row, and the structured masks."""
    torch.manual_seed(0)
    order = torch.rand(blocks, blocks).argsort(1)
    masks = {f"random 1/{round(1 / s)}": order < round(s * blocks) for s in FRACTIONS}
    return masks | {
        "butterfly": block_sparse.butterfly_mask(blocks, blocks),
        "local": block_sparse.local_mask(blocks, blocks, 2),
        "strided": block_sparse.strided_mask(blocks, blocks, 8),
    }


def time_pattern(pattern: str, mask: torch.Tensor, length: int, head_dim: int) -> dict:
    """One pattern: the block-sparse kernel, the dense one and FlexAttention in the same rounds."""
    batch, heads = TOKENS // length, WIDTH // head_dim
    inputs = contestants.random_inputs(DTYPE, batch, heads, length, head_dim)
    layout = block_sparse.block_layout(mask.cuda(), length, length, block_size=BLOCK_SIZE)
    flex_mask = flex_block_mask(layout)
    flex_attention = contestants.compiled_flex_attention()
    taken = time_interleaved(
        {
            "ours": lambda: block_sparse.attention(*inputs, layout),
            "dense": lambda: flash1.attention(*inputs),
            "flex": lambda: flex_attention(*inputs, block_mask=flex_mask),
        }
    )
    shape = AttentionShape(length, length, head_dim, DTYPE, batch, heads)
    ours = taken["ours"]
    return {
        "pattern": pattern,
        "fraction": layout.fraction,
        "batch": batch,
        "heads": heads,
        "n": length,
        "d": head_dim,
        "dtype": DTYPE,
        "ms": round(ours.median, 5),
        "spread": round(ours.spread, 4),
        "tflops": round(1e-9 * shape.flops * layout.fraction / ours.median, 2),
        "dense_ms": round(taken["dense"].median, 5),
        "flex_ms": round(taken["flex"].median, 5),
        "dense_ratio": round(ours.speedup_over(taken["dense"]), 3),
        "flex_ratio": round(ours.speedup_over(taken["flex"]), 3),
    }


def flex_block_mask(layout: block_sparse.BlockLayout) -> BlockMask:
    """The same blocks for FlexAttention, all full, so that it has no mask to evaluate."""
    return BlockMask.from_kv_blocks(
        torch.zeros_like(layout.counts),
        torch.zeros_like(layout.columns),
        layout.counts,
        layout.columns,
        BLOCK_SIZE=layout.block_size,
    )


if __name__ == "__main__":
    main()
