"""The learner's checker: what it says, what it leaves behind, and that it works in a notebook."""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import nbformat
import torch
from nbclient import NotebookClient
from triton.compiler import CompilationError

import exercises
import kernels
from exercises import catalogue, practice
from exercises.catalogue import Exercise, ExerciseError
from exercises.practice import Skipped
from scripts.environment import ROOT

ROW_SOFTMAX = catalogue.find("row_softmax")
DEVICE = torch.zeros(1, device=kernels.device()).device
SOLUTION = ROW_SOFTMAX.folder / "solution.py"


def right(values, lengths):
    """PyTorch's own: quick, and right."""
    outside = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
    scores = values.float().masked_fill(outside, -torch.inf)
    return scores.softmax(1).masked_fill(outside, 0).to(values.dtype).contiguous()


def changed(line: str, to: str) -> str:
    text = SOLUTION.read_text("utf-8")
    assert text.count(line) == 1
    return text.replace(line, to)


def test_check_prints_one_line_a_test(capfd):
    exercises.check("row_softmax", right)
    *lines, total = capfd.readouterr().out.splitlines()
    assert [line.removeprefix("✓ ") for line in lines] == [
        test.removeprefix("test_").replace("_", " ") for test in ROW_SOFTMAX.points
    ]
    passed = f"{len(lines)} of {len(lines)} tests passed."
    assert total == f"{passed} This is practice: marks come from the grader."


def test_what_every_test_says_is_said_once(capfd):
    def unwritten(values, lengths):
        raise NotImplementedError("not written yet")

    exercises.check("row_softmax", unwritten)
    first, total = capfd.readouterr().out.splitlines()
    assert first.startswith("✗ every test: NotImplementedError: not written yet")
    assert total == f"0 of {len(ROW_SOFTMAX.points)} tests passed."


def test_a_failing_test_says_what_is_probably_wrong(capfd):
    exercises.check("row_softmax", lambda values, lengths: right(values, lengths).float())
    out, err = capfd.readouterr()
    assert err == ""
    failing = [line for line in out.splitlines() if line.startswith("✗")]
    assert failing == [
        "✗ output dtype: Values in torch.float16 gave an output in torch.float32: "
        "allocate the output with dtype=values.dtype."
    ]
    assert "Begin with the first ✗" in out.splitlines()[-1]


SOME_SKIP = """
import pytest

def test_double(student):
    assert student.double(2) == 4, "not doubled"

@pytest.mark.parametrize("case", ["passes", "skips", "fails"])
def test_cases(student, case):
    if case == "skips":
        pytest.skip("not here")
    assert case == "passes" or student.double(3) == 6, "not doubled"

def test_speed(student):
    pytest.skip("only on Sundays")
"""


def run_some_that_skip(folder: Path, double) -> dict:
    (folder / "test_public.py").write_text(SOME_SKIP)
    return practice.run_tests(Exercise(folder, "Double", "01", "double", [], [], {}), double)


def test_a_skipped_test_is_neither_passed_nor_failed(tmp_path, capfd):
    outcomes = run_some_that_skip(tmp_path, lambda number: 2 * number)
    assert outcomes == {
        "test_double": None,
        "test_cases": Skipped("not here"),
        "test_speed": Skipped("only on Sundays"),
    }
    assert practice.report(outcomes)
    *lines, total = capfd.readouterr().out.splitlines()
    assert lines == ["✓ double", "– cases: not here", "– speed: only on Sundays"]
    assert total.startswith("1 of 1 tests passed.")


def test_a_case_that_fails_outweighs_one_that_skips(tmp_path, capfd):
    outcomes = run_some_that_skip(tmp_path, lambda number: 4 if number == 2 else 0)
    assert outcomes["test_cases"] == "not doubled"
    assert not practice.report(outcomes)
    *lines, total = capfd.readouterr().out.splitlines()
    assert lines == ["✓ double", "✗ cases: not doubled", "– speed: only on Sundays"]
    assert total.startswith("1 of 2 tests passed.")


def test_what_every_test_says_is_said_once_though_some_skip(tmp_path, capfd):
    assert not practice.report(run_some_that_skip(tmp_path, lambda number: 0))
    assert capfd.readouterr().out.splitlines() == [
        "✗ every test: not doubled",
        "0 of 2 tests passed.",
    ]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "The function must return a tensor, and returned NoneType."),
        (
            torch.zeros(3),
            "The output must have the shape of values, (37, 64), and has (3,).",
        ),
        (
            torch.zeros(37, 64, device="meta"),
            f"The output must be on the device of values, {DEVICE}, and is on meta.",
        ),
    ],
    ids=["None", "shape", "device"],
)
def test_a_result_of_the_wrong_kind_is_named(result, message):
    outcomes = practice.run_tests(ROW_SOFTMAX, lambda values, lengths: result)
    assert outcomes["test_full_rows"] == message


@pytest.mark.parametrize("error", [ValueError("too\nlong"), SystemExit(3), AssertionError()])
def test_what_the_learners_code_raises_is_told_with_its_line(error):
    def attempt(values, lengths):
        raise error

    line = attempt.__code__.co_firstlineno + 1
    first = str(error).split("\n")[0]
    outcomes = practice.run_tests(ROW_SOFTMAX, attempt)
    assert (
        outcomes["test_full_rows"] == f"{type(error).__name__}: {first} (line {line} of your code)"
    )


def test_an_error_inside_a_kernel_is_told(tmp_path):
    path = tmp_path / "attempt.py"
    path.write_text(changed("row = tl.program_id(0).to(tl.int64)", "row = programme_id(0)"))
    outcomes = practice.run_tests(ROW_SOFTMAX, practice.load(path))
    message = outcomes["test_full_rows"]
    assert "NameError" in message and "programme_id" in message and "\n" not in message
    if kernels.INTERPRETED:
        line = path.read_text().split("programme_id")[0].count("\n") + 1
        assert message.endswith(f"(line {line} of your code)")


def test_of_a_compilers_error_the_reason_and_the_line_are_told():
    source = "def kernel(x):\n    x = 1\n    return y"

    def attempt(values, lengths):
        raise CompilationError(source, ast.parse(source).body[0].body[1], "y is not defined")

    outcomes = practice.run_tests(ROW_SOFTMAX, attempt)
    message = "CompilationError: y is not defined (in the kernel: return y)"
    assert outcomes["test_full_rows"] == message


def test_an_interrupt_stops_the_check():
    def attempt(values, lengths):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.check("row_softmax", attempt)


def test_memory_is_poisoned_while_the_learners_code_runs():
    seen = []

    def attempt(values, lengths):
        seen.append(torch.empty(3))
        return right(values, lengths)

    practice.run_tests(ROW_SOFTMAX, attempt)
    assert seen and all(memory.isnan().all() for memory in seen)


def state() -> dict:
    return {
        "modules": {
            name
            for name, module in sys.modules.items()
            if str(ROW_SOFTMAX.folder) in str(getattr(module, "__file__", None))
        },
        "path": list(sys.path),
        "finders": list(sys.meta_path),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "last error": [name for name in vars(sys) if name.startswith("last_")],
        "stdout": (sys.stdout, sys.stderr),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": (random.getstate(), torch.get_rng_state().tolist()),
    }


@pytest.mark.parametrize("attempt", [right, lambda values, lengths: None], ids=["right", "wrong"])
def test_it_leaves_nothing_behind(attempt, monkeypatch):
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        monkeypatch.delattr(sys, name, raising=False)
    before = state()
    exercises.check("row_softmax", attempt)
    assert state() == before
    assert not before["modules"]


def test_it_heeds_no_configuration_nearby(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError\n")
    (tmp_path / "test_public.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    assert set(practice.run_tests(ROW_SOFTMAX, right).values()) == {None}


def test_it_takes_a_function_a_dictionary_or_a_module(tmp_path):
    module = practice.load(SOLUTION)
    for attempt in (module.ragged_softmax, vars(module), module):
        assert set(practice.run_tests(ROW_SOFTMAX, attempt).values()) == {None}


@pytest.mark.parametrize("attempt", [{}, 3, None, {"ragged_softmax": 3}], ids=str)
def test_an_attempt_without_the_function_is_refused(attempt):
    with pytest.raises(ExerciseError, match="needs your function ragged_softmax"):
        exercises.check("row_softmax", attempt)


@pytest.mark.parametrize("use", [exercises.show, exercises.solution])
def test_an_unknown_name_is_answered_with_those_there_are(use):
    with pytest.raises(ExerciseError, match="no exercise 'rowsoftmax'; there are: .*row_softmax"):
        use("rowsoftmax")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "exercises", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_checks_a_file(tmp_path):
    path = tmp_path / "attempt.py"
    path.write_text(changed("dtype=values.dtype", "dtype=torch.float32"))
    answer = run("check", "row_softmax", path)
    assert answer.returncode == 1 and answer.stderr == ""
    assert answer.stdout.count("✗") == 2  # one test, and the advice to begin with it
    assert "✗ output dtype: " in answer.stdout
    answer = run("check", "row_softmax", SOLUTION)
    assert answer.returncode == 0 and "✗" not in answer.stdout
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_command_lists_the_exercises():
    answer = run("list")
    points = sum(ROW_SOFTMAX.points.values())
    line = f"row_softmax: {ROW_SOFTMAX.title} (01_naive_attention, {points} points)"
    assert answer.returncode == 0 and line in answer.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("check", "columns", "{file}"), "", "There is no exercise 'columns'; there are: "),
        (("check", "row_softmax", "nowhere.py"), "", "nowhere.py cannot be read: No such file"),
        (("check", "row_softmax", "{file}"), "x = ", "cannot be imported: SyntaxError: "),
        (
            ("check", "row_softmax", "{file}"),
            "\n1 / 0",
            "ZeroDivisionError: division by zero (line 2",
        ),
        (("check", "row_softmax", "{file}"), "x = 1", "needs your function ragged_softmax"),
    ],
    ids=["name", "file", "syntax", "import", "function"],
)
def test_the_command_answers_a_mistake_in_one_sentence(arguments, text, message, tmp_path):
    file = tmp_path / "attempt.py"
    file.write_text(text)
    answer = run(*(argument.replace("{file}", str(file)) for argument in arguments))
    assert answer.returncode == 1 and answer.stdout == ""
    assert message in answer.stderr and len(answer.stderr.splitlines()) == 1


def test_the_command_writes_and_checks_the_stubs(monkeypatch, tmp_path, capsys):
    from exercises.__main__ import write_stubs

    assert run("stubs", "--check").returncode == 0
    folder = tmp_path / "row_softmax"
    folder.mkdir()
    for name in ("exercise.toml", "solution.py"):
        (folder / name).write_text(ROW_SOFTMAX.read(name), encoding="utf-8")
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    with pytest.raises(ExerciseError, match="row_softmax/stub.py is not what solution.py says"):
        write_stubs(check=True)
    write_stubs(check=False)
    assert (folder / "stub.py").read_text("utf-8") == ROW_SOFTMAX.read("stub.py")
    write_stubs(check=True)


def test_in_a_notebook():
    cells = [
        "import exercises",
        'exercises.show("row_softmax")',
        changed("dtype=values.dtype", "dtype=torch.float32"),
        'exercises.check("row_softmax", ragged_softmax)',
        SOLUTION.read_text("utf-8"),
        'exercises.check("row_softmax", ragged_softmax)',
        'exercises.solution("row_softmax")',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert outputs[1][0].data["text/markdown"] == ROW_SOFTMAX.read("statement.md")
    first, second = ("".join(output.text for output in outputs[i]) for i in (3, 5))
    total = len(ROW_SOFTMAX.points)
    assert "✗ output dtype" in first and f"{total - 1} of {total} tests passed" in first
    assert "✗" not in second and f"{total} of {total} tests passed" in second
    shown = outputs[6][0].data["text/markdown"]
    assert shown.startswith("<details>\n<summary>A solution</summary>\n\n```python\n")
    assert "ragged_softmax_kernel[(rows,)](" in shown and "###" not in shown
