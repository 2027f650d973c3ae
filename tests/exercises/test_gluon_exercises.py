"""The exercises in Gluon: solutions compile for Hopper, and learners are told what went wrong where."""

import json
import os
import re
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
from tests.exercises.attempts import attempts, find

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


def forms(folder: Path) -> list[dict]:
    """Each solution, right solution and stub, with the constants to compile it with."""
    return [
        {"exercise": name, "file": str(path), "constants": constants}
        for name, (_, constants_of_forms) in KERNELS.items()
        for path in [
            catalogue.ROOT / name / "solution.py",
            catalogue.ROOT / name / "stub.py",
            *(attempt.write(folder) for attempt in attempts(catalogue.find(name), "right")),
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


@pytest.fixture
def told(tmp_path):
    """told(exercise, wrong, test): what a learner is told of a wrong solution, and the lines of it."""

    def run(name: str, wrong: str, test: str) -> tuple[str, list[str]]:
        exercise = catalogue.find(name)
        path = find(exercise, "wrong", wrong).write(tmp_path)
        message = practice.run_tests(exercise, practice.load(path))[test]
        return message, path.read_text("utf-8").splitlines()

    return run


def test_a_race_is_told_with_the_buffer_and_both_lines(told):
    message, lines = told("ring_of_tiles", "releases_under_the_product", "test_two_slots")
    found = re.fullmatch(
        r"With 3 tiles and 2 slots: A race: producer starts a TMA copy into left_tiles\[0\] in line (\d+), "
        r"but nothing it waited for says that this is over: consumer starts a wgmma that reads "
        r"left_tiles\[0\] in line (\d+)\. A barrier must tell the second that the first is over\.",
        message,
    )
    copy, product = (lines[int(number) - 1] for number in found.groups())
    assert "async_copy_global_to_shared" in copy and "warpgroup_mma(" in product


def test_a_deadlock_is_told_with_who_waits_where_for_what(told):
    message, lines = told("ring_of_tiles", "never_releases", "test_two_slots")
    found = re.search(
        r"A deadlock: .*: producer waits in line (\d+) for empty\[0\], .*; consumer waits in line (\d+) "
        r"for full\[0\], ",
        message,
    )
    first, second = (lines[int(number) - 1] for number in found.groups())
    assert "wait(empty" in first and "wait(full" in second


def test_a_deadlock_of_one_partition_names_it_alone(told):
    message, _ = told("ring_of_tiles", "no_expect", "test_one_tile")
    assert "consumer waits" in message and "producer" not in message


def test_a_result_in_flight_is_told_with_its_line(told):
    message, lines = told("softmax_under_the_product", "rescales_in_flight", "test_two_tiles")
    found = re.search(r"Not waited for: consumer uses an accumulator in line (\d+) ", message)
    assert "accumulator * rescale" in lines[int(found[1]) - 1]


def test_an_error_in_a_kernel_is_told_with_its_line(tmp_path):
    exercise = catalogue.find("ring_of_tiles")
    path = tmp_path / "attempt.py"
    text = exercise.read("solution.py")
    path.write_text(text.replace("total, is_async=True", "sum, is_synchronous=True"), "utf-8")
    message = practice.run_tests(exercise, practice.load(path))["test_one_tile"]
    line = text[: text.index("total, is_async=True")].count("\n") + 1
    assert message.startswith("TypeError: ") and message.endswith(f"(line {line} of your code)")


def compile_forms(folder: Path) -> list[dict]:
    from instruments.compile_report import _run, compile_configuration, inspect_compiled
    from kernels.configurations import Configuration

    descriptor = tiles_of(torch.empty(64, 64, dtype=torch.float16))
    tile = f"tensordesc<fp16{list(descriptor.block_shape)},{descriptor.layout!r}>"
    rows = []
    for form in forms(folder):
        exercise = catalogue.find(form["exercise"])
        kernel = getattr(practice.load(Path(form["file"])), exercise.function)
        types = {
            name: tile if kind == TILE else kind for name, kind in KERNELS[exercise.name][0].items()
        }
        kernel = compile_configuration(
            Configuration("", kernel, types, form["constants"], {"num_warps": 4}, (90,)), 90
        )
        ptx = folder / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        assembler = _run("ptxas", "-v", "-arch=sm_90a", ptx, "-o", folder / "out")
        rows.append({**form, **inspect_compiled(kernel), "assembler": assembler})
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compile_forms(Path(folder))))
