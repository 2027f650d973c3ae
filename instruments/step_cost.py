"""How long a server's step takes, from times measured on a GPU: a clock for simulated traces.

A step computes some tokens of many sequences. What it does to each token alone (the weights' products, the
norms, the writing of keys and values) depends on how many tokens there are in all; attention depends on how
much each of them reads. So a step's time is taken as a sum,

    tokens(n) + decode(sequences, tokens read) + sum of prefill(tokens, tokens before) + swap(slots),

each term interpolated linearly between the points of a record of ``benchmarks.step_times``. What the sum
leaves out: the host, which CUDA graphs hide; that sequences are of unequal length; that prompts computed in
the same step share a launch. The record's rows ``step="whole"`` say how far whole steps are from the sum.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

BLOCK_SIZE = 16  # of the grid; other block sizes are measured at one of its points


class StepCost:
    """Seconds of a step.

    Args:
        rows: those of a record of ``benchmarks.step_times``.
        block_size: scales the time of decoding by what it takes with such blocks, and chooses that of
            swapping.
    """

    def __init__(self, rows: Sequence[Mapping], block_size: int = BLOCK_SIZE) -> None:
        self._tokens = {row["tokens"]: row["ms"] for row in rows if row["step"] == "tokens"}
        decode = [row for row in rows if row["step"] == "decode"]
        known = sorted({row["block_size"] for row in decode})
        if block_size not in known:
            raise ValueError(f"block_size must be one of {known}, got {block_size!r}")
        self._decode = _table(
            [row for row in decode if row["block_size"] == BLOCK_SIZE], "sequences", "tokens_read"
        )
        self._prefill = _table(
            [row for row in rows if row["step"] == "prefill"], "tokens", "tokens_before"
        )
        self._decode_factor = _factor(decode, block_size)
        (swap,) = (r for r in rows if r["step"] == "swap" and r["block_size"] == block_size)
        self._swap = swap["ms"] / swap["slots"]

    def seconds(
        self,
        *,
        decodes: Sequence[int] = (),
        prefills: Sequence[tuple[int, int]] = (),
        swapped: int = 0,
    ) -> float:
        """A step's time.

        Args:
            decodes: for each sequence that computes one token, how many it reads, itself included.
            prefills: for each that computes more, how many tokens, and how many are before them.
            swapped: slots moved between the GPU and the CPU.
        """
        computed = len(decodes) + sum(tokens for tokens, _ in prefills)
        milliseconds = swapped * self._swap
        if computed:
            milliseconds += _along("tokens", self._tokens, computed)
        if decodes:
            read = _inside(self._decode, "sequences", len(decodes), "tokens read", sum(decodes))
            milliseconds += self._decode_factor * read
        for tokens, before in prefills:
            milliseconds += _inside(self._prefill, "tokens", tokens, "tokens before", before)
        return milliseconds / 1000


def _table(rows: Sequence[Mapping], first: str, second: str) -> dict[int, dict[int, float]]:
    table: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        table[row[first]][row[second]] = row["ms"]
    return dict(table)


def _factor(decode: Sequence[Mapping], block_size: int) -> float:
    """Time with this block size over that with the grid's, at the point where both were measured."""
    if block_size == BLOCK_SIZE:
        return 1.0
    point = next(row for row in decode if row["block_size"] == block_size)
    (same,) = (
        row
        for row in decode
        if row["block_size"] == BLOCK_SIZE
        and (row["sequences"], row["tokens_read"]) == (point["sequences"], point["tokens_read"])
    )
    return point["ms"] / same["ms"]


def _inside(
    table: Mapping[int, Mapping[int, float]], first: str, x: float, second: str, y: float
) -> float:
    """Between the two rows of a table that enclose ``x``, at ``y`` of each."""
    return _along(first, table, x, lambda row: _along(second, row, y))


def _along(name: str, points: Mapping[int, object], x: float, value=lambda point: point) -> float:
    """On the line between the two points that enclose ``x``; below the first, at the first."""
    places = sorted(points)
    if x > places[-1]:
        raise ValueError(f"{name} was measured up to {places[-1]}, and {x} are asked for")
    if x <= places[0]:
        return value(points[places[0]])
    right = min(bisect_right(places, x), len(places) - 1)
    low, high = places[right - 1], places[right]
    part = (x - low) / (high - low)
    return (1 - part) * value(points[low]) + part * value(points[high])
