"""What may happen to a score between the two products of attention: hidden, capped, its weight dropped.

Positions are aligned at the bottom right: query ``row`` stands at key ``row + seq_key - seq_query``. It
sees the keys from ``before`` positions earlier to ``after`` positions later. ``after = 0`` is a causal
mask, a small ``before`` a sliding window; a number no smaller than both lengths together hides nothing.

The forward and the backward kernels of FlashAttention-2 share these steps, so that both hide, cap and drop
the same.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

import kernels
from kernels.checks import launch_device
from kernels.online_softmax import LOG2_E

# Read by compiled code, so Triton asks for a constexpr.
LOG2_E_CONSTANT = tl.constexpr(LOG2_E)


class Rules(NamedTuple):
    """What holds for every score of a launch: a kernel gathers it from its arguments for its steps."""

    seed_ptr: tl.tensor
    scale: tl.tensor
    softcap: tl.tensor
    dropout: tl.tensor
    before: tl.tensor
    after: tl.tensor
    seq_query: tl.tensor
    seq_key: tl.tensor


@triton.jit
def tiles_seen(start, stop, before, after, length, BLOCK: tl.constexpr):
    """Tiles of the other axis that positions ``start`` to ``stop - 1`` see, as four bounds.

    Tiles between the second and the third bound are seen whole, by every position; those between the
    first and the second, and between the third and the fourth, only in part. All others are not seen.
    """
    first = tl.maximum(start - before, 0) // BLOCK
    last = tl.maximum(tl.cdiv(tl.minimum(stop + after, length), BLOCK), first)
    whole_first = tl.minimum(tl.cdiv(tl.maximum(stop - 1 - before, 0), BLOCK), last)
    whole_first = tl.maximum(whole_first, first)
    whole_last = tl.maximum(tl.minimum(start + after + 1, length) // BLOCK, whole_first)
    return first, whole_first, tl.minimum(whole_last, last), last


@triton.jit
def is_visible(rows, columns, rules):
    """Whether the queries ``rows`` see the keys ``columns``; their shapes are broadcast."""
    later = columns - (rows + (rules.seq_key - rules.seq_query))
    return (columns < rules.seq_key) & (later <= rules.after) & (later >= -rules.before)


@triton.jit
def cap_scores(scores, rules):
    """softcap * tanh(scores * scale / softcap), which lies between -softcap and softcap."""
    # tanh of the magnitude by the hardware's exponential, which cannot overflow here.
    small = tl.exp2(tl.abs(scores) * (-2.0 * LOG2_E_CONSTANT * rules.scale / rules.softcap))
    magnitude = rules.softcap * (1.0 - small) / (1.0 + small)
    return tl.where(scores < 0, -magnitude, magnitude)


@triton.jit
def is_kept(batch_head, rows, columns, rules):
    """Which weights dropout keeps; the shapes of rows and columns are broadcast.

    Philox makes the random number of an element from the seed and the element's own number alone. So the
    backward pass, which visits the tiles in another order, draws the same ones again.
    """
    element = (batch_head * rules.seq_query + rows).to(tl.int64) * rules.seq_key + columns
    return tl.rand(tl.load(rules.seed_ptr), element) >= rules.dropout


@triton.jit
def dropout_mask_kernel(
    seed_ptr, kept_ptr, seq_query, seq_key, dropout, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A tile of the mask of one head."""
    batch_head = tl.program_id(0).to(tl.int64)
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    columns = (tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    # Of the rules only these four matter here.
    rules = Rules(seed_ptr, 1.0, 0.0, dropout, 0, 0, seq_query, seq_key)
    kept = is_kept(batch_head, rows, columns, rules)
    place = (batch_head * seq_query + rows).to(tl.int64) * seq_key + columns
    tl.store(kept_ptr + place, kept, mask=(rows < seq_query) & (columns < seq_key))


def dropout_mask(
    seed: torch.Tensor, dropout: float, batch: int, heads: int, seq_query: int, seq_key: int
) -> torch.Tensor:
    """What a seed keeps, boolean, ``(batch, heads, seq_query, seq_key)``: for tests and small examples.

    Args:
        seed: one integer, int64, on the device where kernels run.
        dropout: the probability of dropping a weight, from 0 to less than 1.
    """
    kept = torch.empty(batch, heads, seq_query, seq_key, dtype=torch.bool, device=seed.device)
    if kept.numel():
        size = 64 if kernels.INTERPRETED else 32
        grid = (batch * heads, triton.cdiv(seq_query, size), triton.cdiv(seq_key, size))
        with launch_device(seed):
            dropout_mask_kernel[grid](
                seed, kept, seq_query, seq_key, dropout, BLOCK_M=size, BLOCK_N=size
            )
    return kept
