"""Kernels are judged apart from values: whether they compile, where they reach, and whether they matter."""

import pytest

import kernels
from grading.rules import suspicions
from tests.grading.conftest import ADD, needs_box

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
