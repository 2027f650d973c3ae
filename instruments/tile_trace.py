"""What FlashAttention-1 does tile by tile: what it loads and stores, and what its statistics then are.

A twin of :mod:`kernels.flash1` in float64 NumPy, for one head. It visits the tiles of S in the order
that a kernel visits them and writes down each visit, so that text, figures and tests can follow an
algorithm whose kernel only shows its end:

* order ``"keys"``, as ``flash1.printed_attention``: the outer loop walks along the keys, and O and
  the statistics of each tile of queries are loaded and stored at every visit;
* order ``"queries"``, as ``flash1.attention``: the outer loop walks along the queries, whose O and
  statistics never leave the chip.

Buffers have the names of the kernels' arguments, as in :mod:`instruments.traffic`, and the bytes are
the same to the byte. Statistics are in natural units, where the kernels keep them in base 2.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from instruments.traffic import Bytes

ORDERS = ("keys", "queries")
STATISTIC = 4  # bytes of a maximum, a sum, a logsumexp or a number of the accumulator: float32


@dataclass(frozen=True)
class Transfer:
    """A tile that crosses between HBM and the chip: tile ``tile`` of ``buffer``."""

    buffer: str
    tile: int
    bytes: int


@dataclass(frozen=True)
class Step:
    """One visit: a tile of queries meets a tile of keys.

    Attributes:
        query_tile, key_tile: which tiles; ``key_tile`` is ``None`` where the queries see no key at all,
            so that they are loaded and their zeros stored without a visit.
        rows: the queries of the tile.
        loads, stores: what crosses because of this visit.
        on_chip: ``(buffer, tile)`` of all that is on the chip during it; S is there too, and nowhere else.
        running_max, running_sum: of the rows, after the visit.
        rescale: what the rows' sums and outputs so far were multiplied with.
        accumulator: O of the rows as it is kept after the visit. In order ``"keys"`` it is divided by
            ``running_sum`` at every visit, in order ``"queries"`` only at the one that stores it.
        loaded, stored: bytes of this visit and all before it.
    """

    query_tile: int
    key_tile: int | None
    rows: range
    loads: tuple[Transfer, ...]
    stores: tuple[Transfer, ...]
    on_chip: tuple[tuple[str, int], ...]
    running_max: np.ndarray
    running_sum: np.ndarray
    rescale: np.ndarray
    accumulator: np.ndarray
    loaded: int
    stored: int


@dataclass(frozen=True)
class Trace:
    """All visits of one run, and what it computed: ``output`` and ``logsumexp``."""

    order: str
    steps: tuple[Step, ...]
    output: np.ndarray
    logsumexp: np.ndarray

    @property
    def buffers(self) -> dict[str, Bytes]:
        """Bytes loaded from and stored to each buffer."""
        total: dict[str, Bytes] = {}
        for step in self.steps:
            for transfer in step.loads:
                total.setdefault(transfer.buffer, Bytes()).loaded += transfer.bytes
            for transfer in step.stores:
                total.setdefault(transfer.buffer, Bytes()).stored += transfer.bytes
        return total

    @property
    def total(self) -> int:
        """All bytes, loaded and stored."""
        return self.steps[-1].loaded + self.steps[-1].stored if self.steps else 0

    @property
    def transfers(self) -> Counter[tuple[str, int]]:
        """How often each ``(buffer, tile)`` was loaded or stored."""
        moved = (transfer for step in self.steps for transfer in step.loads + step.stores)
        return Counter((transfer.buffer, transfer.tile) for transfer in moved)


def trace(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    block_m: int,
    block_n: int,
    order: str,
    causal: bool = False,
    scale: float | None = None,
    element: int = 2,
) -> Trace:
    """Run FlashAttention-1 on one head and record every visit of a tile.

    Args:
        query: ``(seq_query, head_dim)``.
        key, value: ``(seq_key, head_dim)``.
        block_m, block_n: queries and keys a tile; any size, where the kernels take powers of two from 16.
        order: ``"keys"`` or ``"queries"``, what the outer loop walks along.
        causal: hide later keys, aligned at the bottom right. Order ``"keys"`` visits hidden tiles all
            the same; order ``"queries"`` does not.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        element: bytes a number of query, key, value and output.
    """
    query, key, value = (np.asarray(tensor, dtype=np.float64) for tensor in (query, key, value))
    _check(query, key, value, block_m, block_n, order, scale)
    run = _Run(query, key, value, block_m, block_n, causal, scale, element)
    steps = tuple(run.keys_outside() if order == "keys" else run.queries_outside())
    return Trace(order, steps, run.output, run.logsumexp)


class _Run:
    """The matrices of one run, and the bytes moved so far."""

    def __init__(self, query, key, value, block_m, block_n, causal, scale, element) -> None:
        self.query, self.key, self.value = query, key, value
        self.query_tiles, self.key_tiles = _tiles(len(query), block_m), _tiles(len(key), block_n)
        self.causal, self.element = causal, element
        self.scale = 1 / math.sqrt(query.shape[1]) if scale is None else scale
        self.offset = len(key) - len(query)  # row r sees the keys up to r + offset
        self.output = np.zeros_like(query)
        self.logsumexp = np.full(len(query), -np.inf)
        self.loaded = self.stored = 0

    def keys_outside(self) -> Iterator[Step]:
        accumulator = np.zeros_like(self.query)
        running_max, running_sum = np.full(len(self.query), -np.inf), np.zeros(len(self.query))
        for j, columns in enumerate(self.key_tiles):
            last = j == len(self.key_tiles) - 1
            for i, rows in enumerate(self.query_tiles):
                numbers = len(rows) * self.query.shape[1]
                kept = [
                    Transfer("accumulator", i, numbers * STATISTIC),
                    Transfer("running_max", i, len(rows) * STATISTIC),
                    Transfer("running_sum", i, len(rows) * STATISTIC),
                ]
                loads = self._keys_and_values(j, columns) if i == 0 else []
                loads += [Transfer("query", i, numbers * self.element), *kept]
                stores = self._results(i, rows) if last else kept

                new_max, new_sum, rescale, exponentials = self._update(
                    rows, columns, running_max[rows], running_sum[rows]
                )
                # As printed: undo the last division, add, divide again.
                weighted = accumulator[rows] * (running_sum[rows] * rescale)[:, None]
                weighted += exponentials @ self.value[columns]
                accumulator[rows] = weighted / _divisor(new_sum)[:, None]
                running_max[rows], running_sum[rows] = new_max, new_sum
                if last:
                    self._finish(rows, accumulator[rows], new_max, new_sum)
                yield self._step(i, j, rows, loads, stores, new_max, new_sum, rescale, accumulator)

    def queries_outside(self) -> Iterator[Step]:
        accumulator = np.zeros_like(self.query)
        for i, rows in enumerate(self.query_tiles):
            running_max, running_sum = np.full(len(rows), -np.inf), np.zeros(len(rows))
            loads = [Transfer("query", i, len(rows) * self.query.shape[1] * self.element)]
            visited = [  # its last row sees the most keys
                (j, columns)
                for j, columns in enumerate(self.key_tiles)
                if not self.causal or columns.start < rows.stop + self.offset
            ]
            if not visited:
                self._finish(rows, accumulator[rows], running_max, running_sum)
                stores, rescale = self._results(i, rows), np.ones(len(rows))
                yield self._step(
                    i, None, rows, loads, stores, running_max, running_sum, rescale, accumulator
                )
            for j, columns in visited:
                loads += self._keys_and_values(j, columns)
                running_max, running_sum, rescale, exponentials = self._update(
                    rows, columns, running_max, running_sum
                )
                accumulator[rows] *= rescale[:, None]
                accumulator[rows] += exponentials @ self.value[columns]
                stores = []
                if j == visited[-1][0]:
                    accumulator[rows] /= _divisor(running_sum)[:, None]  # once, at the end
                    self._finish(rows, accumulator[rows], running_max, running_sum)
                    stores = self._results(i, rows)
                yield self._step(
                    i, j, rows, loads, stores, running_max, running_sum, rescale, accumulator
                )
                loads = []

    def _update(self, rows, columns, running_max, running_sum):
        """As `kernels.online_softmax.online_softmax_update`, to the base e."""
        scores = self.scale * self.query[rows] @ self.key[columns].T
        if self.causal:
            visible = np.array(columns)[None, :] <= np.array(rows)[:, None] + self.offset
            scores = np.where(visible, scores, -np.inf)
        new_max = np.maximum(running_max, scores.max(axis=1))
        shift = np.where(np.isneginf(new_max), 0.0, new_max)
        exponentials = np.exp(scores - shift[:, None])
        rescale = np.exp(running_max - shift)
        return new_max, running_sum * rescale + exponentials.sum(axis=1), rescale, exponentials

    def _keys_and_values(self, j, columns) -> list[Transfer]:
        bytes_ = len(columns) * self.key.shape[1] * self.element
        return [Transfer("key", j, bytes_), Transfer("value", j, bytes_)]

    def _results(self, i, rows) -> list[Transfer]:
        return [
            Transfer("output", i, len(rows) * self.query.shape[1] * self.element),
            Transfer("logsumexp", i, len(rows) * STATISTIC),
        ]

    def _finish(self, rows, output, running_max, running_sum) -> None:
        self.output[rows] = output
        with np.errstate(divide="ignore"):  # log 0: a row that sees no key
            self.logsumexp[rows] = running_max + np.log(running_sum)

    def _step(self, i, j, rows, loads, stores, running_max, running_sum, rescale, accumulator):
        self.loaded += sum(transfer.bytes for transfer in loads)
        self.stored += sum(transfer.bytes for transfer in stores)
        keys = () if j is None else (("key", j), ("value", j))
        of_rows = ("query", "accumulator", "running_max", "running_sum")
        return Step(
            query_tile=i,
            key_tile=j,
            rows=rows,
            loads=tuple(loads),
            stores=tuple(stores),
            on_chip=(*((buffer, i) for buffer in of_rows), *keys),
            running_max=running_max.copy(),
            running_sum=running_sum.copy(),
            rescale=rescale,
            accumulator=accumulator[rows].copy(),
            loaded=self.loaded,
            stored=self.stored,
        )


def _tiles(length: int, block: int) -> list[range]:
    return [range(start, min(start + block, length)) for start in range(0, length, block)]


def _divisor(running_sum: np.ndarray) -> np.ndarray:
    return np.where(running_sum == 0, 1.0, running_sum)


def _check(query, key, value, block_m, block_n, order, scale) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 2 or tensor.shape[1] != query.shape[-1] or tensor.shape[1] == 0:
            raise ValueError(
                f"query, key and value are matrices with the same number of columns, at least one; "
                f"got {name} of shape {tensor.shape} and query of shape {query.shape}"
            )
    if key.shape != value.shape:
        raise ValueError(f"key and value have one shape; got {key.shape} and {value.shape}")
    for name, block in (("block_m", block_m), ("block_n", block_n)):
        if not isinstance(block, int) or isinstance(block, bool) or block < 1:
            raise ValueError(f"{name} is a whole number from 1; got {block!r}")
    if order not in ORDERS:
        raise ValueError(f"order is one of {', '.join(ORDERS)}; got {order!r}")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale is a finite number above 0, or None; got {scale!r}")
