"""Carries out a step's plan on the GPU: moves blocks, then computes the tokens of many sequences at once.

The tokens of all runs are packed in one row, single ones first. So one pass through the model serves every
sequence, and only attention looks at where each begins: single tokens go through ``paged.decode``, longer
runs through ``paged.prefill``.

A pass over single tokens launches many small kernels, and the GPU waits for the host between them. So it is
recorded as a CUDA graph, for a few batch sizes, and replayed with the next larger one; the rows left over
write nothing and attend to nothing.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import kernels
from kernels import paged as paged_kernels
from serving.allocator import Copy
from serving.model import Model
from serving.scheduler import Run, StepPlan


@dataclass
class Batch:
    """The packed tokens of some runs, on one device.

    Attributes:
        tokens, positions, slots: one number a token; slot -1 is not written.
        block_tables: ``(runs, blocks)``, the unused end of a row arbitrary.
        context_lengths: ``(runs,)``, with the new tokens; 0 for a row that is only filled up.
        query_starts: where the tokens of each of the longer runs begin, counted from the first of
            theirs, and where the last ends.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    context_lengths: Tensor
    query_starts: Tensor

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cuda":  # from pinned memory the host need not wait
            return self._map(lambda x: x.pin_memory().to(device, non_blocking=True))
        return self._map(lambda x: x.to(device))

    def copy_(self, other: "Batch") -> None:
        for field in fields(self):
            source = getattr(other, field.name)
            if self.tokens.is_cuda:
                source = source.pin_memory()
            getattr(self, field.name).copy_(source, non_blocking=True)

    def _map(self, change) -> "Batch":
        return Batch(*(change(getattr(self, field.name)) for field in fields(self)))


def pack(runs: list[Run], *, rows: int, width: int) -> Batch:
    """Runs as a batch of at least ``rows`` runs, with block tables of ``width`` blocks."""
    filler = max(0, rows - len(runs))
    longer = [len(run.tokens) for run in runs if len(run.tokens) > 1]

    def numbers(values: list[int], fill: int, dtype) -> Tensor:
        return torch.tensor(values + [fill] * filler, dtype=dtype)

    tables = np.zeros((len(runs) + filler, width), dtype=np.int32)
    for row, run in zip(tables, runs, strict=False):
        row[: len(run.block_table)] = run.block_table
    return Batch(
        tokens=numbers([token for run in runs for token in run.tokens], 0, torch.int64),
        positions=numbers(
            [run.start + place for run in runs for place in range(len(run.tokens))], 0, torch.int64
        ),
        slots=numbers([slot for run in runs for slot in run.slots], -1, torch.int64),
        block_tables=torch.from_numpy(tables),
        context_lengths=numbers([run.start + len(run.tokens) for run in runs], 0, torch.int32),
        query_starts=torch.tensor([0, *np.cumsum(longer)], dtype=torch.int32),
    )


class Recorded(NamedTuple):
    """A decode step of a fixed number of sequences as a CUDA graph: its inputs and its output."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    logits: Tensor


class Runner:
    """A model with paged memory for its keys and values.

    Args:
        num_blocks, cpu_blocks: blocks in the GPU's memory and in the CPU's.
        block_size: tokens a block.
        max_sequences: the most runs in a step.
        graphs: whether decode steps are recorded as CUDA graphs, where there is a GPU.
        paged: the functions on paged memory; kernels.paged or another with the same ones.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        cpu_blocks: int = 0,
        block_size: int = 16,
        max_sequences: int = 64,
        graphs: bool = True,
        paged=paged_kernels,
    ) -> None:
        self.model = model
        self.paged = paged
        self.device = kernels.device()
        config, dtype = model.config, model.embedding.weight.dtype

        def cache(blocks: int, **where) -> Tensor:
            shape = (config.layers, 2, blocks, block_size, config.kv_heads, config.head_dim)
            return torch.empty(shape, dtype=dtype, **where)

        self.cache = cache(num_blocks, device=self.device)
        self.cpu_cache = cache(cpu_blocks, pin_memory=self.device.type == "cuda")
        longest = min(config.positions, num_blocks * block_size)
        self.table_width = -(-longest // block_size)
        self.recorded: dict[int, Recorded] = {}
        if graphs and self.device.type == "cuda":
            self._record(graph_sizes(max_sequences))

    @torch.no_grad()
    def execute(self, plan: StepPlan) -> Tensor:
        """Carry out a plan; returns the logits of the runs that sample, one row each, in their order."""
        self._move(self.cache, self.cpu_cache, plan.swap_out)
        self._move(self.cpu_cache, self.cache, plan.swap_in)
        if plan.copies:
            self.paged.copy_blocks(self.cache, _pairs(plan.copies).to(self.device))
        return self.compute(plan.runs)

    @torch.no_grad()
    def compute(self, runs: list[Run]) -> Tensor:
        """Compute runs' tokens and store their keys and values; returns as :meth:`execute`."""
        samples = [place for place, run in enumerate(runs) if run.samples]
        if not runs:
            return torch.empty(0, self.model.config.vocabulary, device=self.device)
        single = all(len(run.tokens) == 1 for run in runs)
        size = min((size for size in self.recorded if size >= len(runs)), default=None)
        if single and size is not None:
            graph, batch, logits = self.recorded[size]
            batch.copy_(pack(runs, rows=size, width=self.table_width))
            graph.replay()
            return logits[samples]
        order = sorted(range(len(runs)), key=lambda place: len(runs[place].tokens) > 1)
        ordered = [runs[place] for place in order]
        # A multiple of 16, or Triton would compile the kernels again for other widths.
        width = 16 * -(-max(len(run.block_table) for run in runs) // 16)
        batch = pack(ordered, rows=0, width=width).to(self.device)
        hidden = self._hidden(batch, max(len(run.tokens) for run in runs))
        last = np.cumsum([len(run.tokens) for run in ordered]) - 1
        last_of = dict(zip(order, last.tolist(), strict=True))
        return self.model.logits(hidden[[last_of[place] for place in samples]])

    def _hidden(self, batch: Batch, max_query_length: int) -> Tensor:
        """The model over a batch, with the attention over paged memory."""
        longer = len(batch.query_starts) - 1
        single = len(batch.context_lengths) - longer

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache[layer]
            self.paged.append(key, value, keys, values, batch.slots)
            mixed = []
            if single:
                tables, lengths = batch.block_tables[:single], batch.context_lengths[:single]
                mixed.append(self.paged.decode(query[:single], keys, values, tables, lengths))
            if longer:
                mixed.append(
                    self.paged.prefill(
                        query[single:],
                        keys,
                        values,
                        batch.block_tables[single:],
                        batch.query_starts,
                        batch.context_lengths[single:],
                        max_query_length=max_query_length,
                    )
                )
            return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

        return self.model.hidden(batch.tokens, batch.positions, attend)

    def _move(self, source: Tensor, target: Tensor, copies: list[Copy]) -> None:
        if copies:
            self.paged.swap_blocks(source, target, _pairs(copies))

    @torch.no_grad()
    def _record(self, sizes: list[int]) -> None:
        pool = None
        for size in reversed(sizes):  # the largest first: the smaller ones fit into its memory
            batch = pack([], rows=size, width=self.table_width).to(self.device)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles kernels and warms libraries up
                self.model.logits(self._hidden(batch, 1))
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self.model.logits(self._hidden(batch, 1))
            pool = graph.pool()
            self.recorded[size] = Recorded(graph, batch, logits)


def graph_sizes(most: int) -> list[int]:
    """Batch sizes to record: 1, 2, 4, every eighth, and the most."""
    return sorted({size for size in (1, 2, 4, *range(8, most, 8), most) if size <= most})


def _pairs(copies: list[Copy]) -> Tensor:
    return torch.tensor(copies, dtype=torch.int64).view(-1, 2)
