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
        "running_max, running_sum, accumulator = visit_tiles(\n        0,",
        "running_max, _, accumulator = visit_tiles(\n        0,",
    ),
    Mutation(
        "the full blocks are visited twice",
        "kernels.block_sparse",
        "visit_tiles(\n        full_tiles,\n",
        "visit_tiles(\n        0,\n",
    ),
    Mutation(
        "every tile of a block is its first",
        "kernels.block_sparse",
        "block * BLOCK_SIZE + (index % tiles_a_block) * BLOCK_N",
        "block * BLOCK_SIZE",
    ),
]
