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

FLASH3 = ("kernels.flash3_pipeline", "kernels.flash3_kernel")
FLASH3_MUTATIONS = [
    Mutation(
        "no wait for the queries",
        "kernels.flash3_kernel",
        "        wait_full(shared.queries, round * CONSUMERS + INDEX)\n",
        "",
    ),
    Mutation(
        "no wait for the first tile of keys",
        "kernels.flash3_kernel",
        "        wait_full(shared.pairs, use)\n        if PINGPONG:\n",
        "        if PINGPONG:\n",
    ),
    Mutation(
        "no wait for the tiles of a step",
        "kernels.flash3_kernel",
        "    use = work.use + step\n    wait_full(shared.pairs, use)\n",
        "    use = work.use + step\n",
    ),
    Mutation(
        "no wait for the last tile of values",
        "kernels.flash3_kernel",
        "        wait_full(shared.pairs, use - 1)\n",
        "",
    ),
    Mutation(
        "a wait, under the product, for the next step, whose tiles may need this one's slot",
        "kernels.flash3_kernel",
        "        wait_full(shared.pairs, use)\n    accumulator",
        "        wait_full(shared.pairs, use + 1)\n    accumulator",
    ),
    Mutation(
        "a producer that does not wait for an empty slot of the queries",
        "kernels.flash3_pipeline",
        "    wait_empty(shared.queries, use)\n",
        "",
    ),
    Mutation(
        "a producer that does not wait for an empty slot of keys and values",
        "kernels.flash3_pipeline",
        "    wait_empty(shared.pairs, use)\n",
        "",
    ),
    Mutation(
        "wrong phase of full: its parity changes at every use",
        "kernels.flash3_pipeline",
        "mbarrier.wait(ring.full.index(use % SLOTS), (use // SLOTS) & 1)",
        "mbarrier.wait(ring.full.index(use % SLOTS), use & 1)",
    ),
    Mutation(
        "wrong phase of empty: the first wait is for a release",
        "kernels.flash3_pipeline",
        "mbarrier.wait(ring.empty.index(use % SLOTS), (use // SLOTS + 1) & 1)",
        "mbarrier.wait(ring.empty.index(use % SLOTS), (use // SLOTS) & 1)",
    ),
    Mutation(
        "wrong slot: a release is of the next",
        "kernels.flash3_pipeline",
        "mbarrier.arrive(ring.empty.index(use % SLOTS), count=1)",
        "mbarrier.arrive(ring.empty.index((use + 1) % SLOTS), count=1)",
    ),
    Mutation(
        "wrong slot: tiles are taken from the next",
        "kernels.flash3_pipeline",
        "tiles.index(use % SLOTS).reshape",
        "tiles.index((use + 1) % SLOTS).reshape",
    ),
    Mutation(
        "wrong phase in the second round: the uses begin again",
        "kernels.flash3_kernel",
        "        use += work.tiles + 1\n        if APART:",
        "        if APART:",
    ),
    Mutation(
        "wrong phase in the second round: the use that has only values is not counted",
        "kernels.flash3_kernel",
        "        use += work.tiles + 1\n",
        "        use += work.tiles\n",
        times=2,
    ),
    Mutation(
        "early release: of the first tile of keys before its product is done",
        "kernels.flash3_kernel",
        "        scores = warpgroup_mma_wait(0, deps=[scores])\n"
        "        finish(0, work, given, shared, SPECIALIZED)\n",
        "        finish(0, work, given, shared, SPECIALIZED)\n"
        "        scores = warpgroup_mma_wait(0, deps=[scores])\n",
    ),
    Mutation(
        "early release: of keys and values when only the keys' product is done",
        "kernels.flash3_kernel",
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n"
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n"
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n",
    ),
    Mutation(
        "early release: of the last tile of values before its product is done",
        "kernels.flash3_kernel",
        "        accumulator = warpgroup_mma_wait(0, deps=[accumulator])\n"
        "        finish(work.tiles, work, given, shared, SPECIALIZED)\n",
        "        finish(work.tiles, work, given, shared, SPECIALIZED)\n"
        "        accumulator = warpgroup_mma_wait(0, deps=[accumulator])\n",
    ),
    Mutation(
        "early release: of the queries through whose slot the output has yet to leave",
        "kernels.flash3_kernel",
        "        if APART:\n            release(",
        "        if True:\n            release(",
    ),
    Mutation(
        "missing release of the first tile of keys",
        "kernels.flash3_kernel",
        "        finish(0, work, given, shared, SPECIALIZED)\n",
        "",
    ),
    Mutation(
        "missing release of the tiles of a step",
        "kernels.flash3_kernel",
        "    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)\n",
        "",
    ),
    Mutation(
        "missing release of the last tile of values",
        "kernels.flash3_kernel",
        "        finish(work.tiles, work, given, shared, SPECIALIZED)\n",
        "",
    ),
    Mutation(
        "missing release of the queries",
        "kernels.flash3_kernel",
        "        if APART:\n            release(shared.queries, round * CONSUMERS + INDEX)\n",
        "",
    ),
    Mutation(
        "missing release of the queries whose slot the output left through",
        "kernels.flash3_kernel",
        "            tma.store_wait(0)\n            release(shared.queries, round * CONSUMERS + INDEX)\n",
        "            tma.store_wait(0)\n",
    ),
    Mutation(
        "a slot counts as empty when one of its readers is done",
        "kernels.flash3_kernel",
        "            make_barriers(STAGES, CONSUMERS),\n",
        "            make_barriers(STAGES, 1),\n",
    ),
    Mutation(
        "a slot counts as full when as many have arrived as read it",
        "kernels.flash3_kernel",
        "            make_barriers(STAGES, 1),\n",
        "            make_barriers(STAGES, CONSUMERS),\n",
    ),
    Mutation(
        "wrong number of bytes expected: those of a row of queries fewer",
        "kernels.flash3_pipeline",
        "mbarrier.expect(full, given.query.block_type.nbytes)",
        "mbarrier.expect(full, given.query.block_type.nbytes - 128)",
    ),
    Mutation(
        "wrong number of bytes expected: those of a row of keys and values fewer",
        "kernels.flash3_pipeline",
        "given.key.block_type.nbytes * (KEY + VALUE)",
        "given.key.block_type.nbytes * (KEY + VALUE) - 128",
    ),
    Mutation(
        "wrong number of bytes expected: of a pair those of one tile",
        "kernels.flash3_pipeline",
        "given.key.block_type.nbytes * (KEY + VALUE)",
        "given.key.block_type.nbytes",
    ),
    Mutation(
        "wrong number of bytes expected: always those of a pair",
        "kernels.flash3_pipeline",
        "given.key.block_type.nbytes * (KEY + VALUE)",
        "given.key.block_type.nbytes * 2",
    ),
    Mutation(
        "missing fence before the output leaves",
        "kernels.flash3_kernel",
        "        fence_async_shared()\n",
        "",
    ),
    Mutation(
        "the output overwritten before that of the round before has left",
        "kernels.flash3_kernel",
        "        tma.store_wait(0)  # until the output of the round before has left its place\n",
        "",
    ),
    Mutation(
        "the queries overwritten before the output has left their slot",
        "kernels.flash3_kernel",
        "        if not APART:\n            tma.store_wait(0)\n            release(",
        "        if not APART:\n            release(",
    ),
    Mutation(
        "the program ends before its last output has left",
        "kernels.flash3_kernel",
        "            release(shared.queries, round * CONSUMERS + INDEX)\n    tma.store_wait(0)\n",
        "            release(shared.queries, round * CONSUMERS + INDEX)\n",
    ),
    Mutation(
        "the first scores used while their product is in flight",
        "kernels.flash3_kernel",
        "        scores = warpgroup_mma_wait(0, deps=[scores])\n",
        "        scores = warpgroup_mma_wait(1, deps=[scores])\n",
    ),
    Mutation(
        "the scores used while their product is in flight",
        "kernels.flash3_kernel",
        'warpgroup_mma_wait(0 if OVERLAP == "none" else 1, deps=[scores])',
        'warpgroup_mma_wait(1 if OVERLAP == "none" else 2, deps=[scores])',
    ),
    Mutation(
        "the accumulator used while its product is in flight",
        "kernels.flash3_kernel",
        "    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])\n",
        "    accumulator, weights = warpgroup_mma_wait(1, deps=[accumulator, weights])\n",
    ),
    Mutation(
        "the output used while its product is in flight",
        "kernels.flash3_kernel",
        "        accumulator = warpgroup_mma_wait(0, deps=[accumulator])\n",
        "        accumulator = warpgroup_mma_wait(1, deps=[accumulator])\n",
    ),
    Mutation(
        "turns that all start with somebody waiting",
        "kernels.flash3_pipeline",
        "(use + (1 if INDEX == 0 else 0)) & 1",
        "use & 1",
    ),
    Mutation(
        "a turn passed back to oneself",
        "kernels.flash3_pipeline",
        "turn.index((INDEX + 1) % turn.shape[0])",
        "turn.index(INDEX)",
    ),
    Mutation(
        "a turn that is not passed on: that of the first scores",
        "kernels.flash3_kernel",
        "        if PINGPONG:\n            pass_turn(shared.turn, INDEX)\n        scores =",
        "        scores =",
    ),
    Mutation(
        "a turn that is not passed on: that of a step",
        "kernels.flash3_kernel",
        "    if PINGPONG:\n        pass_turn(shared.turn, INDEX)\n",
        "",
    ),
    Mutation(
        "a turn that is not passed on: that of the last product",
        "kernels.flash3_kernel",
        "        if PINGPONG:\n            pass_turn(shared.turn, INDEX)\n        accumulator =",
        "        accumulator =",
    ),
    Mutation(
        "a turn that is not waited for: that of the first scores",
        "kernels.flash3_kernel",
        "        if PINGPONG:\n            wait_turn(shared.turn, use, INDEX)\n",
        "",
    ),
    Mutation(
        "a turn that is not waited for: that of a step",
        "kernels.flash3_kernel",
        "    if PINGPONG:\n        wait_turn(shared.turn, use, INDEX)\n",
        "",
    ),
    Mutation(
        "a turn that is not waited for: that of the last product",
        "kernels.flash3_kernel",
        "        if PINGPONG:\n            wait_turn(shared.turn, use - 1, INDEX)\n",
        "",
    ),
    Mutation(
        "wrong rows of Q: every consumer gets the first's",
        "kernels.flash3_pipeline",
        "start_m = work.start_m + INDEX * shared.queries.tiles.shape[3]",
        "start_m = work.start_m",
    ),
    Mutation(
        "wrong queries: those of another consumer's slot",
        "kernels.flash3_kernel",
        "tile_of(shared.queries.tiles, round * CONSUMERS + INDEX)",
        "tile_of(shared.queries.tiles, round * CONSUMERS + INDEX + 1)",
    ),
    Mutation(
        "wrong rows of V: those that belong to the keys that it is loaded with",
        "kernels.flash3_pipeline",
        "start_v = start_n + BLOCK_N",
        "start_v = start_n",
    ),
    Mutation(
        "wrong rows of K and V: from the first tile to the last",
        "kernels.flash3_pipeline",
        "start_n = (work.tiles - 1 - step) * BLOCK_N",
        "start_n = step * BLOCK_N",
    ),
    Mutation(
        "wrong rows of K and V: without those of the last tile",
        "kernels.flash3_pipeline",
        "start_n = (work.tiles - 1 - step) * BLOCK_N",
        "start_n = (work.tiles - 2 - step) * BLOCK_N",
    ),
    Mutation(
        "V copied over K",
        "kernels.flash3_pipeline",
        "start_v, full, shared.pairs.value.index(slot)",
        "start_v, full, shared.pairs.key.index(slot)",
    ),
    Mutation(
        "K in the place of V",
        "kernels.flash3_pipeline",
        "copy_tile(given.value, work.kv_head",
        "copy_tile(given.key, work.kv_head",
    ),
    Mutation(
        "order of loads: the first pair loaded with V",
        "kernels.flash3_kernel",
        "load_pair(shared, given, work, 0, VALUE=False)",
        "load_pair(shared, given, work, 0)",
        times=2,
    ),
    Mutation(
        "order of loads: the last pair loaded with K",
        "kernels.flash3_kernel",
        "load_pair(shared, given, work, work.tiles, KEY=False)",
        "load_pair(shared, given, work, work.tiles)",
    ),
    Mutation(
        "order of loads: a pair fewer than steps",
        "kernels.flash3_kernel",
        "        for step in range(1, work.tiles):\n            load_pair(",
        "        for step in range(2, work.tiles):\n            load_pair(",
    ),
    Mutation(
        "order of loads: the queries after the last keys",
        "kernels.flash3_kernel",
        "        for i in gl.static_range(CONSUMERS):\n"
        "            load_queries(shared, given, work, round * CONSUMERS + i, i)\n"
        "        for step in range(1, work.tiles):\n"
        "            load_pair(shared, given, work, step)\n",
        "        for step in range(1, work.tiles):\n"
        "            load_pair(shared, given, work, step)\n"
        "        for i in gl.static_range(CONSUMERS):\n"
        "            load_queries(shared, given, work, round * CONSUMERS + i, i)\n",
    ),
    Mutation(
        "order of loads: without a producer, nothing after what fills the ring",
        "kernels.flash3_kernel",
        "        load_next(step + SLOTS, work, given, shared)\n",
        "        pass\n",
    ),
    Mutation(
        "order of loads: without a producer, a slot left empty at the start",
        "kernels.flash3_kernel",
        "for step in gl.static_range(1, SLOTS):",
        "for step in gl.static_range(1, SLOTS - 1):",
    ),
    Mutation(
        "order of loads: without a producer, the next step again",
        "kernels.flash3_kernel",
        "load_next(step + SLOTS, work, given, shared)",
        "load_next(step + SLOTS - 1, work, given, shared)",
    ),
    Mutation(
        "order of loads: without a producer, no last tile of values",
        "kernels.flash3_kernel",
        "    elif step == work.tiles:\n        load_pair(shared, given, work, step, KEY=False)\n",
        "",
    ),
    Mutation(
        "mask off by one: a query does not see its own key",
        "kernels.flash3_kernel",
        "gl.minimum(in_query + (seq_key - seq_query), last_seen)",
        "gl.minimum(in_query + (seq_key - seq_query) - 1, last_seen)",
    ),
    Mutation(
        "mask off by one: a query sees the key after its own",
        "kernels.flash3_kernel",
        "gl.minimum(in_query + (seq_key - seq_query), last_seen)",
        "gl.minimum(in_query + (seq_key - seq_query) + 1, last_seen)",
    ),
    Mutation(
        "mask off by one: the last key that a row sees is hidden",
        "kernels.flash3_kernel",
        "columns[None, :] <= last_seen[:, None]",
        "columns[None, :] < last_seen[:, None]",
    ),
    Mutation(
        "mask off by one: the tile with one hidden key counts as whole",
        "kernels.flash3_kernel",
        "first_row + 1 + seq_key - seq_query",
        "first_row + 2 + seq_key - seq_query",
    ),
    Mutation(
        "mask off by one: a step with a mask too few",
        "kernels.flash3_kernel",
        "gl.maximum(work.tiles - seen_by_all // BLOCK_N, 1)",
        "gl.maximum(work.tiles - 1 - seen_by_all // BLOCK_N, 1)",
    ),
    Mutation(
        "mask off by one: a step's mask is that of the step before",
        "kernels.flash3_kernel",
        "hide(scores, work.tiles - 1 - step, rows.last_seen)",
        "hide(scores, work.tiles - step, rows.last_seen)",
    ),
    Mutation(
        "steps with a mask do without",
        "kernels.flash3_kernel",
        "    if MASKED:\n        scores = hide(",
        "    if not MASKED:\n        scores = hide(",
    ),
    Mutation(
        "more steps with a mask than steps, where a query sees nothing",
        "kernels.flash3_kernel",
        "gl.maximum(first_row + 1 + seq_key - seq_query, 0)",
        "(first_row + 1 + seq_key - seq_query)",
    ),
    Mutation(
        "steps with a mask and steps without overlap",
        "kernels.flash3_kernel",
        "for step in range(masked_steps, work.tiles):",
        "for step in range(masked_steps - 1, work.tiles):",
    ),
    Mutation(
        "causal mask aligned at the top left",
        "kernels.flash3_kernel",
        "gl.minimum(in_query + (seq_key - seq_query), last_seen)",
        "gl.minimum(in_query, last_seen)",
    ),
    Mutation(
        "missing tail mask: keys past the end score 0",
        "kernels.flash3_kernel",
        "last_seen = gl.full([ROWS], seq_key - 1, gl.int32",
        "last_seen = gl.full([ROWS], seq_key + BLOCK_N, gl.int32",
    ),
    Mutation(
        "missing tail mask: none in the first tile",
        "kernels.flash3_kernel",
        "        scores = hide(scores, work.tiles - 1, last_seen)\n",
        "",
    ),
    Mutation(
        "no rescale of the output",
        "kernels.flash3_kernel",
        "gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT))[:, None]",
        "1.0",
    ),
    Mutation(
        "no rescale of the output before the last product",
        "kernels.flash3_kernel",
        "        accumulator = accumulator * gl.convert_layout(rescale, OUTPUT_ROWS)[:, None]\n",
        "",
    ),
    Mutation(
        "the output rescaled twice: at once, and again in the next step",
        "kernels.flash3_kernel",
        '    scores = warpgroup_mma_wait(0 if OVERLAP == "none" else 1, deps=[scores])\n',
        "    scores = warpgroup_mma_wait(0, deps=[scores])\n"
        "    later = raise_maximum(scores, running_max, given.scale_log2)\n"
        "    later = gl.exp2(running_max - later[1])\n"
        "    later = gl.convert_layout(later, gl.SliceLayout(1, OUTPUT))[:, None]\n"
        "    accumulator = warpgroup_mma_wait(0, deps=[accumulator]) * later\n",
    ),
    Mutation(
        "the output rescaled while a product is added to it",
        "kernels.flash3_kernel",
        "    accumulator = warpgroup_mma(weights, value_tile, accumulator, is_async=True)\n    if",
        "    accumulator = warpgroup_mma(weights, value_tile, accumulator, is_async=True)\n"
        "    accumulator = accumulator * 1.0\n"
        "    if",
    ),
    Mutation(
        "no rescale of the running sum",
        "kernels.flash3_kernel",
        "running_sum * rescale + gl.sum",
        "running_sum + gl.sum",
    ),
    Mutation(
        "stale statistics: rescaled by the maximum of two steps before",
        "kernels.flash3_kernel",
        "rescale = gl.exp2(running_max_was - shift)",
        "rescale = rescale * gl.exp2(running_max_was - shift)",
    ),
    Mutation(
        "stale statistics: the running maximum is that of the last tile",
        "kernels.flash3_kernel",
        "gl.maximum(running_max, gl.max(scores, axis=1) * scale_log2)",
        "gl.max(scores, axis=1) * scale_log2",
    ),
    Mutation(
        "stale statistics: the running sum starts anew in each tile",
        "kernels.flash3_kernel",
        "running_sum * rescale + gl.sum",
        "gl.sum",
    ),
    Mutation(
        "minus infinity minus minus infinity",
        "kernels.flash3_kernel",
        'gl.where(running_max == float("-inf"), 0.0, running_max)',
        "running_max",
    ),
    Mutation(
        "0 / 0 in a row that saw nothing",
        "kernels.flash3_kernel",
        "divisor = gl.where(running_sum == 0.0, 1.0, running_sum)",
        "divisor = running_sum",
    ),
    Mutation(
        "the weights of a tile meet the values of the next",
        "kernels.flash3_kernel",
        "value_tile = tile_of(shared.pairs.value, use)\n",
        "value_tile = tile_of(shared.pairs.value, use + 1)\n",
    ),
    Mutation(
        "the keys of a step are those of the step before",
        "kernels.flash3_kernel",
        "    key_tile = tile_of(shared.pairs.key, use)  # [BLOCK_N, BLOCK_D]\n    value_tile",
        "    key_tile = tile_of(shared.pairs.key, use - 1)  # [BLOCK_N, BLOCK_D]\n    value_tile",
    ),
    Mutation(
        "the last tile of values is the one before once more",
        "kernels.flash3_kernel",
        "value_tile = tile_of(shared.pairs.value, use - 1)",
        "value_tile = tile_of(shared.pairs.value, use - 2)",
    ),
    Mutation(
        "grouped heads read key head h mod kv_heads",
        "kernels.flash3_pipeline",
        "kv_head = head // (given.query.shape[1] // given.key.shape[1])",
        "kv_head = head % given.key.shape[1]",
    ),
    Mutation(
        "the logsumexp without its maximum",
        "kernels.flash3_kernel",
        "logsumexp = (running_max + gl.log2(divisor)) * LN_2",
        "logsumexp = gl.log2(divisor) * LN_2",
    ),
    Mutation(
        "the logsumexp of rows past the end lands in the next head",
        "kernels.flash3_kernel",
        "logsumexp, mask=in_query < seq_query)",
        "logsumexp)",
    ),
    Mutation(
        "the output of every consumer stored at the first's rows",
        "kernels.flash3_kernel",
        "place = [work.head, first_row, 0]",
        "place = [work.head, work.start_m, 0]",
    ),
    Mutation(
        "order of work: the ragged last round is dropped",
        "kernels.flash3_pipeline",
        "return whole_rounds + gl.where(tile_number(whole_rounds) < in_all, 1, 0)",
        "return whole_rounds",
    ),
    Mutation(
        "order of work: the last heads take as many as the others",
        "kernels.flash3_pipeline",
        "together = gl.minimum(given.heads_together, batch_heads - first_head)",
        "together = given.heads_together",
    ),
    Mutation(
        "order of work: the way back begins one too early",
        "kernels.flash3_pipeline",
        "gl.where(round % 2 == 0, place, programs - 1 - place)",
        "gl.where(round % 2 == 0, place, programs - 2 - place)",
    ),
    Mutation(
        "the last tile of keys that a query sees is left out",
        "kernels.flash3_pipeline",
        "gl.minimum(seq_key, start_m + BLOCK_M + seq_key - seq_query)",
        "gl.minimum(seq_key, start_m + BLOCK_M - BLOCK_N + seq_key - seq_query)",
    ),
    Mutation(
        "queries that see nothing visit no tile",
        "kernels.flash3_pipeline",
        "gl.maximum(gl.cdiv(seen, BLOCK_N), 1)",
        "gl.maximum(gl.cdiv(seen, BLOCK_N), 0)",
    ),
]
