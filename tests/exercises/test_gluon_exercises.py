"""The exercises in Gluon: what the simulator accepts is also what the compiler makes machine code of."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from exercises import catalogue, practice
from exercises.simulation import tiles_of
from scripts.environment import ROOT

TILE = "a descriptor of tiles"
# Of each kernel the types of its arguments, and the constants to compile it with.
KERNELS = {
    "ring_of_tiles": (
        {"left": TILE, "right": TILE, "product_ptr": "*fp32"},
        [{"STAGES": 1}, {"STAGES": 3}],
    ),
    "softmax_under_the_product": (
        {
            "query": TILE,
            "key": TILE,
            "value": TILE,
            "output_ptr": "*fp16",
            "logsumexp_ptr": "*fp32",
            "scale_log2": "fp32",
        },
        [{}],
    ),
}


def forms() -> list[dict]:
    """Each solution, right solution and stub, with the constants to compile it with."""
    return [
        {"exercise": name, "file": str(path.relative_to(ROOT)), "constants": constants}
        for name, (_, constants_of_forms) in KERNELS.items()
        for path in [
            catalogue.ROOT / name / "solution.py",
            catalogue.ROOT / name / "stub.py",
            *sorted((catalogue.ROOT / name).glob("right/*.py")),
        ]
        for constants in constants_of_forms
    ]


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """What became of each form, compiled in one process of its own: this one may be interpreting."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_solutions_and_stubs_compile_for_hopper(compiled):
    for form in compiled:
        assert form["spill_bytes"] == 0, form
        if not form["file"].endswith("stub.py"):
            assert form["tensor_core_instructions"] > 0, form
            # The assembler says so when it makes every product wait for the one before.
            assert "serialized" not in form["assembler"], form


def compile_forms() -> list[dict]:
    from instruments.compile_report import _run, compile_configuration, inspect_compiled
    from kernels.configurations import Configuration

    descriptor = tiles_of(torch.empty(64, 64, dtype=torch.float16))
    tile = f"tensordesc<fp16{list(descriptor.block_shape)},{descriptor.layout!r}>"
    rows = []
    for form in forms():
        exercise = catalogue.find(form["exercise"])
        kernel = getattr(practice.load(ROOT / form["file"]), exercise.function)
        types = {
            name: tile if kind == TILE else kind for name, kind in KERNELS[exercise.name][0].items()
        }
        kernel = compile_configuration(
            Configuration("", kernel, types, form["constants"], {"num_warps": 4}, (90,)), 90
        )
        with tempfile.TemporaryDirectory() as folder:
            ptx = Path(folder, "kernel.ptx")
            ptx.write_text(kernel.asm["ptx"])
            assembler = _run("ptxas", "-v", "-arch=sm_90a", ptx, "-o", Path(folder, "out"))
        rows.append({**form, **inspect_compiled(kernel), "assembler": assembler})
    return rows


if __name__ == "__main__":
    print(json.dumps(compile_forms()))
