"""FlashAttention-3's kernel in machine code, with no GPU: registers, spills, meetings, what overlaps."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernels.configurations import SHARED_BYTES
from tests.kernels.tritons import TRITONS, run_script

SHIPPED = [(head_dim, causal, {}) for head_dim in (64, 128, 256) for causal in (False, True)]
ALONE = {"specialized": False, "pingpong": False}
# What no shipped form shows, from the plainest to the paper's, at the head dimension of its ablation.
OTHERS = [
    (128, True, ALONE | {"stages": 1, "overlap": "none"}),
    (128, True, ALONE | {"overlap": "softmax"}),
    (128, True, {"overlap": "softmax", "pingpong": True}),
]


@pytest.fixture(scope="module", params=TRITONS)
def compiled(request):
    """What became of each form."""
    return run_script(request.param, __file__, json.dumps(SHIPPED + OTHERS))


@pytest.fixture
def shipped(compiled):
    """The forms that are launched unless a design is asked for."""
    return compiled[: len(SHIPPED)]


@pytest.mark.timeout(600)
def test_every_form_fits(compiled):
    for form in compiled:
        assert form["shared_bytes"] <= SHARED_BYTES[90], form
        assert form["tensor_core_instructions"] > 0, form


def test_every_consumer_has_a_main_loop_and_under_a_causal_mask_one_with_the_mask(compiled):
    # What the tests below say of main loops they would also say of none.
    for form in compiled:
        consumers = form["design"]["warpgroups"] if form["design"]["specialized"] else 1
        masked = [loop["masked"] for loop in form["loops"]]
        assert masked.count(False) == consumers, form
        assert masked.count(True) == consumers * form["causal"], form


def test_no_step_without_a_mask_goes_through_memory(compiled, shipped):
    # Some forms want a few registers more than a consumer has. Those shipped may keep in memory what a tile
    # of queries needs once, and one value that a step with a mask needs, as it has few of these. In the
    # steps without, which can be hundreds, a load would cost its latency each time. (Without a producer a
    # thread has no more than 255 registers, whatever is free.)
    for form in compiled:
        for loop in form["loops"]:
            if form["design"]["specialized"] and not loop["masked"]:
                assert not loop["local_accesses"], form
    for form in shipped:
        assert form["spill_bytes"] <= 32, form
        for loop in form["loops"]:
            assert loop["local_accesses"] <= 1, form


def test_consumers_meet_twice_a_step_and_once_more_for_turns(shipped):
    # Triton lets the four warps of a consumer meet before they wait for a barrier and before they arrive at
    # one. This is why K and V that are multiplied together share their barriers.
    for form in shipped:
        for loop in form["loops"]:
            assert loop["meetings"] <= 2 + form["design"]["pingpong"], form


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


def test_the_softmax_runs_under_the_product_as_far_as_asked_to(compiled):
    for form in compiled:
        # A thread has half a row of scores: 64 rows over 128 threads.
        scores = form["design"]["block_n"] // 2
        for loop in form["loops"]:
            if form["design"]["overlap"] == "none":
                assert set(loop["waits"]) == {0}, form
                continue
            assert loop["waits"] == [1, 0], form
            if form["design"]["overlap"] == "softmax":
                assert loop["exponentials_under_product"] >= scores, form
            elif not loop["masked"]:
                # The assembler decides how many; with a mask, which comes first, at times none.
                assert loop["maxima_under_product"] >= scores // 4, form


def _inspect(head_dim: int, causal: bool, changes: dict) -> dict:
    from dataclasses import asdict, replace

    import torch

    from instruments.compile_report import compile_configuration
    from kernels import flash3

    design = replace(flash3.shipped_design(head_dim), **changes)
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
        "shared_bytes": kernel.metadata.shared,
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", assembler))),
        "tensor_core_instructions": machine_code.count("HGMMA"),
        "assembler": assembler,
        "register_counts": [
            int(count, 16) for count in re.findall(r"USETMAXREG[^;]*?(0x\w+) ;", machine_code)
        ],
        "loops": [
            _inspect_loop(loop, design.block_n // 2)
            for loop in _main_loops(machine_code, design.block_n // 2)
        ],
    }


def _main_loops(machine_code: str, exponentials: int) -> list[list[str]]:
    """The instructions of each loop over keys: with so many exponentials, and no such loop ends in it.

    What lies between an instruction and a branch back to it is not always a loop: what is seldom run, such
    as a wait that has to be repeated, stands after all the rest and branches back into the middle of one.
    """
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", machine_code)
    instructions = [instruction for _, instruction in found]
    index_of = {int(address, 16): index for index, (address, _) in enumerate(found)}
    spans = []
    for end, instruction in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
        start = index_of.get(int(branch[1], 16), end) if branch else end
        if _count("MUFU.EX2", instructions[start:end]) >= exponentials:
            spans.append((start, end))
    return [
        instructions[start:end]
        for start, end in spans
        if not any(start < other_end < end for _, other_end in spans)
    ]


def _inspect_loop(loop: list[str], scores: int) -> dict:
    waits = [place for place, instruction in enumerate(loop) if "WARPGROUP.DEPBAR" in instruction]
    under_product = loop[waits[0] : waits[-1]]
    return {
        "masked": _count("FSEL", loop) >= scores,
        "waits": [int(re.search(r"gsb0, (0x\w+)", loop[wait])[1], 16) for wait in waits],
        "exponentials_under_product": _count("MUFU.EX2", under_product),
        "maxima_under_product": _count("FMNMX", under_product),
        "meetings": _count("BAR.SYNC", loop),
        "local_accesses": _count("LDL", loop) + _count("STL", loop),
    }


def _count(operation: str, instructions: list[str]) -> int:
    return sum(operation in instruction for instruction in instructions)


def _tool(name: str, *arguments) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


if __name__ == "__main__":
    print(json.dumps([_inspect(*form) for form in json.loads(sys.argv[1])]))
