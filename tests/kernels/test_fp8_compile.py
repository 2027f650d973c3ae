"""FP8 attention in machine code, with no GPU: spills, 8-bit products, what main loops are made of."""

import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from instruments import compile_report
from kernels.configurations import SHARED_BYTES
from kernels.quantization import FP8_ARCHITECTURES
from tests.kernels.tritons import TRITONS, run_script

ROOT = Path(__file__).resolve().parents[2]
# With a causal mask they have a main loop without the mask and one with it.
SHIPPED = [(head_dim, True) for head_dim in (64, 128, 256)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "architectures"), [("fp8_forward", FP8_ARCHITECTURES), ("fp8_preparation", (89, 90))]
)
def test_ships_without_spills(name, architectures):
    rows = compile_report.report(f"kernels.{name}", architectures)
    assert {row["arch"] for row in rows} == set(architectures)
    for row in rows:
        assert row["spill_bytes"] == 0 and 0 < row["registers"] <= 255, row
        assert row["shared_bytes"] <= SHARED_BYTES[row["arch"]], row
        assert (row["tensor_core_instructions"] > 0) == (name == "fp8_forward"), row


@pytest.fixture(scope="module", params=TRITONS)
def hopper(request):
    """What became of each form for Hopper."""
    return run_script(request.param, __file__)


@pytest.mark.timeout(600)
def test_every_form_fits_and_multiplies_in_8_bits(hopper):
    assert [(form["head_dim"], form["causal"]) for form in hopper] == SHIPPED
    for form in hopper:
        assert form["shared_bytes"] <= SHARED_BYTES[90], form
        assert form["QGMMA"] > 0 and form["HGMMA"] == 0, form
        assert not form["serialized"], form


def test_next_to_nothing_of_the_main_loops_goes_through_memory(hopper):
    # At head dimension 64 there are three consumers, and one value too many for their registers.
    for form in hopper:
        consumers = 3 if form["head_dim"] == 64 else 2
        assert len(form["loops"]) == consumers * (1 + form["causal"]), form
        for loop in form["loops"]:
            stores, loads = (loop.get(name, 0) for name in ("STL", "LDL"))
            assert max(stores, loads) <= (form["head_dim"] == 64), form
        # What a tile of queries needs once may wait in memory; so many bytes stored, and loaded.
        assert form["spill_bytes"] <= {64: 2 * 64, 128: 0, 256: 2 * 16}[form["head_dim"]], form


def test_weights_stay_packed_from_step_to_step(hopper):
    # Taken apart, each would be moved around by an instruction of its own.
    for form in hopper:
        for loop in form["loops"]:
            assert loop.get("PRMT", 0) == 0 and loop["F2FP"] == loop["weights"] // 2, form


def _inspect(head_dim: int, causal: bool) -> dict:
    from instruments.compile_report import compile_configuration, inspect_compiled
    from kernels import fp8_hopper
    from tests.kernels.test_flash3_compile import _main_loops, _tool

    design = fp8_hopper.shipped_design(head_dim)
    kernel = compile_configuration(fp8_hopper.configuration("", head_dim, causal, design), 90)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        machine_code = _tool("cuobjdump", "-sass", cubin)
        assembler = _tool("ptxas", "-v", "-arch=sm_90a", ptx, "-o", Path(folder, "out"))
    weights = design.block_n // 2  # of a thread, in a step
    return {
        "head_dim": head_dim,
        "causal": causal,
        "shared_bytes": kernel.metadata.shared,
        "spill_bytes": inspect_compiled(kernel)["spill_bytes"],
        "serialized": "serialized" in assembler,
        **{name: machine_code.count(name) for name in ("QGMMA", "HGMMA")},
        "loops": [
            {"weights": weights} | Counter(_operation(line) for line in loop)
            for loop in _main_loops(machine_code, weights)
        ],
    }


def _operation(instruction: str) -> str:
    """``F2FP`` of ``@P0 F2FP.SATFINITE...``."""
    return re.sub(r"^@!?U?P\w+ ", "", instruction).split()[0].partition(".")[0]


if __name__ == "__main__":
    print(json.dumps([_inspect(*form) for form in SHIPPED]))
