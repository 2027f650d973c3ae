"""Every form that the kernel modules ship compiles for every GPU the book names, with no GPU."""

import json
import subprocess
import sys

import pytest

from instruments import compile_report
from kernels.configurations import ARCHITECTURES, SHARED_BYTES

MODULES = (
    "kernels.naive",
    "kernels.online_softmax",
    "kernels.flash1",
    "kernels.block_sparse",
    "kernels.flash2",
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("module", MODULES)
def test_ships_without_spills_on_tensor_cores(module, arch):
    rows = compile_report.report(module, (arch,))
    assert rows and {row["arch"] for row in rows} == {arch}
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 255, row
        assert row["shared_bytes"] <= SHARED_BYTES[arch], row
        on_tensor_cores = row["kernel"] in MULTIPLY and "float32" not in row["configuration"]
        assert (row["tensor_core_instructions"] > 0) == on_tensor_cores, row


def test_the_command_prints_a_table_or_json():
    table = _run("kernels.naive").splitlines()
    rows = json.loads(_run("kernels.naive", "--json"))
    assert len(table) == 1 + len(rows)
    assert table[0].split()[:2] == ["kernel", "configuration"]
    assert list(rows[0]) == [
        "kernel",
        "configuration",
        "arch",
        "registers",
        "spill_bytes",
        "shared_bytes",
        "tensor_core_instructions",
    ]


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
