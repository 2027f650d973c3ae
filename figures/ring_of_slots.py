"""The ring of K and V of FlashAttention-3's kernel: its slots and barriers, event by event."""

from __future__ import annotations

import json

import traitlets

from figures._mount import HERE, STATE, Figure

SETTINGS = ("stages", "mistake")


def recorded_runs() -> dict:
    """Runs of every setting, as ``instruments.ring_of_slots`` wrote them."""
    return json.loads((HERE / "ring_of_slots.json").read_text("utf-8"))


class RingOfSlots(Figure):
    """A producer and two consumers of FlashAttention-3's kernel at the ring of K and V.

    ``stages`` is the number of slots. ``mistake`` is one planted in the kernel: "none"; "parity", the
    producer waits for the wrong phase; "early", consumers release a slot before their product is over;
    "never", one of them does not. ``step`` is the event that has just happened. ``runs`` holds what is
    shown, as ``instruments.ring_of_slots.runs()`` gives it.
    """

    _module = "ring_of_slots"
    _alternative = (
        "Interactive figure: a ring of slots. It shows, event by event, how the producer and the consumers "
        "of FlashAttention-3's kernel fill and empty the slots of shared memory, what the barriers of each "
        "slot count, who waits for whom, and how one mistake ends in a deadlock or a race."
    )

    stages = traitlets.Enum([1, 2, 3], 2).tag(**STATE)
    mistake = traitlets.Enum(["none", "parity", "early", "never"], "none").tag(**STATE)
    step = traitlets.Int(37, min=0).tag(**STATE)
    runs = traitlets.Dict(default_value=recorded_runs()).tag(**STATE)

    @traitlets.validate("runs")
    def _a_run_for_every_setting(self, proposal):
        found = {
            tuple(run.get(key) for key in SETTINGS) for run in proposal["value"].get("runs", [])
        }
        wanted = {tuple(run[key] for key in SETTINGS) for run in recorded_runs()["runs"]}
        if missing := sorted(wanted - found):
            setting = dict(zip(SETTINGS, missing[0], strict=True))
            raise traitlets.TraitError(
                "runs must hold a run for every setting, as instruments.ring_of_slots.runs() gives "
                f"them; there is none for {setting}."
            )
        return proposal["value"]
