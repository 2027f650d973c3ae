"""Plots of chapter 8's records: what memory is used for, and what that does to a server."""

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
