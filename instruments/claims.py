"""What the book's records say of the papers' claims, one experiment a function.

Each function takes ``load``, which returns the record of a name (as :func:`instruments.records.load`
does for one GPU), and reduces it to a :class:`Finding`: a number that a rule can judge, where more is
better, and our figure as a reader sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from instruments.records import Record

Load = Callable[[str], Record]


@dataclass(frozen=True)
class Finding:
    """What an experiment found: ``value`` is judged, ``shown`` is printed."""

    value: float
    shown: str


def passes_over_a_row(load: Load) -> Finding:
    """Chapter 2's row softmax, the row read three times and read twice."""
    record = load("softmax")
    ratios = []
    for three in record.where(kernel="three_pass"):
        problem = {name: three[name] for name in ("dtype", "rows", "columns")}
        ratios.append(three["ms"] / record.one(kernel="two_pass", **problem)["ms"])
    return Finding(max(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}×")


def gpt2_traffic(load: Load) -> Finding:
    """Bytes at the HBM: standard attention, and FlashAttention as printed."""
    record = load("fig2_left_dram")
    standard, flash = (
        sum(row["read_bytes"] + row["written_bytes"] for row in record.where(kernel=kernel))
        for kernel in ("naive", "flash1_printed")
    )
    return _from_to(standard, flash, 1e-9, "GB")


def gpt2_time(load: Load) -> Finding:
    """The time of the same."""
    record = load("fig2_left")
    standard, flash = (
        record.one(kernel=kernel, causal=False)["ms"] for kernel in ("naive", "flash1_printed")
    )
    return _from_to(standard, flash, 1, "ms")


def block_size(load: Load) -> Finding:
    """Time against the keys a block, as printed."""
    least: dict[int, float] = {}
    for row in load("flash1_block_size").rows:
        least[row["block_n"]] = min(row["ms"], least.get(row["block_n"], row["ms"]))
    smallest, fastest = min(least), min(least, key=least.get)
    value = least[smallest] / least[fastest]
    return Finding(value, f"{value:.1f}× from {smallest} to {fastest}")


def sparse_fraction(load: Load) -> Finding:
    """Speedup over dense times the share of blocks that are kept."""
    rows = load("block_sparse").where(n=4096)
    shares = [row["fraction"] * row["dense_ratio"] for row in rows]
    return Finding(min(shares), f"{min(shares):.2f}–{max(shares):.2f} of ∝")


def speed_over_eager(load: Load) -> Finding:
    """FlashAttention-1 with its loops swapped, beside eager PyTorch."""
    rows = load("flash1").where(kernel="flash1", d=64, causal=False, dtype="float16")
    ratios = [row["speedup"]["eager"] for row in rows if row["speedup"]["eager"]]
    return Finding(max(ratios), f"{min(ratios):.1f}–{max(ratios):.1f}×")


def memory_over_eager(load: Load) -> Finding:
    """The most memory held at 4096 tokens."""
    record = load("flash1_memory")
    eager, flash = (record.one(contestant=n, n=4096)["peak_bytes"] for n in ("eager", "flash1"))
    return _from_to(eager, flash, 1e-6, "MB")


def memory_growth(load: Load) -> Finding:
    """How the memory held grows from 32 768 to 65 536 tokens."""
    record = load("flash1_memory")
    shorter, longer = (record.one(contestant="flash1", n=n)["peak_bytes"] for n in (2**15, 2**16))
    return Finding(2 * shorter / longer, f"{longer / shorter:.2f}× for 2 N")


def causal_skip(load: Load) -> Finding:
    """What a kernel gains that does not visit hidden tiles."""
    record = load("flash1")
    longest = max(row["n"] for row in record.rows)
    gains = []
    for row in record.where(kernel="flash1", n=longest, causal=False, dtype="float16"):
        causal = record.one(kernel="flash1", n=longest, causal=True, dtype="float16", d=row["d"])
        gains.append(row["ms"] / causal["ms"])
    return Finding(min(gains), f"{min(gains):.2f}–{max(gains):.2f}×")


def few_heads(load: Load) -> Finding:
    """What programs for each tile of queries gain over one program a head, with many heads and with few."""
    printed = load("flash1_printed").where(kernel="flash1_printed", d=64, causal=False)
    swapped = load("flash1")
    gains = {}
    for row in printed:
        problem = {name: row[name] for name in ("dtype", "batch", "heads", "n", "d", "causal")}
        # Two runs: each is compared with a peer that was timed in the same rounds.
        ours = swapped.one(kernel="flash1", **problem)["speedup"]["fa2"]
        gains[row["batch"] * row["heads"]] = ours / row["speedup"]["fa2"]
    few, many = min(gains), max(gains)
    shown = ", ".join(f"{gains[heads]:.1f}× at {heads} heads" for heads in (many, few))
    return Finding(gains[few] / gains[many], shown)


def cost_outside_tensor_cores(load: Load) -> Finding:
    """How much slower arithmetic is outside the tensor cores."""
    tflops = load("ceilings").rows[0]["tflops"]
    value = tflops["float16"] / tflops["float32"]
    return Finding(value, f"{value:.1f}×")


def _from_to(before: float, after: float, factor: float, unit: str) -> Finding:
    ratio = before / after
    figures = (_number(factor * number) for number in (before, after))
    return Finding(ratio, f"{' → '.join(figures)} {unit} ({ratio:.1f}×)")


def _number(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ") if number >= 100 else f"{number:.3g}"


EXPERIMENTS = {
    function.__name__: function
    for function in (
        passes_over_a_row,
        gpt2_traffic,
        gpt2_time,
        block_size,
        sparse_fraction,
        speed_over_eager,
        memory_over_eager,
        memory_growth,
        causal_skip,
        few_heads,
        cost_outside_tensor_cores,
    )
}
