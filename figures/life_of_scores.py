"""The life of S and P: what standard attention moves, holds and waits for, per kernel."""

from __future__ import annotations

import json
import math

import traitlets

from figures._mount import HERE, STATE, Figure

DTYPES = ("fp32", "fp16", "bf16")


def datasheet_gpus() -> list[dict]:
    return json.loads((HERE / "gpus.json").read_text("utf-8"))["gpus"]


def checked_gpu(gpu: dict) -> dict:
    """The GPU as the figure wants it, or a `ValueError` that says what is wrong with it."""
    needed = {"name", "bandwidth_tbs", "tflops", "memory_gb", "source"}
    if not isinstance(gpu, dict) or set(gpu) != needed:
        raise ValueError(f"A GPU is a dict with exactly the keys {sorted(needed)}; got {gpu!r}.")
    tflops = gpu["tflops"]
    if not isinstance(tflops, dict) or set(tflops) != set(DTYPES):
        raise ValueError(f"A GPU's tflops is a dict with the keys {DTYPES}; got {tflops!r}.")
    rates = {"bandwidth_tbs": gpu["bandwidth_tbs"], "memory_gb": gpu["memory_gb"]}
    rates |= {dtype: rate for dtype, rate in tflops.items() if rate is not None or dtype == "fp32"}
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or not math.isfinite(rate) or rate <= 0:
            raise ValueError(f"{gpu['name']}: {name} must be a number above 0; got {rate!r}.")
    return gpu


class LifeOfScores(Figure):
    """S = scale·QKᵀ, P = softmax(S), O = PV as three kernels with S and P in HBM.

    `gpus` come before the datasheet's list (and replace an entry of the same name): put what you
    measured there. `gpu` names the one that is shown first.
    """

    _module = "life_of_scores"
    _alternative = (
        "Interactive figure: the life of S and P. It shows the bytes that standard attention's "
        "three kernels move, the memory they hold, and their time at the roofline."
    )

    sequence_length = traitlets.Enum([2**k for k in range(7, 18)], 4096).tag(**STATE)
    head_dim = traitlets.Enum([16, 32, 64, 128, 256], 64).tag(**STATE)
    dtype = traitlets.Enum(DTYPES, "fp16").tag(**STATE)
    batch_heads = traitlets.Enum([2**k for k in range(10)], 16).tag(**STATE)
    gpus = traitlets.List().tag(**STATE)
    gpu = traitlets.Unicode().tag(**STATE)

    def __init__(self, *, gpus: list[dict] = (), gpu: str | None = None, **state):
        given = [checked_gpu(entry) for entry in gpus]
        names = {entry["name"] for entry in given}
        given += [entry for entry in datasheet_gpus() if entry["name"] not in names]
        gpu = gpu or (given[0]["name"] if names else "H100 SXM")
        super().__init__(gpus=given, gpu=gpu, **state)

    @traitlets.validate("gpu")
    def _known_gpu(self, proposal):
        names = [entry["name"] for entry in self.gpus]
        if proposal["value"] not in names:
            raise traitlets.TraitError(
                f"gpu is one of {', '.join(names)}; got {proposal['value']!r}."
            )
        return proposal["value"]
