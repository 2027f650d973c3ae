"""Every load and store of a real kernel, in the order in which Triton's interpreter ran them."""

from __future__ import annotations

import traitlets

from figures._mount import STATE, Figure

NEEDED = {"name", "tensors", "launches", "accesses"}


class KernelTrace(Figure):
    """The recorded runs of one kernel or several: what is touched, what again, and how many bytes that is.

    `runs` are what `instruments.kernel_trace.record` gives. `run` names the one that is shown, and `step`
    says how many of its loads and stores have happened. A step forward is `by` one "access", one
    "program" or one "kernel".
    """

    _module = "kernel_trace"
    _alternative = (
        "Interactive figure: a kernel's recorded loads and stores. It shows step by step which program "
        "touches which tile of which tensor, and counts the bytes read and written."
    )

    runs = traitlets.List().tag(**STATE)
    run = traitlets.Unicode().tag(**STATE)
    step = traitlets.Int(0).tag(**STATE)
    by = traitlets.Enum(["access", "program", "kernel"], "access").tag(**STATE)

    def __init__(self, *, runs: list[dict], run: str | None = None, **state):
        if not runs or any(not isinstance(one, dict) or set(one) < NEEDED for one in runs):
            raise ValueError(
                "runs are what instruments.kernel_trace.record returns, at least one; got "
                f"{str(runs)[:60]}"
            )
        super().__init__(runs=runs, run=run or runs[0]["name"], **state)

    @property
    def last_step(self) -> int:
        """The number of loads and stores of the run that is shown."""
        return len(next(run for run in self.runs if run["name"] == self.run)["accesses"])

    @traitlets.validate("run")
    def _recorded_run(self, proposal):
        names = [run["name"] for run in self.runs]
        if proposal["value"] not in names:
            raise traitlets.TraitError(
                f"run is one of {', '.join(names)}; got {proposal['value']!r}."
            )
        return proposal["value"]

    @traitlets.validate("step")
    def _existing_step(self, proposal):
        if not 0 <= proposal["value"] <= self.last_step:
            raise traitlets.TraitError(
                f"step is a whole number from 0 to {self.last_step}; got {proposal['value']}."
            )
        return proposal["value"]
