"""Practice mode: an exercise's public tests, run in this process on what the learner just wrote."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from triton.compiler import CompilationError

from exercises.catalogue import Exercise, ExerciseError, find
from grading import alone


@dataclass(frozen=True)
class Skipped:
    """The outcome of a test that can say nothing on this machine, and why."""

    reason: str


# None if the test passed; a string says what went wrong.
Outcome = str | Skipped | None


def check(name: str, attempt: object) -> None:
    """Run an exercise's public tests on your solution and print one line a test.

    This is practice: the tests run in this process, and a cross says what is probably wrong. Marks for a
    course come from its grader, which runs a submitted file on its own.

    Args:
        name: the exercise, such as ``"row_softmax"``.
        attempt: the function, or what holds it: a module, or a dictionary such as ``globals()``.

    Raises:
        ExerciseError: there is no such exercise, or no such function in ``attempt``.
    """
    report(run_tests(find(name), attempt))


def report(outcomes: dict[str, Outcome]) -> bool:
    """Print one line a test, or one for all if all fail alike, and the sum; tell whether all passed."""
    judged = [outcome for outcome in outcomes.values() if not isinstance(outcome, Skipped)]
    if len(set(judged)) == 1 and judged[0] is not None:
        # Not written yet, or it does not compile: once is enough.
        print(f"✗ every test: {judged[0]}")
        print(f"0 of {len(judged)} tests passed.")
        return False
    for test, outcome in outcomes.items():
        print(_line(test.removeprefix("test_").replace("_", " "), outcome))
    passed, total = judged.count(None), len(judged)
    advice = "" if passed == total else " Begin with the first ✗: the others may follow from it."
    print(
        f"{passed} of {total} tests passed.{advice} This is practice: marks come from the grader."
    )
    return passed == total


def _line(label: str, outcome: Outcome) -> str:
    if outcome is None:
        return f"✓ {label}"
    if isinstance(outcome, Skipped):
        return f"– {label}: {outcome.reason}"
    return f"✗ {label}: {outcome}"


def run_tests(exercise: Exercise, attempt: object) -> dict[str, Outcome]:
    """Run the public tests: each test's name with None if it passed, else with what went wrong.

    A test that skips itself, or one of its cases, is :class:`Skipped`, unless another case fails.
    """
    plugin = _Practice(exercise, _function(exercise, attempt))
    tests = exercise.folder / "test_public.py"
    alone.run(exercise.folder, [tests], plugin)
    if plugin.interrupted:
        raise KeyboardInterrupt
    if not plugin.outcomes:
        raise ExerciseError(f"{tests} could not be run; python {tests} may say why.")
    return plugin.outcomes


def load(path: Path) -> ModuleType:
    """The learner's file as a module, which is left out of ``sys.modules``."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(path.read_text("utf-8"), str(path), "exec"), module.__dict__)
    except OSError as error:
        raise ExerciseError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise ExerciseError(f"{path} cannot be imported: {_describe(error, str(path))}") from error
    return module


def _function(exercise: Exercise, attempt: object):
    if isinstance(attempt, Mapping):
        attempt = attempt.get(exercise.function)
    elif not callable(attempt):
        attempt = getattr(attempt, exercise.function, None)
    if not callable(attempt):
        raise ExerciseError(
            f"The exercise {exercise.name} needs your function {exercise.function}, or a module or "
            "dictionary that has it."
        )
    return attempt


class _Practice:
    """A pytest plugin: hands the learner's function to the tests and keeps what came of each."""

    def __init__(self, exercise: Exercise, function) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.interrupted = False
        self._namespace = SimpleNamespace(**{exercise.function: function})
        code = getattr(getattr(function, "fn", function), "__code__", None)  # a kernel has it in fn
        self._file = code.co_filename if code else None

    @pytest.fixture
    def student(self) -> Iterator[SimpleNamespace]:
        with _poisoned_memory():
            yield self._namespace

    def pytest_configure(self, config: pytest.Config) -> None:
        # Nobody sees pytest's own tracebacks here, and a long one takes a second to lay out.
        config.option.tbstyle = "value"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo):
        # A test with several cases has one line, which tells of the first case that fails.
        before = self.outcomes.get(item.originalname)
        if not isinstance(before, str):
            self.outcomes[item.originalname] = self._outcome(call) or before
        return (yield)

    def _outcome(self, call: pytest.CallInfo) -> Outcome:
        if call.excinfo is None:
            return None
        error = call.excinfo.value
        if isinstance(error, pytest.skip.Exception):
            return Skipped(error.msg)
        return _describe(error, self._file)

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised allocation with NaN, so that an element never written shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _describe(error: BaseException, learners_file: str | None) -> str:
    """One line that says what went wrong and, for an error in the learner's code, where."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and Path(frames[-1].filename).name == "test_public.py":
        return str(error).splitlines()[0]
    while error.__cause__ is not None:  # Triton wraps what a kernel raises
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, CompilationError):
        # Its text quotes the kernel's source up to where it is wrong, and says why in the last line.
        source = (error.src or "").splitlines()[: getattr(error.node, "lineno", 0)]
        place = f" (in the kernel: {source[-1].strip()})" if source else ""
        return f"{type(error).__name__}: {lines[-1]}{place}"
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == learners_file
    ]
    place = f" (line {numbers[-1]} of your code)" if numbers else ""
    return f"{type(error).__name__}: {lines[0]}{place}"
