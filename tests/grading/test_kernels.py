"""Kernels are judged apart from values: whether they compile, where they reach, and whether they matter."""

import pytest
import torch

import kernels
from exercises.simulation import tiles_of
from grading import assignment
from grading.box import Box, Contents
from grading.rules import suspicions
from grading.student import Calls, Function
from tests.grading.conftest import ADD, TIER, needs_box

pytestmark = [
    needs_box,
    pytest.mark.skipif(not kernels.INTERPRETED, reason="the tests' kernels are compiled here"),
]
SOLUTION = (ADD.folder / "solution.py").read_text("utf-8")
WITHOUT_KERNELS = "every test that is passed is passed without the kernels, too"


def changed(*edits: tuple[str, str]) -> str:
    text = SOLUTION
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def states(report) -> dict[str, str]:
    return {result.name: result.state for result in report.results}


def test_the_solution_has_all_points(submit):
    report = submit(SOLUTION, ADD)
    assert report.score == report.possible == 6, states(report)
    assert report.flags == []


def test_a_dtype_is_a_constant_like_another(submit):
    text = changed(
        ("BLOCK: tl.constexpr)", "BLOCK: tl.constexpr, DTYPE: tl.constexpr)"),
        ("left + right, mask", "(left + right).to(DTYPE), mask"),
        ("BLOCK=64)", "BLOCK=64, DTYPE=tl.float32)"),
    )
    assert submit(text, ADD).score == 6


def test_a_constant_that_cannot_be_compiled_again_is_no_score(submit):
    text = changed(
        ("BLOCK: tl.constexpr)", "BLOCK: tl.constexpr, UNUSED: tl.constexpr)"),
        ("BLOCK=64)", "BLOCK=64, UNUSED=add)"),
    )
    report = submit(text, ADD)
    assert states(report)["compiles"] == "grader fault" and report.score is None
    assert states(report)["test_sums"] == "passed"


def test_pytorch_inside_an_interpreted_kernel_does_not_compile(submit):
    inside = "import numpy as np\n    total = left.handle.data + right.handle.data"
    text = changed(
        (
            "left + right, mask",
            "tl.core.tensor(type(left.handle)(total, left.dtype), left.type), mask",
        ),
        ("    tl.store(", f"    {inside}\n    tl.store("),
    )
    report = submit(text, ADD)
    assert states(report) == {
        "test_sums": "passed",
        "test_any_length": "passed",
        "compiles": "wrong",
    }
    assert report.score == 4
    assert "does not compile" in report.results[-1].message


def test_pytorch_in_place_of_the_kernel_is_flagged_and_keeps_its_values(submit):
    report = submit("import torch\n\n\ndef add(left, right):\n    return left + right\n", ADD)
    assert report.score == 4
    assert report.results[-1].message == "None of the kernels was launched: add_kernel."
    assert WITHOUT_KERNELS in report.flags and "there is no kernel add_kernel" in report.flags


def test_a_kernel_that_does_not_matter_is_flagged(submit):
    report = submit(changed(("    return result", "    return left + right")), ADD)
    assert report.score == 6
    assert WITHOUT_KERNELS in report.flags


def test_a_library_call_beside_the_kernel_is_flagged(submit):
    report = submit(
        changed(("    return result", "    torch.softmax(left, 0)\n    return result")), ADD
    )
    assert report.score == 6
    assert [flag for flag in report.flags if "uses softmax outside a kernel" in flag]


@pytest.mark.parametrize(
    ("old", "new", "verb"),
    [
        ("tl.load(left_ptr + index, mask=index < length)", "tl.load(left_ptr + index)", "loads"),
        ("left + right, mask=index < length", "left + right", "stores"),
    ],
)
def test_a_missing_mask_is_found_and_said(submit, old, new, verb):
    report = submit(changed((old, new)), ADD)
    assert states(report) == {
        "test_sums": "passed",
        "test_any_length": "crashed",
        "compiles": "passed",
    }
    message = report.results[1].message
    assert f"add_kernel {verb} 28 of 64 elements outside the memory of its arguments" in message
    assert report.results[1].lines[-1].startswith("line ")


def test_memory_that_was_never_written_is_nan(submit):
    text = changed(("    add_kernel[(triton.cdiv(len(left), 64),)]", "    add_kernel[(1,)]"))
    report = submit(text, ADD)
    assert states(report)["test_sums"] == "wrong"


def test_an_error_in_a_kernel_is_told_with_its_line(submit):
    report = submit(changed(("tl.program_id(0)", "programme_id(0)")), ADD)
    line = SOLUTION.split("tl.program_id")[0].count("\n") + 1
    result = report.results[0]
    assert result.state == "crashed" and "NameError" in result.message
    assert result.message.endswith(f"(line {line} of your code)")
    assert "the kernel add_kernel uses programme_id" in "".join(report.flags)


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("import os", "it imports os, which the exercise does not list (line 1)"),
        ("from os import path", "it imports os, which the exercise does not list (line 1)"),
        ("exec('')", "it calls exec (line 1)"),
        ("x = (lambda: 0).__globals__", "it looks at __globals__ (line 1)"),
    ],
)
def test_what_a_person_should_look_at(line, flag):
    text = f"{line}\n{SOLUTION}"
    assert suspicions(ADD, text) == [flag]


def test_a_hostile_text_is_read_without_harm():
    assert suspicions(ADD, "x = " + "(" * 10**5) == []
    assert suspicions(ADD, "\0") == []
    assert suspicions(ADD, "x = 1\n" * 2**19) == ["the file is very large"]


# What a hostile student does with kernels: each with its exact score, and the flags for a person.

_NUMPY = (
    "tl.core.tensor(type(left.handle)(left.handle.data + right.handle.data, left.dtype), left.type)"
)
_NO_MASK = ("tl.load(left_ptr + index, mask=index < length)", "tl.load(left_ptr + index)")


def before_the_kernel(lines: str) -> tuple[str, str]:
    return "\n\n@triton.jit\n", f"\n{lines}\n\n@triton.jit\n"


ATTACKS = {
    "the watch taken away from loads": (
        [
            _NO_MASK,
            before_the_kernel(
                "builder = triton.runtime.interpreter.InterpreterBuilder\n"
                "builder.create_masked_load = builder.create_masked_load.__wrapped__"
            ),
        ],
        (3, ["passed", "crashed", "crashed"]),  # forbidden pages lie behind the arguments
        ["it changes builder.create_masked_load (line 8)", "it looks at __wrapped__ (line 8)"],
    ),
    "loads that leave the mask away": (
        [before_the_kernel("load = tl.load\ntl.load = lambda pointer, mask=None: load(pointer)")],
        (0, ["crashed", "crashed", "wrong"]),
        ["it changes tl.load (line 8)"],
    ),
    "a compiler that compiles nothing": (
        [
            ("left + right, mask", f"{_NUMPY}, mask"),
            before_the_kernel("triton.compile = triton.compiler.compile = lambda *_, **__: None"),
        ],
        (4, ["passed", "passed", "wrong"]),
        ["it changes triton.compile (line 7)", "it changes triton.compiler.compile (line 7)"],
    ),
    "Python in a function that the kernel calls": (
        [
            ("left + right, mask", "total(left, right), mask"),
            before_the_kernel(f"def total(left, right):\n    return {_NUMPY}\n"),
        ],
        (4, ["passed", "passed", "wrong"]),
        ["the kernel add_kernel uses total (line 17)"],
    ),
    "another kernel for the compiler": (
        [
            before_the_kernel("HERE = tl.constexpr(bool(triton.knobs.runtime.interpret))"),
            ("    tl.store(", f"    if HERE:\n        right = {_NUMPY} - left\n    tl.store("),
        ],
        (6, ["passed", "passed", "passed"]),
        ["it looks at knobs (line 7)"],
    ),
    "a grid that does the work": (
        [
            ("mask=index < length)\n\n", "mask=index < 0)\n\n"),
            ("[(triton.cdiv(len(left), 64),)]", "[lambda _: (len(torch.add(left, right, out=result)),)]"),
        ],
        (6, ["passed", "passed", "passed"]),
        [WITHOUT_KERNELS],
    ),
    "an argument that does the work": (
        [
            before_the_kernel(
                "class Late(torch.Tensor):\n    def untyped_storage(self):\n"
                "        torch.add(*GIVEN, out=self.view(-1))\n        return super().untyped_storage()\n"
            ),
            ("mask=index < length)\n\n", "mask=index < 0)\n\n"),
            ("    add_kernel[", "    global GIVEN\n    GIVEN = left, right\n    add_kernel["),
            ("(left, right, result, len", "(left, right, result.as_subclass(Late), len"),
        ],
        (6, ["passed", "passed", "passed"]),
        [WITHOUT_KERNELS],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_its_score_and_is_flagged(name, submit):
    edits, (score, expected), flags = ATTACKS[name]
    report = submit(changed(*edits), ADD)
    told = [(result.name, result.message) for result in report.results]
    assert list(states(report).values()) == expected, told
    assert report.score == score
    assert set(flags) <= set(report.flags)


def test_python_inside_a_simulated_gluon_kernel_does_not_compile(tmp_path):
    ring = assignment.find("ring_of_tiles")
    solution = (ring.folder / "solution.py").read_text("utf-8")
    line = "        slot = tile % STAGES\n"
    assert line in solution
    file = tmp_path / "solution.py"
    file.write_text(solution.replace(line, line.replace("tile % STAGES", "{0: tile % STAGES}[0]")))
    product, tiles = torch.zeros(64, 64), tiles_of(torch.zeros(64, 128).half())
    launches = Calls(None, (), ())
    launches._names, launches._ask = [], lambda *_: None
    kernel = Function(launches, "product_kernel")
    simulate = {"remote": "instruments.gluon_simulator:simulate"}
    launches.call(simulate, (kernel, (1,), tiles, tiles, product), {"STAGES": 2, "clock": None})
    contents = Contents(assignment.ROOT, kernels=tuple(ring.kernels), compile=True)
    with Box(file, contents, tier=TIER) as box, box.test() as session:
        calls = Calls(session, (), ())
        calls.load()
        (problem,) = calls.compile(launches.launched, 90)
    assert problem.startswith("product_kernel: ") and "Dict" in problem
