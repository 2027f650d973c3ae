"""The forms that the kernel modules ship compile for the GPUs the book names, with no GPU.

Not every form for every GPU: that takes a quarter of an hour, and most say the same. :func:`compiled_for`
says which and why.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

pytest.importorskip("torch")

from instruments import compile_report
from kernels.configurations import ARCHITECTURES, SHARED_BYTES, Configuration
from scripts.environment import ROOT

MODULES = (
    "kernels.naive",
    "kernels.online_softmax",
    "kernels.flash1",
    "kernels.block_sparse",
    "kernels.flash2",
    "kernels.quantization",
    "kernels.hadamard",
)
# The kernels that multiply matrices, and so must use the tensor cores.
MULTIPLY = {
    "scores_kernel",
    "output_kernel",
    "printed_kernel",
    "swapped_kernel",
    "block_sparse_kernel",
    "forward_kernel",
    "key_value_kernel",
    "query_kernel",
}


# Compiled in one process each, which is quicker than one for each architecture.
SWEEPS = [(90,), (80, 86, 89, 100, 120)]


def compiled_for(arch: int, forms: list[Configuration]) -> list[Configuration]:
    """The forms of one module that are compiled here for an architecture.

    Hopper (90), on which the book is measured, gets all. But bfloat16 is float16 with another name for the
    type: of each kernel that multiplies, the widest form shows that the name is known. GPUs before Hopper
    and GeForce's Blackwell (120) multiply with other instructions, and so need other registers: of these,
    86 has the least shared memory, and gets all forms that multiply on tensor cores. What does not is the
    same code as for Hopper, and is compiled for 86 only where its tiles are others. The rest, and
    data-centre Blackwell (100), get of each kernel the widest form in float16, which is the nearest to the
    limits. `python -m instruments.compile_report` compiles any.
    """
    mine = [form for form in forms if arch in form.architectures]
    if arch == 90:
        named = widest(form for form in mine if dtype(form) == "bfloat16" and multiplies(form))
        return [form for form in mine if dtype(form) != "bfloat16" or form in named]
    chosen = widest(form for form in mine if dtype(form) == "float16")
    if arch == 86:
        on_hopper = {code(form) for form in forms if 90 in form.architectures}
        chosen += [
            form
            for form in mine
            if form not in chosen
            and dtype(form) != "bfloat16"
            and (on_tensor_cores(form) or code(form) not in on_hopper)
        ]
    return chosen


def widest(forms: Iterable[Configuration]) -> list[Configuration]:
    """Of each kernel one form."""
    ordered = sorted(forms, key=width)
    return list({form.kernel.__name__: form for form in ordered}.values())


def multiplies(form: Configuration) -> bool:
    return form.kernel.__name__ in MULTIPLY


def on_tensor_cores(form: Configuration) -> bool:
    """They would round float32 to TF32."""
    return multiplies(form) and dtype(form) != "float32"


def must_fit(form: Configuration, arch: int) -> int:
    """The shared memory, in bytes, of the smallest GPU for which this form says what is needed."""
    alike = (arch,) if on_tensor_cores(form) else form.architectures
    return min(SHARED_BYTES[each] for each in alike)


def dtype(form: Configuration) -> str:
    return form.label.split(",")[0]


def width(form: Configuration) -> tuple[int, int]:
    return form.constants.get("HEAD_DIM", 0), form.constants.get("BLOCK_N", 0)


def code(form: Configuration) -> tuple:
    """What sets a form's code apart, where bfloat16 counts as float16."""
    bits = {"float16": 16, "bfloat16": 16, "float32": 32}[dtype(form)]
    return form.kernel.__name__, bits, str(form.constants), str(form.options)


def declared(module: str) -> list[Configuration]:
    return list(importlib.import_module(module).configurations())


@pytest.mark.parametrize("module", MODULES)
def test_every_form_is_compiled_for_a_gpu_and_every_kernel_for_all(module):
    forms = declared(module)
    compiled = {arch: compiled_for(arch, forms) for arch in ARCHITECTURES}
    assert {arch for sweep in SWEEPS for arch in sweep} == compiled.keys()
    assert {code(form) for some in compiled.values() for form in some} == set(map(code, forms))
    for arch, some in compiled.items():
        assert {form.kernel for form in some} == {
            form.kernel for form in forms if arch in form.architectures
        }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_ships_without_spills_on_tensor_cores(module, sweep):
    for row in compile_forms(module, sweep):
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 255, row
        assert row["shared_bytes"] <= row["must_fit"], row
        assert (row["tensor_core_instructions"] > 0) == row["on_tensor_cores"], row


def compile_forms(module: str, sweep: tuple[int, ...]) -> list[dict]:
    """The rows of a report, of some forms, made in a process of its own: this one may interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, module, *map(str, sweep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert len(rows) == sum(len(compiled_for(arch, declared(module))) for arch in sweep)
    return rows


def test_a_report_has_a_row_for_each_form_and_the_command_prints_them():
    # Of its few forms some are for one architecture only.
    module = "kernels.fp8_preparation"
    rows = compile_report.report(module, (89, 90))
    assert [(row["arch"], row["kernel"], row["configuration"]) for row in rows] == [
        (arch, form.kernel.__name__, form.label)
        for arch in (89, 90)
        for form in declared(module)
        if arch in form.architectures
    ]
    assert list(rows[0]) == [
        "kernel",
        "configuration",
        "arch",
        "registers",
        "spill_bytes",
        "shared_bytes",
        "tensor_core_instructions",
    ]
    heads, *lines = _run(module).splitlines()
    assert heads.split()[:2] == ["kernel", "configuration"]
    assert len(lines) == sum(row["arch"] == 90 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["numpy"], "module must be one of the book's"),
        (["kernels.naive", "--arch", "75"], "invalid choice: 75"),
        (["kernels.reference"], "declares no configurations"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    done = _process(*arguments)
    assert done.returncode != 0 and message in done.stderr


def test_a_kernel_that_spills_is_reported_so(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(GREEDY)
    program = (
        "import os; os.environ['TRITON_INTERPRET'] = '0'\n"
        "import greedy, json\n"
        "from instruments.compile_report import compile_configuration, inspect_compiled\n"
        "print(json.dumps(inspect_compiled(compile_configuration(greedy.CONFIGURATION, 90))))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spill_bytes"] > 0


GREEDY = '''
import triton
import triton.language as tl
from kernels.configurations import Configuration


@triton.jit
def greedy_kernel(values_ptr, BLOCK: tl.constexpr):
    """Holds far more values than one warp has registers."""
    offsets = tl.arange(0, BLOCK)
    values = tl.load(values_ptr + offsets)
    tl.store(values_ptr + offsets, tl.exp(values - tl.max(values, axis=0)))


CONFIGURATION = Configuration(
    "greedy", greedy_kernel, {"values_ptr": "*fp32"}, {"BLOCK": 16384}, {"num_warps": 1}
)
'''


def _process(*arguments):
    command = [sys.executable, "-m", "instruments.compile_report", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def _run(*arguments) -> str:
    done = _process(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    module, *architectures = sys.argv[1:]
    rows = []
    for arch in map(int, architectures):
        for form in compiled_for(arch, declared(module)):
            inspected = compile_report.inspect_compiled(
                compile_report.compile_configuration(form, arch)
            )
            expected = {
                "must_fit": must_fit(form, arch),
                "on_tensor_cores": on_tensor_cores(form),
            }
            names = {"kernel": form.kernel.__name__, "configuration": form.label, "arch": arch}
            rows.append(names | expected | inspected)
    print(json.dumps(rows))
