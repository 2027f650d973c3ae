"""The GPUs that a figure can be asked about: the datasheets' list, and what a reader measured."""

from __future__ import annotations

import json
import math

import traitlets

from figures._mount import HERE, STATE, Figure

DTYPES = ("fp32", "fp16", "bf16")
NEEDED = {"name", "bandwidth_tbs", "tflops", "memory_gb", "source"}
# Of the chip, not of a measurement: a measured entry takes these from the datasheet's of its name.
OF_THE_CHIP = {"sms", "sram_kib", "l2_mib"}


def datasheet_gpus() -> list[dict]:
    return json.loads((HERE / "gpus.json").read_text("utf-8"))["gpus"]


def checked_gpu(gpu: dict) -> dict:
    """The GPU as a figure wants it, or a `ValueError` that says what is wrong with it."""
    if not isinstance(gpu, dict) or set(gpu) != NEEDED:
        raise ValueError(f"A GPU is a dict with exactly the keys {sorted(NEEDED)}; got {gpu!r}.")
    tflops = gpu["tflops"]
    if not isinstance(tflops, dict) or set(tflops) != set(DTYPES):
        raise ValueError(f"A GPU's tflops is a dict with the keys {DTYPES}; got {tflops!r}.")
    rates = {"bandwidth_tbs": gpu["bandwidth_tbs"], "memory_gb": gpu["memory_gb"]}
    rates |= {dtype: rate for dtype, rate in tflops.items() if rate is not None or dtype == "fp32"}
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or not math.isfinite(rate) or rate <= 0:
            raise ValueError(f"{gpu['name']}: {name} must be a number above 0; got {rate!r}.")
    return gpu


class GPUFigure(Figure):
    """A figure that asks about a GPU.

    `gpus` come before the datasheet's list (and replace an entry of the same name): put what you
    measured there. `gpu` names the one that is shown first; without it the first that was measured
    is, or else `_first_gpu`.
    """

    _first_gpu: str

    gpus = traitlets.List().tag(**STATE)
    gpu = traitlets.Unicode().tag(**STATE)

    def __init__(self, *, gpus: list[dict] = (), gpu: str | None = None, **state):
        known = {entry["name"]: entry for entry in datasheet_gpus()}
        given = {}
        for entry in map(checked_gpu, gpus):
            chip = known.pop(entry["name"], {})
            given[entry["name"]] = entry | {key: chip[key] for key in OF_THE_CHIP & set(chip)}
        gpu = gpu or next(iter(given), self._first_gpu)
        super().__init__(gpus=[*given.values(), *known.values()], gpu=gpu, **state)

    @traitlets.validate("gpu")
    def _known_gpu(self, proposal):
        names = [entry["name"] for entry in self.gpus]
        if proposal["value"] not in names:
            raise traitlets.TraitError(
                f"gpu is one of {', '.join(names)}; got {proposal['value']!r}."
            )
        return proposal["value"]
