"""FlashAttention-3's kernel in machine code, with no GPU: registers, spills, and whether it overlaps."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernels.configurations import SHARED_BYTES

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [(head_dim, causal, None) for head_dim in (64, 128, 256) for causal in (False, True)]
ALONE = {"specialized": False, "pingpong": False}
# Every step from plain to shipped, at the head dimension of the paper's ablation.
STEPS = [
    ALONE | {"stages": 1, "overlap": False},
    ALONE | {"overlap": False},
    ALONE,
    {"stages": 1, "overlap": False, "pingpong": False},
    {"overlap": False, "pingpong": False},
    {"pingpong": False},
    {"overlap": False},
    {"output_apart": False},
]


@pytest.fixture(scope="module")
def compiled():
    """What became of each form, compiled in one process of its own: this one may be interpreting."""
    forms = SHIPPED + [(128, True, step) for step in STEPS]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(forms)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(600)
def test_every_form_fits_without_spills(compiled):
    for form in compiled:
        assert form["spill_bytes"] == 0, form
        assert form["shared_bytes"] <= SHARED_BYTES[90], form
        assert form["tensor_core_instructions"] > 0, form


def test_products_stay_asynchronous(compiled):
    for form in compiled:
        # The assembler says so when it makes every product wait for the one before.
        assert "serialized" not in form["assembler"], form


def test_the_producer_gives_its_registers_to_the_consumers(compiled):
    for form in compiled:
        design = form["design"]
        if not design["specialized"]:
            assert form["register_counts"] == [], form
            continue
        assert {2: {24, 240}, 3: {32, 160}}[design["warpgroups"]] <= set(form["register_counts"]), (
            form
        )


def test_exponentials_run_under_the_product_exactly_if_asked_to(compiled):
    for form in compiled:
        design = form["design"]
        if not design["overlap"]:
            assert form["exponentials_under_product"] == [], form
            continue
        # One main loop a consumer. A thread has half a row of scores: 64 rows over 128 threads.
        consumers = design["warpgroups"] if design["specialized"] else 1
        assert len(form["exponentials_under_product"]) == consumers, form
        assert min(form["exponentials_under_product"]) >= design["block_n"] // 2, form


def _inspect(head_dim: int, causal: bool, changes: dict | None) -> dict:
    from dataclasses import asdict, replace

    import torch

    from instruments.compile_report import compile_configuration, inspect_compiled
    from kernels import flash3

    design = replace(flash3.shipped_design(head_dim), **(changes or {}))
    configuration = flash3.configuration("", torch.float16, head_dim, causal, design)
    kernel = compile_configuration(configuration, 90)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        machine_code = _tool("cuobjdump", "-sass", cubin)
        assembler = _tool("ptxas", "-v", "-arch=sm_90a", ptx, "-o", Path(folder, "out"))
    return {
        "head_dim": head_dim,
        "causal": causal,
        "design": asdict(design),
        **inspect_compiled(kernel),
        "assembler": assembler,
        "register_counts": [
            int(count, 16) for count in re.findall(r"USETMAXREG[^;]*?(0x\w+) ;", machine_code)
        ],
        "exponentials_under_product": _exponentials_under_product(machine_code),
    }


def _exponentials_under_product(machine_code: str) -> list[int]:
    """In each main loop, the exponentials after the scores are there and before the product is awaited."""
    loops = re.findall(r"gsb0, 0x1 ;(.*?)gsb0, 0x0 ;", machine_code, re.DOTALL)
    return [len(re.findall(r"MUFU\.EX2", loop)) for loop in loops]


def _tool(name: str, *arguments) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


if __name__ == "__main__":
    print(json.dumps([_inspect(*form) for form in json.loads(sys.argv[1])]))
