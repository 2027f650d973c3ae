"""What the book's records say of the papers' claims, one experiment a function.

Each function takes ``load``, which returns the record of a name (as :func:`instruments.records.load`
does for one GPU), and reduces it to a :class:`Finding`: a number that a rule can judge, where more is
better, and our figure as a reader sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from instruments.records import Record
from instruments.serving_plots import sustained_rate

Load = Callable[[str], Record]

SECONDS_A_TOKEN = 0.02
"""The latency at which servers are compared: some twice what one that is never full takes here."""

DATASHEET_TFLOPS = 989.4
"""What NVIDIA's data sheets give for float16 products on an H100 and an H200."""


@dataclass(frozen=True)
class Finding:
    """What an experiment found: ``value`` is judged, ``shown`` is printed.

    ``points`` are the numbers that ``value`` is the best, the worst or the middle of; they are plotted.
    """

    value: float
    shown: str
    points: tuple[float, ...] = ()


def passes_over_a_row(load: Load) -> Finding:
    """Chapter 2's row softmax, the row read three times and read twice."""
    record = load("softmax")
    ratios = []
    for three in record.where(kernel="three_pass"):
        problem = {name: three[name] for name in ("dtype", "rows", "columns")}
        ratios.append(three["ms"] / record.one(kernel="two_pass", **problem)["ms"])
    return Finding(max(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}×", tuple(ratios))


def gpt2_traffic(load: Load, kernel: str = "flash1") -> Finding:
    """Bytes at the HBM: standard attention, and FlashAttention.

    With its loops swapped, as FlashAttention-2 and later have them, unless another kernel is named.
    """
    record = load("fig2_left_dram")
    standard, flash = (
        sum(row["read_bytes"] + row["written_bytes"] for row in record.where(kernel=name))
        for name in ("naive", kernel)
    )
    return _from_to(standard, flash, 1e-9, "GB")


def gpt2_traffic_as_printed(load: Load) -> Finding:
    """The bytes with the keys in the outer loop."""
    return gpt2_traffic(load, "flash1_printed")


def gpt2_time(load: Load, kernel: str = "flash1") -> Finding:
    """The time of the same."""
    record = load("fig2_left")
    standard, flash = (record.one(kernel=k, causal=False)["ms"] for k in ("naive", kernel))
    return _from_to(standard, flash, 1, "ms")


def gpt2_time_as_printed(load: Load) -> Finding:
    """The time with the keys in the outer loop."""
    return gpt2_time(load, "flash1_printed")


def block_size(load: Load) -> Finding:
    """Time against the keys a block, as printed; judged from 64 on."""
    least: dict[int, float] = {}
    for row in load("flash1_block_size").rows:
        least[row["block_n"]] = min(row["ms"], least.get(row["block_n"], row["ms"]))
    smallest, fastest = min(least), min((n for n in least if n >= 64), key=least.get)
    value = least[64] / least[fastest]
    shown = f"{least[smallest] / least[fastest]:.1f}× from {smallest} to {fastest}"
    return Finding(value, f"{shown}; {value:.1f}× from 64")


def sparse_fraction(load: Load) -> Finding:
    """Speedup over dense times the share of blocks that are kept: 1 if proportional."""
    record = load("block_sparse")
    value, shown = _proportional(record.where(n=4096))
    longer = _proportional(record.where(n=16384))[1]
    return Finding(value, f"s × speedup: {shown}; N 16 384: {longer}")


def _proportional(rows: list[dict]) -> tuple[float, str]:
    """The least for shares from 1/8 on; and their range, the smallest share apart."""
    products = [(row["fraction"], row["fraction"] * row["dense_ratio"]) for row in rows]
    most = [product for fraction, product in products if fraction >= 1 / 8]
    smallest, product = min(products)
    shown = f"{min(most):.2f}–{max(most):.2f}, and {product:.2f} at 1/{1 / smallest:.0f}"
    return min(most), shown


def speed_over_eager(load: Load) -> Finding:
    """Forward and backward together beside eager PyTorch, at d 64 without a mask."""
    ratios = _over_eager(load("flash2_eager").where(d=64, causal=False))
    return Finding(max(ratios), f"{min(ratios):.1f}–{max(ratios):.1f}×", tuple(ratios))


def range_over_eager(load: Load) -> Finding:
    """The same at every length and head dimension, full and causal."""
    ratios = _over_eager(load("flash2_eager").rows)
    return Finding(min(ratios), f"{min(ratios):.1f}–{max(ratios):.1f}×", tuple(ratios))


def _over_eager(rows: list[dict]) -> list[float]:
    """How many times faster, wherever eager PyTorch finds room for S and P."""
    return [row["speedup"]["eager"] for row in rows if row["speedup"]["eager"]]


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
    return Finding(min(gains), f"{min(gains):.2f}–{max(gains):.2f}×", tuple(gains))


def few_heads(load: Load) -> Finding:
    """The gain from a program per tile of queries over one a head, with many heads and with few."""
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


def over_flash1(load: Load) -> Finding:
    """FlashAttention-2's forward pass beside chapter 3's kernel with its loops swapped."""
    record = load("flash2")
    ratios = []
    for row in record.where(kernel="flash2"):
        problem = {name: row[name] for name in ("dtype", "n", "d", "causal")}
        ratios.append(record.one(kernel="flash1", **problem)["ms"] / row["ms"])
    return Finding(median(ratios), f"{min(ratios):.2f}–{max(ratios):.2f}×", tuple(ratios))


def share_of_peak(load: Load) -> Finding:
    """The fastest forward pass over what the data sheet promises for float16."""
    rows = load("flash2").where(kernel="flash2", dtype="float16", n=2**14)
    shares = [row["tflops"] / DATASHEET_TFLOPS for row in rows]
    shown = f"{min(shares):.0%}–{max(shares):.0%}, forward".replace("%", " %")
    return Finding(max(shares), shown, tuple(shares))


def both_ways_d64(load: Load) -> Finding:
    """Forward and backward together at 16 384 tokens, over the paper's figures for an H100."""
    return _both_ways(load, 64, {False: 296, True: 284})


def both_ways_d128(load: Load) -> Finding:
    """The same at d 128."""
    return _both_ways(load, 128, {False: 338, True: 328})


def _both_ways(load: Load, d: int, paper: dict[bool, float]) -> Finding:
    reached = []
    for causal in paper:
        problem = {"kernel": "flash2", "dtype": "float16", "n": 2**14, "d": d, "causal": causal}
        forward, backward = (
            load(name).one(**problem)["tflops"] for name in ("flash2", "flash2_backward")
        )
        # The backward pass has 2.5 times the FLOPs of the forward one.
        reached.append(3.5 / (1 / forward + 2.5 / backward))
    shown = ", ".join(f"{tflops:.0f}" for tflops in reached)
    ratios = tuple(tflops / figure for tflops, figure in zip(reached, paper.values(), strict=True))
    return Finding(min(ratios), f"{shown} TFLOP/s", ratios)


def bert_training(load: Load) -> Finding:
    """A training step of BERT-large's shape, over one with eager attention."""
    over_eager = load("training").one(model="bert-large", attention="flash2")["speedup"]["eager"]
    return Finding(over_eager - 1, f"{over_eager - 1:.0%}".replace("%", " %"))


def gpt2_training(load: Load) -> Finding:
    """Training steps of GPT-2 small, over ones with eager attention."""
    rows = load("training").where(model="gpt2-small", attention="flash2")
    ratios = {row["n"]: row["speedup"]["eager"] for row in rows}
    shown = ", ".join(f"{ratios[n]:.1f}× at N {n}" for n in (min(ratios), max(ratios)))
    return Finding(ratios[1024], shown)


def long_range_training(load: Load) -> Finding:
    """Training steps of the long-range arena's model, the mean over its lengths."""
    rows = load("training").where(model="lra", attention="flash2")
    ratios = [row["speedup"]["eager"] for row in rows]
    mean = sum(ratios) / len(ratios)
    return Finding(mean, f"{mean:.1f}× ({min(ratios):.1f}–{max(ratios):.1f}×)", tuple(ratios))


def training_utilisation(load: Load) -> Finding:
    """A model of 1.3 billion parameters: its FLOPs a second over the data sheet's."""
    rows = load("training").where(model="gpt-1.3b", attention="flash2")
    best = max(rows, key=lambda row: row["mfu"])
    shown = f"{best['tflops']:.0f} TFLOP/s, {best['mfu']:.0%}; {best['of_gemm']:.0%} of a product's"
    return Finding(best["mfu"], shown.replace("%", " %"))


def hopper_over_flash2(load: Load) -> Finding:
    """FlashAttention-3's forward pass beside FlashAttention-2 as PyTorch has it, at every problem."""
    ratios = [row["speedup"]["fa2"] for row in load("flash3").where(kernel="flash3")]
    shown = f"{min(ratios):.1f}–{max(ratios):.1f}×, middle {median(ratios):.2f}×"
    return Finding(median(ratios), shown, tuple(ratios))


def hopper_d128(load: Load) -> Finding:
    """The forward pass at 16 384 tokens without a mask, over the paper's rate on an H100."""
    return _hopper_rate(load, 648, d=128, n=2**14, causal=False)


def hopper_d256(load: Load) -> Finding:
    """The same at d 256."""
    return _hopper_rate(load, 756, d=256, n=2**14, causal=False)


def hopper_best(load: Load) -> Finding:
    """The fastest of all float16 forward passes, over the paper's."""
    return _hopper_rate(load, 740)


def _hopper_rate(load: Load, paper: float, **problem) -> Finding:
    rows = load("flash3").where(kernel="flash3", dtype="float16", **problem)
    rates = tuple(row["tflops"] / paper for row in rows)
    return Finding(max(rates), f"{max(rates) * paper:.0f} TFLOP/s", rates)


def overlap_inside(load: Load) -> Finding:
    """What the softmax under a warpgroup's own products gains, at the shape of the paper's Table 2."""
    return _ablated(load, "no_overlap", "full")


def specialization(load: Load) -> Finding:
    """What the producer gains there."""
    return _ablated(load, "no_producer", "full")


def taking_turns(load: Load) -> Finding:
    """What pingpong gains there before the other overlap."""
    return _ablated(load, "producer", "turns_first")


def _ablated(load: Load, without: str, with_it: str) -> Finding:
    """Speed with an idea over that without, and both; the two are timed in the same rounds."""
    rows = [
        load("flash3_ablation").one(design=design, n=8448, d=128, causal=False)
        for design in (with_it, without)
    ]
    ratio = rows[0]["of_full"] / rows[1]["of_full"]
    return Finding(
        ratio, f"{rows[1]['tflops']:.0f} → {rows[0]['tflops']:.0f} TFLOP/s ({ratio:.2f}×)"
    )


def error_with_outliers(load: Load) -> Finding:
    """Root mean square error of standard attention in float16 and of FlashAttention-3, d 128."""
    record = load("numerical_error")
    standard, flash = (
        record.one(contestant=name, dtype="float16", d=128)["rmse"] for name in ("eager", "flash3")
    )
    shown = " → ".join(f"{error:.1e}".replace("e-0", "e-") for error in (standard, flash))
    return Finding(standard / flash, f"{shown} ({standard / flash:.1f}×)")


def fp8_best(load: Load) -> Finding:
    """The fastest of all FP8 forward passes, what is done to the inputs first included."""
    rates = tuple(row["tflops"] / 1200 for row in load("fp8").where(kernel="fp8"))
    return Finding(max(rates), f"{1200 * max(rates):.0f} TFLOP/s", rates)


def fp8_per_tensor(load: Load) -> Finding:
    """Root mean square error in FP8 with one scale a tensor and no rotation, and with all ideas."""
    return _fp8_errors(load, "per_tensor")


def fp8_without_block_scales(load: Load) -> Finding:
    """The same without block scales."""
    return _fp8_errors(load, "no_block_scales")


def fp8_without_rotation(load: Load) -> Finding:
    """The same without the rotation."""
    return _fp8_errors(load, "no_rotation")


def _fp8_errors(load: Load, without: str) -> Finding:
    record = load("fp8_error")
    worse, ours = (
        record.one(contestant=name, distribution="outliers", n=8192, d=128)["rmse"]
        for name in (without, "fp8")
    )
    shown = " → ".join(f"{error:.1e}".replace("e-0", "e-") for error in (worse, ours))
    return Finding(worse / ours, f"{shown} ({worse / ours:.2f}×)")


def memory_that_holds_tokens(load: Load) -> Finding:
    """Share of the slots that hold a token, and what pages make of Orca's best guess, Oracle."""
    rows = [load("memory_waste").one(workload="sharegpt", system=name) for name in _MEMORIES]
    shares = ", ".join(f"{100 * row['tokens']:.1f}" for row in rows[:-1])
    return Finding(
        rows[-1]["tokens"] / rows[-2]["tokens"], f"{shares}; {100 * rows[-1]['tokens']:.1f} %"
    )


def batched_requests(load: Load) -> Finding:
    """Requests in a step, and pages' over Oracle's."""
    rows = [load("memory_waste").one(workload="sharegpt", system=name) for name in _MEMORIES]
    shown = ", ".join(f"{row['running']:.1f}" for row in rows[:-1])
    return Finding(rows[-1]["running"] / rows[-2]["running"], f"{shown}; {rows[-1]['running']:.1f}")


_MEMORIES = ("max", "pow2", "oracle", "paged")


def shared_by_sampling(load: Load) -> Finding:
    """Blocks that the answers to one prompt share, over what the paper says of 2 and of 6."""
    return _shared(load, "sampling")


def shared_by_beams(load: Load) -> Finding:
    """Blocks that the beams of one search share, over the same."""
    return _shared(load, "beam")


def _shared(load: Load, method: str) -> Finding:
    rows = load("memory_sharing").where(workload="alpaca", method=method)
    saved = [row["saved"] for row in rows]
    value = min(row["saved"] / row["paper_saved"] for row in rows if "paper_saved" in row)
    return Finding(value, f"{100 * min(saved):.1f}–{100 * max(saved):.1f} %")


def served_over_oracle(load: Load) -> Finding:
    """Requests a second with pages over those with Oracle, at the same latency, ShareGPT's lengths."""
    return _ratio_of_rates(load, "oracle", scenario="sampling", workload="sharegpt")


def served_over_max(load: Load) -> Finding:
    """The same over Max."""
    return _ratio_of_rates(load, "max", scenario="sampling", workload="sharegpt")


def _ratio_of_rates(load: Load, other: str, **scenario) -> Finding:
    rates = [
        sustained_rate(load("serving").where(system=system, **scenario), SECONDS_A_TOKEN)
        for system in ("paged", other)
    ]
    return Finding(rates[0] / rates[1], f"{rates[0] / rates[1]:.2f}×")


def served_with_a_prefix(load: Load) -> Finding:
    """What pages serve over Oracle with a shared prefix, over what the paper says, the worse of both."""
    found = {
        prefix: _ratio_of_rates(load, "oracle", scenario="prefix", prefix=prefix)
        for prefix in (80, 341)
    }
    return Finding(
        min(found[80].value / 1.67, found[341].value / 3.58),
        f"{found[80].shown}, {found[341].shown}",
    )


def best_block_sizes(load: Load) -> Finding:
    """Block sizes whose latency is within 5 % of the best, and how near to it 16 is."""
    values, shown = [], []
    for workload in ("sharegpt", "alpaca"):
        rows = load("serving").where(scenario="block_size", workload=workload)
        latency = {row["block_size"]: row["latency"] for row in rows}
        best = min(latency.values())
        good = [size for size, seconds in latency.items() if seconds <= 1.05 * best]
        values.append(best / latency[16])
        shown.append(f"{min(good)}–{max(good)}")
    return Finding(min(values), ", ".join(shown))


def swapping_and_recomputing(load: Load) -> Finding:
    """Latency with one over that with the other, blocks of 16 to 64, where they differ most."""
    rows = load("serving").where(scenario="preemption", workload="sharegpt")
    latency = {(row["block_size"], row["preemption"]): row["latency"] for row in rows}
    ratios = [latency[size, "swap"] / latency[size, "recompute"] for size in (16, 32, 64)]
    return Finding(
        min(min(ratio, 1 / ratio) for ratio in ratios),
        f"swapping takes {min(ratios):.2f}–{max(ratios):.2f}× as long",
    )


def pages_cost(load: Load) -> Finding:
    """How much longer the paged kernel takes than the same kernel on one piece, in percent."""
    rows = load("paged_decode").where(kernel="paged", block_size=16)
    slower = [100 * (1 / row["speedup"]["contiguous"] - 1) for row in rows]
    return Finding(max(slower), f"{min(slower):.0f}–{max(slower):.0f} %", tuple(slower))


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
        gpt2_traffic_as_printed,
        gpt2_time,
        gpt2_time_as_printed,
        block_size,
        sparse_fraction,
        speed_over_eager,
        range_over_eager,
        memory_over_eager,
        memory_growth,
        causal_skip,
        few_heads,
        cost_outside_tensor_cores,
        over_flash1,
        share_of_peak,
        both_ways_d64,
        both_ways_d128,
        bert_training,
        gpt2_training,
        long_range_training,
        training_utilisation,
        hopper_over_flash2,
        hopper_d128,
        hopper_d256,
        hopper_best,
        overlap_inside,
        specialization,
        taking_turns,
        error_with_outliers,
        fp8_best,
        fp8_per_tensor,
        fp8_without_block_scales,
        fp8_without_rotation,
        memory_that_holds_tokens,
        batched_requests,
        shared_by_sampling,
        shared_by_beams,
        served_over_oracle,
        served_over_max,
        served_with_a_prefix,
        best_block_sizes,
        swapping_and_recomputing,
        pages_cost,
    )
}
