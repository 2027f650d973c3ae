"""Decoding's machine code, with no GPU: nothing spills, and keys and values are copied in wide pieces."""

import json
import os
import subprocess
import sys

import pytest

from kernels.paged_decode import PROGRAMS_AN_SM
from scripts.environment import ROOT

# The form that a step of generation runs, and what it is on GPUs with less shared memory and in FP8.
FORMS = [
    (90, "float16, head_dim 128, 4 heads, 3 stages"),
    (90, "float16, head_dim 128, 4 heads, 4 stages"),
    (86, "float16, head_dim 128, 4 heads, 3 stages"),
    (89, "float8_e4m3fn, head_dim 128, 4 heads, 3 stages"),
    (90, "float16, head_dim 128, 1024 rows"),
]
COMPILE = """
import json, re, sys
from instruments.compile_report import compile_configuration, inspect_compiled
from kernels import paged
found = []
for arch, label in json.loads(sys.argv[1]):
    (form,) = (c for c in paged.configurations() if c.label == label and arch in c.architectures)
    compiled = compile_configuration(form, arch)
    copies = re.findall(r"cp\\.async\\.\\w+\\.shared\\S* .*?, (0x\\w+|\\d+)", compiled.asm["ptx"])
    found.append(inspect_compiled(compiled) | {"copies": copies})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled():
    # Of its own, because this process may run kernels through the interpreter.
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(FORMS)],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(FORMS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_nothing_spills_and_every_copy_is_wide(compiled, form):
    found = compiled[form]
    assert found["spill_bytes"] == 0
    assert found["tensor_core_instructions"] > 0
    # Bytes a thread copies at once; Triton lays values in FP8 out for pieces of 8.
    at_once = {int(size, 0) for size in found["copies"]}
    assert at_once == ({8, 16} if "float8" in form[1] else {16})


@pytest.mark.parametrize("stages", PROGRAMS_AN_SM)
def test_as_many_programs_fit_on_an_sm_as_the_number_of_splits_supposes(compiled, stages):
    # An H200's SM has 228 KiB, of which a program takes 1 KiB more than its own, and 65 536 registers.
    found = compiled[90, f"float16, head_dim 128, 4 heads, {stages} stages"]
    by_memory = 228 * 1024 // (found["shared_bytes"] + 1024)
    by_registers = 65536 // (128 * found["registers"])
    assert min(by_memory, by_registers) == PROGRAMS_AN_SM[stages]
