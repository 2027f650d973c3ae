"""Plots of chapter 8's records: what memory is used for, and what that does to a server."""

from itertools import pairwise

from instruments.plots import PALETTE, figure
from instruments.records import Record

SYSTEM_NAMES = {"max": "Max", "pow2": "Pow2", "oracle": "Oracle", "paged": "paged"}
_KINDS = {
    "tokens": ("tokens", "blue"),
    "reserved": ("reserved, used later", "green"),
    "internal": ("reserved, never used", "orange"),
    "rounding": ("rounded up", "purple"),
    "free": ("free, does not fit", "grey"),
}


def plot_memory_waste(record: Record, workload: str) -> None:
    """One bar a system: the shares of all slots, averaged over the steps in which requests wait."""
    rows = {row["system"]: row for row in record.where(workload=workload)}
    shares = ", ".join(
        f"{name} {100 * rows[system]['tokens']:.1f} %" for system, name in SYSTEM_NAMES.items()
    )
    alt = f"Share of the slots that hold a token, {workload} lengths: {shares}."
    with figure("What the memory for keys and values is used for", alt=alt, height=3.2) as axes:
        left = dict.fromkeys(rows, 0.0)
        for kind, (label, color) in _KINDS.items():
            for place, system in enumerate(SYSTEM_NAMES):
                share = 100 * rows[system][kind]
                axes.barh(
                    place,
                    share,
                    left=left[system],
                    height=0.62,
                    color=PALETTE[color],
                    label=label if place == 0 else None,
                )
                left[system] += share
        for place, system in enumerate(SYSTEM_NAMES):
            tokens = f"{100 * rows[system]['tokens']:.1f} tokens"
            axes.text(101, place, tokens, va="center", color=PALETTE["blue"])
        axes.set_yticks(range(len(SYSTEM_NAMES)), SYSTEM_NAMES.values())
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"% of the slots ({workload} lengths)")
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def plot_memory_sharing(record: Record) -> None:
    """Blocks saved against the sequences of a request; open circles are the paper's."""
    methods = {"sampling": "parallel sampling", "beam": "beam search"}
    colors = {"alpaca": "blue", "sharegpt": "orange"}
    lines = {
        (method, workload): record.where(method=method, workload=workload)
        for method in methods
        for workload in colors
    }
    said = (
        f"{methods[method]}, {workload}: {100 * rows[0]['saved']:.1f} to {100 * rows[-1]['saved']:.1f} %"
        for (method, workload), rows in lines.items()
    )
    alt = f"Share of blocks saved with 2 to 6 sequences a request: {'; '.join(said)}."
    with figure("Blocks that sharing saves", alt=alt, panels=2, height=3.4) as panels:
        for axes, (method, name) in zip(panels, methods.items(), strict=True):
            for workload, color in colors.items():
                rows = lines[method, workload]
                paper = [row for row in rows if "paper_saved" in row]
                line = {"marker": "o", "color": PALETTE[color]}
                axes.plot(*_saved(rows, "saved"), **line, label=workload)
                circles = {"linestyle": "none", "markerfacecolor": "none", "markersize": 10}
                axes.plot(*_saved(paper, "paper_saved"), **line, **circles)
            axes.set_title(name)
            axes.set_xticks([2, 4, 6])
            axes.set_xlabel("sequences a request")
            axes.set_ylim(0, 100)
        panels[0].set_ylabel("% of the blocks saved")
        panels[0].legend()


def _saved(rows: list[dict], field: str) -> tuple[list[int], list[float]]:
    return [row["parallel"] for row in rows], [100 * row[field] for row in rows]


def sustained_rate(rows: list[dict], latency: float) -> float:
    """The rate at which one system's latency reaches so many seconds a token, between measured rates.

    ``rows`` are those of one system, at rates that go up. If the latency stays below, the highest rate.
    """
    rows = sorted(rows, key=lambda row: row["rate"])
    if rows[0]["latency"] > latency:
        raise ValueError(
            f"at the lowest rate, {rows[0]['rate']}, the latency is {rows[0]['latency']} already, "
            f"above {latency}"
        )
    for below, above in pairwise(rows):
        if above["latency"] > latency:
            part = (latency - below["latency"]) / (above["latency"] - below["latency"])
            return below["rate"] + part * (above["rate"] - below["rate"])
    return rows[-1]["rate"]


def plot_latency(record: Record, title: str, **scenario) -> None:
    """Seconds a token against the rate of requests, a line a system; ``scenario`` chooses the rows."""
    by_system: dict[str, list[dict]] = {}
    for row in record.where(**scenario):
        by_system.setdefault(row["system"], []).append(row)
    highest = {system: max(row["rate"] for row in rows) for system, rows in by_system.items()}
    alt = f"{title}: normalized latency against requests a second, " + ", ".join(
        f"{SYSTEM_NAMES[system]} from {1000 * rows[0]['latency']:.0f} to "
        f"{1000 * rows[-1]['latency']:.0f} ms a token at {highest[system]:.3g}"
        for system, rows in by_system.items()
    )
    with figure(title, alt=f"{alt}.") as axes:
        for system, rows in by_system.items():
            rates = [row["rate"] for row in rows]
            latencies = [1000 * row["latency"] for row in rows]
            axes.plot(rates, latencies, marker="o", markersize=4, label=SYSTEM_NAMES[system])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("requests a second")
        axes.set_ylabel("ms a token, from arrival to end")
        axes.legend()
