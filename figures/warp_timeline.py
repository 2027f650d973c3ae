"""What the warps of FlashAttention-3's kernel do when, and what they wait for."""

from __future__ import annotations

import json

import traitlets

from figures._mount import HERE, STATE, Figure

SWITCHES = ("loader", "stages", "overlap", "pingpong", "head_dim")


def recorded_runs() -> dict:
    """Runs of every setting, as ``instruments.warp_timeline`` wrote them."""
    return json.loads((HERE / "warp_timeline.json").read_text("utf-8"))


class WarpTimeline(Figure):
    """One SM while FlashAttention-3's kernel runs one tile of queries, on the simulator.

    ``loader`` says who starts the loads: "producer", a warp of its own, or "alone", the consumers
    themselves; then ``pingpong`` has no effect. ``stages`` is the number of slots, for a tile of K and a
    tile of V each. ``overlap`` says what runs under the product with V. ``cycle`` is where the time
    cursor stands. ``runs`` holds what is shown, as
    ``instruments.warp_timeline.timelines()`` gives it.
    """

    _module = "warp_timeline"
    _alternative = (
        "Interactive figure: warps over time. It shows what the producer, the consumers, the tensor "
        "cores and the exponential unit of one multiprocessor do while FlashAttention-3's kernel runs "
        "one tile of queries, and which slot holds which tiles of K and V."
    )

    loader = traitlets.Enum(["alone", "producer"], "producer").tag(**STATE)
    stages = traitlets.Enum([1, 2, 3], 2).tag(**STATE)
    overlap = traitlets.Enum(["none", "maximum", "softmax"], "maximum").tag(**STATE)
    pingpong = traitlets.Bool(False).tag(**STATE)
    head_dim = traitlets.Enum([64, 128], 128).tag(**STATE)
    cycle = traitlets.Int(9500, min=0).tag(**STATE)
    runs = traitlets.Dict(default_value=recorded_runs()).tag(**STATE)

    @traitlets.validate("runs")
    def _a_run_for_every_setting(self, proposal):
        found = {
            tuple(run.get(switch) for switch in SWITCHES)
            for run in proposal["value"].get("runs", [])
        }
        wanted = {tuple(run[switch] for switch in SWITCHES) for run in recorded_runs()["runs"]}
        if missing := sorted(wanted - found):
            setting = dict(zip(SWITCHES, missing[0], strict=True))
            raise traitlets.TraitError(
                f"runs must hold a run for every setting, as instruments.warp_timeline.timelines() "
                f"gives them; there is none for {setting}."
            )
        return proposal["value"]
