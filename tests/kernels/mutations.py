"""Bugs planted in the kernels: each must be caught by the checks that every kernel meets.

A mutation is a piece of a module's source and what a tired author might have written there. :func:`load`
imports a copy of a kernel module, with one mutation or none, under another name.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock


@dataclass(frozen=True)
class Mutation:
    """A bug: in the module of this name, ``old`` stands ``times`` times and becomes ``new``."""

    bug: str
    module: str
    old: str
    new: str
    times: int = 1

    def __str__(self) -> str:
        return self.bug

    def apply(self, source: str) -> str:
        """The module's source with the bug.

        Raises:
            ValueError: ``old`` does not stand there as often as expected, so the module has changed.
        """
        found = source.count(self.old)
        if found != self.times:
            raise ValueError(
                f"the mutation {self.bug!r} expects {self.old!r} {self.times} times in {self.module}, "
                f"found it {found} times: adapt the mutation to the module"
            )
        return source.replace(self.old, self.new)


def load(modules: tuple[str, ...], folder: Path, mutation: Mutation | None = None) -> ModuleType:
    """Import copies of modules into ``folder`` and return the last.

    Args:
        modules: the module under test last, before it the modules it imports helpers from. Each copy
            gets its helpers from the copies before it, so a bug in a helper reaches the kernels.
    """
    if mutation and mutation.module not in modules:
        raise ValueError(f"{mutation.module} is not one of {', '.join(modules)}")
    copies = {}
    for name in modules:
        source = Path(importlib.util.find_spec(name).origin).read_text("utf-8")
        if mutation and mutation.module == name:
            source = mutation.apply(source)
        path = folder / f"{name.rpartition('.')[2]}.py"
        path.write_text(source, "utf-8")
        spec = importlib.util.spec_from_file_location(f"copy_of_{path.stem}", path)
        copy = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, copies):
            spec.loader.exec_module(copy)
        copies[name] = copy
    return copies[modules[-1]]


NAIVE = ("kernels.tiles", "kernels.naive")
NAIVE_MUTATIONS = [
    Mutation(
        "no rescale (nothing is rescaled here: the maximum is not subtracted)",
        "kernels.naive",
        "row_max = tl.where(empty, 0.0, row_max)",
        "row_max = tl.where(empty, 0.0, 0.0)",
        times=2,
    ),
    Mutation(
        "mask off by one: a query does not see its own key",
        "kernels.naive",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] < rows[:, None] + (seq_key - seq_query)",
    ),
    Mutation(
        "mask off by one: a query sees the key after its own",
        "kernels.naive",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query) + 1",
    ),
    Mutation(
        "causal mask aligned at the top left",
        "kernels.naive",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] <= rows[:, None]",
    ),
    Mutation(
        "minus infinity minus minus infinity",
        "kernels.naive",
        "row_max = tl.where(empty, 0.0, row_max)",
        "row_max = row_max",
        times=2,
    ),
    Mutation(
        "missing tail mask: keys past the end score 0",
        "kernels.naive",
        'columns, mask=in_row, other=float("-inf"))\n    scores = scores',
        "columns, mask=in_row, other=0.0)\n    scores = scores",
    ),
    Mutation(
        "missing tail mask of a long row",
        "kernels.naive",
        'mask=start + columns < seq_key, other=float("-inf")',
        "mask=start + columns < seq_key, other=0.0",
        times=2,
    ),
    Mutation(
        "stale statistics: the maximum of a long row is that of its last block",
        "kernels.naive",
        "block_max = tl.maximum(block_max, scores.to(tl.float32))",
        "block_max = scores.to(tl.float32)",
    ),
    Mutation(
        "stale statistics: the logsumexp without its maximum",
        "kernels.naive",
        "tl.log(row_sum) + row_max",
        "tl.log(row_sum)",
        times=2,
    ),
]

ONLINE_SOFTMAX = ("kernels.online_softmax",)
ONLINE_SOFTMAX_MUTATIONS = [
    Mutation(
        "no rescale of the running sum",
        "kernels.online_softmax",
        "running_sum = running_sum * rescale + tl.sum",
        "running_sum = running_sum + tl.sum",
    ),
    Mutation(
        "no rescale of the average",
        "kernels.online_softmax",
        "accumulator = accumulator * rescale + tl.sum",
        "accumulator = accumulator + tl.sum",
    ),
    Mutation(
        "no rescale of one part in a merge",
        "kernels.online_softmax",
        "sum_a * rescale_a + sum_b * rescale_b",
        "sum_a * rescale_a + sum_b",
    ),
    Mutation(
        "mask off by one: the last score is not loaded",
        "kernels.online_softmax",
        'tl.load(addresses, mask=columns < length, other=float("-inf"))',
        'tl.load(addresses, mask=columns < length - 1, other=float("-inf"))',
    ),
    Mutation(
        "mask off by one: the last probability is not stored",
        "kernels.online_softmax",
        "probabilities.to(row_ptr.dtype.element_ty), mask=columns < length",
        "probabilities.to(row_ptr.dtype.element_ty), mask=columns < length - 1",
    ),
    Mutation(
        "minus infinity minus minus infinity in the update",
        "kernels.online_softmax",
        'shift = tl.where(new_max == float("-inf"), 0.0, new_max)',
        "shift = new_max",
    ),
    Mutation(
        "minus infinity minus minus infinity in the merge",
        "kernels.online_softmax",
        'shift = tl.where(merged_max == float("-inf"), 0.0, merged_max)',
        "shift = merged_max",
    ),
    Mutation(
        "missing tail mask: columns past the end score 0",
        "kernels.online_softmax",
        'tl.load(addresses, mask=columns < length, other=float("-inf"))',
        "tl.load(addresses, mask=columns < length, other=0.0)",
    ),
    Mutation(
        "stale statistics: the running maximum is never kept",
        "kernels.online_softmax",
        "running_max, running_sum, _, _ = online_softmax_update",
        "_, running_sum, _, _ = online_softmax_update",
        times=2,
    ),
    Mutation(
        "stale statistics: the average keeps its first maximum",
        "kernels.online_softmax",
        "running_max, running_sum, rescale, exponentials = online_softmax_update",
        "_, running_sum, rescale, exponentials = online_softmax_update",
    ),
]

FLASH1 = ("kernels.tiles", "kernels.online_softmax", "kernels.flash1")
HELPER_MUTATIONS = [
    Mutation(
        "no rescale of the running sum",
        "kernels.online_softmax",
        "running_sum = running_sum * rescale + tl.sum",
        "running_sum = running_sum + tl.sum",
    ),
    Mutation(
        "mask off by one: a query does not see its own key",
        "kernels.tiles",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] < rows[:, None] + (seq_key - seq_query)",
    ),
    Mutation(
        "mask off by one: a query sees the key after its own",
        "kernels.tiles",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query) + 1",
    ),
    Mutation(
        "causal mask aligned at the top left",
        "kernels.tiles",
        "columns[None, :] <= rows[:, None] + (seq_key - seq_query)",
        "columns[None, :] <= rows[:, None]",
    ),
    Mutation(
        "minus infinity minus minus infinity",
        "kernels.online_softmax",
        'shift = tl.where(new_max == float("-inf"), 0.0, new_max)',
        "shift = new_max",
    ),
    Mutation(
        "missing tail mask: keys past the end score 0",
        "kernels.tiles",
        "visible = columns[None, :] < seq_key",
        "visible = columns[None, :] >= 0",
    ),
    Mutation(
        "missing tail mask: one key past the end scores 0",
        "kernels.tiles",
        "visible = columns[None, :] < seq_key",
        "visible = columns[None, :] <= seq_key",
    ),
]
"""Bugs in what the tiled kernels share."""

SWAPPED_MUTATIONS = [
    Mutation(
        "no rescale of the output",
        "kernels.flash1",
        "accumulator = accumulator * rescale[:, None]",
        "accumulator = accumulator",
    ),
    Mutation(
        "mask off by one: the loop over the keys stops one tile early",
        "kernels.flash1",
        "start_m + BLOCK_M + seq_key - seq_query)",
        "start_m + BLOCK_M + seq_key - seq_query - BLOCK_N)",
    ),
    Mutation(
        "mask off by one: the loop over the keys stops one key early",
        "kernels.flash1",
        "start_m + BLOCK_M + seq_key - seq_query)",
        "start_m + BLOCK_M - 1 + seq_key - seq_query)",
    ),
    Mutation(
        "minus infinity minus minus infinity: 0 / 0 in a row that saw nothing",
        "kernels.flash1",
        "tl.where(running_sum == 0.0, 1.0, running_sum)",
        "running_sum",
    ),
    Mutation(
        "stale statistics: the running maximum is never kept",
        "kernels.flash1",
        "running_max, running_sum, rescale, exponentials = online_softmax_update",
        "_, running_sum, rescale, exponentials = online_softmax_update",
    ),
    Mutation(
        "stale statistics: the running sum is never kept",
        "kernels.flash1",
        "running_max, running_sum, rescale, exponentials = online_softmax_update",
        "running_max, _, rescale, exponentials = online_softmax_update",
    ),
]
"""Bugs in FlashAttention-1's loop over the keys of a tile of queries."""

PRINTED_MUTATIONS = [
    Mutation(
        "no rescale of the output",
        "kernels.flash1",
        "accumulator * (running_sum * rescale)[:, None]",
        "accumulator * running_sum[:, None]",
    ),
    Mutation(
        "no undoing of the last division",
        "kernels.flash1",
        "accumulator * (running_sum * rescale)[:, None]",
        "accumulator * rescale[:, None]",
    ),
    Mutation(
        "mask off by one: the result is written one tile early",
        "kernels.flash1",
        "if start_n + BLOCK_N < seq_key:",
        "if start_n + 2 * BLOCK_N < seq_key:",
    ),
    Mutation(
        "minus infinity minus minus infinity: 0 / 0 in a row that saw nothing",
        "kernels.flash1",
        "tl.where(new_sum == 0.0, 1.0, new_sum)",
        "new_sum",
    ),
    Mutation(
        "stale statistics: the old maximum is stored",
        "kernels.flash1",
        "running_max_ptr + first_row + rows, new_max",
        "running_max_ptr + first_row + rows, running_max",
    ),
    Mutation(
        "stale statistics: the old sum is stored",
        "kernels.flash1",
        "running_sum_ptr + first_row + rows, new_sum",
        "running_sum_ptr + first_row + rows, running_sum",
    ),
    Mutation(
        "stale statistics: O is not stored between two tiles of keys",
        "kernels.flash1",
        "store_tile(accumulator_head, rows, dims, accumulator, seq_query, HEAD_DIM)",
        "pass",
    ),
]
"""Bugs in FlashAttention-1 as printed."""

BLOCK_SPARSE = (*FLASH1, "kernels.block_sparse")
BLOCK_SPARSE_MUTATIONS = [
    Mutation(
        "no rescale of the output",
        "kernels.block_sparse",
        "accumulator = accumulator * rescale[:, None]",
        "accumulator = accumulator",
    ),
    Mutation(
        "mask off by one: a block on the diagonal counts as full",
        "kernels.block_sparse",
        "(end_column - 1 <= first_row + seq_key - seq_query)",
        "(end_column - 2 <= first_row + seq_key - seq_query)",
    ),
    Mutation(
        "mask off by one: a block with one visible element is dropped",
        "kernels.block_sparse",
        "(first_column <= last_row + seq_key - seq_query)",
        "(first_column < last_row + seq_key - seq_query)",
    ),
    Mutation(
        "minus infinity minus minus infinity: 0 / 0 in a row that saw nothing",
        "kernels.block_sparse",
        "tl.where(running_sum == 0.0, 1.0, running_sum)",
        "running_sum",
    ),
    Mutation(
        "missing tail mask: a ragged block counts as full",
        "kernels.block_sparse",
        "full = (end_column <= seq_key)",
        "full = (first_column <= seq_key)",
    ),
    Mutation(
        "stale statistics: the running maximum is never kept",
        "kernels.block_sparse",
        "running_max, running_sum, rescale, exponentials = online_softmax_update",
        "_, running_sum, rescale, exponentials = online_softmax_update",
    ),
    Mutation(
        "stale statistics: the sum of the full blocks is forgotten",
        "kernels.block_sparse",
        "            running_sum,\n            accumulator,\n",
        "            running_sum * 0 if HIDE else running_sum,\n            accumulator,\n",
    ),
    Mutation(
        "the full blocks are visited twice",
        "kernels.block_sparse",
        "full_tiles if HIDE else 0",
        "0",
    ),
    Mutation(
        "every tile of a block is its first",
        "kernels.block_sparse",
        "block * BLOCK_SIZE + (index % tiles_a_block) * BLOCK_N",
        "block * BLOCK_SIZE",
    ),
]

FLASH2_FORWARD = ("kernels.score_options", "kernels.flash2_forward")
FLASH2_BACKWARD = ("kernels.score_options", "kernels.flash2_backward")
SCORE_OPTIONS_MUTATIONS = [
    Mutation(
        "tiles at the left edge of a window taken as whole",
        "kernels.score_options",
        "tl.cdiv(tl.maximum(stop - 1 - before, 0), BLOCK)",
        "(tl.maximum(stop - 1 - before, 0) // BLOCK)",
    ),
    Mutation(
        "the tile on the diagonal taken as whole",
        "kernels.score_options",
        "tl.minimum(start + after + 1, length) // BLOCK",
        "tl.minimum(start + after + BLOCK, length) // BLOCK",
    ),
    Mutation(
        "the last tile seen is left out",
        "kernels.score_options",
        "tl.cdiv(tl.minimum(stop + after, length), BLOCK), first)",
        "tl.minimum(stop + after, length) // BLOCK, first)",
    ),
    Mutation(
        "a window that is too narrow by one",
        "kernels.score_options",
        "(later >= -rules.before)",
        "(later > -rules.before)",
    ),
    Mutation(
        "a query sees the key after its own",
        "kernels.score_options",
        "(later <= rules.after)",
        "(later <= rules.after + 1)",
    ),
    Mutation(
        "positions aligned at the top left",
        "kernels.score_options",
        "columns - (rows + (rules.seq_key - rules.seq_query))",
        "columns - rows",
    ),
    Mutation(
        "the cap without the scale",
        "kernels.score_options",
        "LOG2_E_CONSTANT * rules.scale / rules.softcap",
        "LOG2_E_CONSTANT / rules.softcap",
    ),
]
FLASH2_FORWARD_MUTATIONS = [
    Mutation(
        "missing tail mask: keys past the end score 0",
        "kernels.score_options",
        "(columns < rules.seq_key) & (later",
        "(later",
    ),
    Mutation(
        "no rescale of the output",
        "kernels.flash2_forward",
        "accumulator = accumulator * rescale[:, None]",
        "accumulator = accumulator",
    ),
    Mutation(
        "dropped weights leave the sum too",
        "kernels.flash2_forward",
        "kept_sum = divisor * (1.0 - dropout) if DROPOUT else divisor",
        "kept_sum = divisor",
    ),
    Mutation(
        "grouped heads read key head h mod kv_heads",
        "kernels.flash2_forward",
        "kv_head = head // heads_per_kv_head",
        "kv_head = head % (heads // heads_per_kv_head)",
    ),
    Mutation(
        "a split of the keys forgets its first tile",
        "kernels.flash2_forward",
        "tl.maximum(bounds[PART], first_tile)",
        "tl.maximum(bounds[PART], first_tile + tl.program_id(1))",
    ),
    Mutation(
        "splits merged with equal weight",
        "kernels.flash2_forward",
        "part * (weight * new_share)[:, None]",
        "part * weight[:, None]",
    ),
    Mutation(
        "the merged logsumexp without its maximum",
        "kernels.flash2_forward",
        "logsumexp = row_max + tl.log2(divisor) * LN_2",
        "logsumexp = tl.log2(divisor) * LN_2",
    ),
]
FLASH2_BACKWARD_MUTATIONS = [
    Mutation(
        "delta left out",
        "kernels.flash2_backward",
        "delta = tl.load(group.delta_ptr + places, mask=rows < end, other=0.0)",
        "delta = tl.zeros_like(shift)",
    ),
    Mutation(
        "the gradient of the logsumexp with the wrong sign",
        "kernels.flash2_backward",
        "delta -= tl.load(grad_logsumexp_ptr",
        "delta += tl.load(grad_logsumexp_ptr",
    ),
    Mutation(
        "the scale forgotten in dK",
        "kernels.flash2_backward",
        "grad_key * scale",
        "grad_key",
    ),
    Mutation(
        "the scale forgotten in dQ",
        "kernels.flash2_backward",
        "grad_query * scale",
        "grad_query",
    ),
    Mutation(
        "only the first head of a group counts",
        "kernels.flash2_backward",
        "for step in range(tiles * heads_per_kv_head):",
        "for step in range(tiles):",
    ),
    Mutation(
        "every head of a group takes the statistics of the first",
        "kernels.flash2_backward",
        "places = member * rules.seq_query + rows",
        "places = rows",
    ),
    Mutation(
        "dropout not replayed in dV",
        "kernels.flash2_backward",
        "weights = tl.where(kept, probabilities, 0.0)",
        "weights = probabilities",
    ),
    Mutation(
        "dropout of a group replayed with the numbers of its first head",
        "kernels.flash2_backward",
        "            batch_head + member,\n",
        "            batch_head,\n",
    ),
    Mutation(
        "the slope of the cap forgotten",
        "kernels.flash2_backward",
        "grad_scores *= 1.0 - (capped / rules.softcap) * (capped / rules.softcap)",
        "grad_scores *= 1.0",
    ),
    Mutation(
        "the roles of before and after not exchanged for keys",
        "kernels.flash2_backward",
        "tiles_seen(position, stop, after, before, seq_query, BLOCK_M)",
        "tiles_seen(position, stop, before, after, seq_query, BLOCK_M)",
    ),
]
