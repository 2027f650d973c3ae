"""Judging one submission: the exercise's tests run here, the student's code runs in a box.

What comes of a test is one of five things that are never mixed: *passed*; *wrong*, the test says
what; *crashed*, the student's code raised, died, or took too much; *not attempted*; and *grader
fault*, whatever else went wrong, which is no score but a case for a person.
"""

import contextlib
import hashlib
import importlib.metadata
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy
import pytest
import torch

from grading import alone, feedback, rules
from grading.assignment import COMPILES, Assignment
from grading.box import OFFICIAL, Box, BoxError, Died
from grading.inside import plain
from grading.student import (
    Calls,
    NotWritten,
    Student,
    StudentError,
    clean,
    remote_context,
    remote_function,
    replaced,
)

PASSED, WRONG, CRASHED, NOT_ATTEMPTED, FAULT = STATES = (
    "passed",
    "wrong",
    "crashed",
    "not attempted",
    "grader fault",
)


@dataclass
class Result:
    """What came of one test, all of its cases together."""

    name: str
    title: str
    visibility: str
    possible: float
    state: str = FAULT
    message: str = "It was not run."
    lines: list[str] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0

    @property
    def points(self) -> float | None:
        """None if the grader is at fault: nobody's score is guessed."""
        if self.state == FAULT:
            return None
        return self.possible if self.state == PASSED else 0.0


@dataclass
class Report:
    """What came of a submission."""

    exercise: str
    digest: str
    submission: str
    seed: int
    tier: str
    versions: dict[str, str]
    results: list[Result]
    flags: list[str]
    seconds: float

    @property
    def possible(self) -> float:
        return sum(result.possible for result in self.results)

    @property
    def score(self) -> float | None:
        """None while the grader is at fault for a test."""
        points = [result.points for result in self.results]
        return None if None in points or not points else sum(points)

    @property
    def official(self) -> bool:
        return self.tier in OFFICIAL

    def data(self) -> dict:
        results = [{**asdict(result), "points": result.points} for result in self.results]
        return {
            **asdict(self),
            "results": results,
            "score": self.score,
            "possible": self.possible,
            "official": self.official,
        }


def judge(
    assignment: Assignment, file: Path | None, *, seed: int, tier: str, hidden: bool = True
) -> Report:
    """Run an exercise's tests on a submission.

    Args:
        file: the student's file; None if nothing was handed in.
        seed: of everything random in the tests.
        tier: of the box.
        hidden: whether to run the hidden tests too.
    """
    started = time.monotonic()
    text = file.read_bytes() if file else b""
    run = _Run(assignment, seed)
    flags: set[str] = set()
    before = _before_the_tests(assignment, text, file)
    if before is None:
        with Box(file, assignment.contents, assignment.limits, tier) as box:
            run.box = box
            with contextlib.suppress(_Settled):
                run.load()
                run.tests(hidden)
            if run.failed_to_load is None and assignment.contents.watch:
                flags |= run.replay()
        flags |= run.flags | set(rules.suspicions(assignment, text.decode("utf-8", "replace")))
    else:
        run.failed_to_load = before
    if before is not None or run.failed_to_load is not None:
        run.collect_only(hidden)
    results = list(run.results.values())
    if assignment.compiles:
        results.append(_compiles(assignment, file, tier, run, before))
    missing = [name for name in assignment.points if name not in run.results]
    results += [
        Result(
            name, _title(name), "public", assignment.points[name], message="The test is missing."
        )
        for name in missing
    ]
    return Report(
        exercise=assignment.name,
        digest=assignment.digest(),
        submission=digest_of(file),
        seed=seed,
        tier=tier,
        versions=versions(),
        results=results,
        flags=sorted(flags),
        seconds=time.monotonic() - started,
    )


def digest_of(file: Path | None) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""


def fault(assignment: Assignment, run: dict, message: str) -> Report:
    """The report on a submission that could not be judged."""
    results = [
        Result(name, _title(name), "public", points, message=message)
        for name, points in assignment.points.items()
    ]
    return Report(
        exercise=assignment.name,
        digest=assignment.digest(),
        submission="",
        seed=run["seed"],
        tier=run["tier"],
        versions=versions(),
        results=results,
        flags=[],
        seconds=0.0,
    )


def import_what_tests_import(assignment: Assignment) -> None:
    """Import the libraries of the tests, so that processes forked from this one need not."""
    _Run(assignment, 0).collect_only(hidden=True)


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "triton", "numpy", "pytest"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _title(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _before_the_tests(assignment: Assignment, text: bytes, file: Path | None) -> tuple | None:
    """The state and message that all tests have without being run, if so."""
    if file is None:
        return NOT_ATTEMPTED, "Nothing was handed in.", []
    stub = assignment.folder / "stub.py"
    if not text.strip() or (stub.exists() and text.strip() == stub.read_bytes().strip()):
        return NOT_ATTEMPTED, "The file is as it was given out.", []
    return None


class _Settled(Exception):
    """The file does not load, so no test needs to run."""


class _Run:
    """The tests of one submission."""

    def __init__(self, assignment: Assignment, seed: int) -> None:
        self.assignment = assignment
        self.seed = seed
        self.results: dict[str, Result] = {}
        self.flags: set[str] = set()
        self.launches: list = []
        self.failed_to_load: tuple | None = None
        self.box: Box | None = None

    def load(self) -> None:
        """Load the file once, so that what stops it is told without running every test."""
        try:
            with self.box.test() as session:
                Calls(session, (), ()).load()
        except (StudentError, Died) as error:
            self.failed_to_load = _state(error, None)
            raise _Settled from None

    def tests(self, hidden: bool) -> None:
        plugin = _Plugin(self)
        _pytest(self.assignment, self.assignment.tests(hidden=hidden), plugin)
        self.results = plugin.results
        self.flags |= plugin.flags
        self.launches = plugin.launches
        self._without_changes(
            {n for n in plugin.changed if self.results[n].state == PASSED}, hidden
        )

    def _without_changes(self, names: set[str], hidden: bool) -> None:
        """Run tests again in which arguments were changed, this time with copies.

        A test may compute what it expects after the call, from an argument that the call has changed.
        """
        if not names:
            return
        plugin = _Plugin(self, only=names, keep_arguments=True)
        _pytest(self.assignment, self.assignment.tests(hidden=hidden), plugin)
        for name in names:
            if plugin.results[name].state != PASSED:
                self.results[name].state = WRONG
                self.results[
                    name
                ].message = "It is passed only because your function changes its arguments."

    def collect_only(self, hidden: bool) -> None:
        """The results of tests that need not run."""
        plugin = _Plugin(self, collect_only=True)
        _pytest(self.assignment, self.assignment.tests(hidden=hidden), plugin)
        self.results = plugin.results
        if self.failed_to_load is not None:
            for result in self.results.values():
                result.state, result.message, result.lines = self.failed_to_load

    def replay(self) -> set[str]:
        """Run what was passed again with kernels that do nothing, until a test is lost."""
        passed = {name for name, result in self.results.items() if result.state == PASSED}
        if 2 * len(passed) < len(self.results):  # the few may be about no numbers at all
            return set()
        plugin = _Plugin(self, only=passed, first_case=True, without_kernels=True)
        _pytest(self.assignment, self.assignment.tests(hidden=False), plugin)
        if plugin.results and all(result.state == PASSED for result in plugin.results.values()):
            return {"every test that is passed is passed without the kernels, too"}
        return set()


def _compiles(assignment: Assignment, file: Path | None, tier: str, run: _Run, before) -> Result:
    """The test that the kernels, as they were launched, compile for a GPU."""
    points, architecture = assignment.compiles
    result = Result(COMPILES, "the kernels compile for a GPU", "public", points)
    started = time.monotonic()
    if run.failed_to_load is not None:
        result.state, result.message, result.lines = run.failed_to_load
        return result
    own = [form for form in run.launches if form[0] in assignment.kernels]
    if not own:
        written = any(r.state != NOT_ATTEMPTED for r in run.results.values())
        result.state = WRONG if written else NOT_ATTEMPTED
        result.message = f"None of the kernels was launched: {', '.join(assignment.kernels)}."
        return result
    contents = assignment.contents
    contents = type(contents)(
        root=contents.root, kernels=contents.kernels, errors=contents.errors, compile=True
    )
    # Two forms of a kernel say as much as twenty.
    able = [form for form in own if all(map(_is_simple, form[2].values()))]
    forms = [form for name in assignment.kernels for form in [f for f in able if f[0] == name][:2]]
    if not forms:
        result.message = "A constant that the kernels were launched with cannot be compiled again."
        return result
    try:
        with Box(file, contents, assignment.limits, tier) as box, box.test() as session:
            calls = Calls(session, (), ())
            calls.load()
            problems = calls.compile(forms, architecture)
    except (StudentError, Died, BoxError) as error:
        result.state, result.message, result.lines = _state(error, None)
    else:
        if not isinstance(problems, list):
            result.state, result.message = CRASHED, "What the compiler said cannot be read."
        elif problems:
            result.state = WRONG
            result.message = "It does not compile. " + " ".join(clean(str(p)) for p in problems)
        else:
            result.state, result.message = PASSED, ""
    result.seconds = time.monotonic() - started
    return result


def _pytest(assignment: Assignment, files: list[Path], plugin: "_Plugin") -> None:
    places = {
        path: remote_function(path, plugin.current)
        for path in assignment.contents.remote
        if path not in assignment.contexts
    }
    for path, kind in assignment.contexts.items():
        places[path] = remote_context(path, plain.named(kind), plugin.current)
    with replaced(places):
        alone.run(assignment.folder, files, plugin)


class _Plugin:
    """A pytest plugin: gives tests their student, and keeps what comes of each."""

    def __init__(
        self,
        run: _Run,
        *,
        only: set[str] | None = None,
        first_case: bool = False,
        keep_arguments: bool = False,
        without_kernels: bool = False,
        collect_only: bool = False,
    ) -> None:
        self.results: dict[str, Result] = {}
        self.flags: set[str] = set()
        self.launches: list = []
        self.changed: set[str] = set()
        self._run = run
        self._only = only
        self._first_case = first_case
        self._keep_arguments = keep_arguments
        self._without_kernels = without_kernels
        self._collect_only = collect_only
        self._calls: Calls | None = None
        self._session = None
        self._left: dict[str, int] = {}

    def current(self) -> Calls:
        if self._calls is None:
            raise RuntimeError("a function of the box was called outside a test")
        return self._calls

    # What tests may ask for.

    @pytest.fixture
    def student(self, request: pytest.FixtureRequest) -> Iterator[Student]:
        assignment = self._run.assignment
        with self._run.box.test() as session:
            self._session = session
            made = Student(session, assignment.results, assignment.contents.errors)
            self._calls = calls = made._calls
            calls.without_kernels = self._without_kernels
            calls.keep_arguments = self._keep_arguments
            try:
                yield made
            finally:
                self.flags |= calls.flags
                if calls.changed_arguments:
                    self.changed.add(request.node.originalname)
                self._calls = None
                self._keep_launches(calls)

    def _keep_launches(self, calls: Calls) -> None:
        if not self._run.assignment.compiles or self._without_kernels:
            return
        self.launches += [form for form in calls.launched if form not in self.launches]
        if calls.session.reason or not self._run.assignment.contents.watch:
            return
        with contextlib.suppress(StudentError, Died):
            forms = calls.launches()
            for form in forms[:200] if isinstance(forms, list) else []:
                if _is_launch(form) and len(self.launches) < 200 and form not in self.launches:
                    self.launches.append(form)

    @pytest.fixture
    def seed(self, request: pytest.FixtureRequest) -> int:
        """A number of this test alone, fresh in every grading and the same in a regrade."""
        return self._seed(request.node)

    @pytest.fixture
    def compare(self):
        return feedback.compare

    def _seed(self, item: pytest.Item) -> int:
        text = f"{self._run.seed}/{item.name}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")

    # What pytest asks of a plugin.

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line(
            "markers", "points(number, visibility, title): what a test is worth"
        )
        config.option.tbstyle = "value"

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        if self._only is not None:
            items[:] = [item for item in items if item.originalname in self._only]
        if self._first_case:
            first = {item.originalname: item for item in reversed(items)}
            items[:] = [first[name] for name in first][::-1]
            items.sort(key=lambda item: item.originalname in ("test_inputs_unchanged",))
        for item in items:
            name = item.originalname
            self._left[name] = self._left.get(name, 0) + 1
            if name not in self.results:
                self.results[name] = self._new_result(item)
        if self._collect_only:
            items.clear()

    def _new_result(self, item: pytest.Function) -> Result:
        mark = item.get_closest_marker("points")
        own = self._run.assignment.points
        name = item.originalname
        hidden = item.path.name == "test_hidden.py"
        number = own.get(name, 0)
        options: dict = {}
        if mark is not None:
            number = mark.args[0]
            options = mark.kwargs
        return Result(
            name,
            options.get("title", _title(name)),
            options.get("visibility", "hidden" if hidden else "public"),
            number,
        )

    def pytest_runtest_protocol(
        self, item: pytest.Function, nextitem: pytest.Item | None
    ) -> bool | None:
        if not self._is_settled(item):
            return None
        # What the item before set up was kept for this one.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def _is_settled(self, item: pytest.Function) -> bool:
        # Of a test with several cases one that fails decides, and a replay ends with the first.
        settled = [result.state for result in self.results.values() if result.message != _NOT_RUN]
        if self._without_kernels and any(state not in (PASSED, FAULT) for state in settled):
            return True
        return self.results[item.originalname].state not in (PASSED, FAULT)

    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        seed = self._seed(item)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo):
        result = self.results[item.originalname]
        result.seconds += call.duration
        if call.excinfo is not None:
            self._take(result, *_state(call.excinfo.value, item.path))
        if call.when == "teardown":
            if self._session is not None:
                result.printed = result.printed or clean(self._session.printed, 1000)
                self._session = None
            self._left[item.originalname] -= 1
            if not self._left[item.originalname] and result.message == _NOT_RUN:
                result.state, result.message = PASSED, ""
        return (yield)

    def _take(self, result: Result, state: str, message: str, lines: list[str]) -> None:
        if result.message == _NOT_RUN or state == FAULT:
            result.state, result.message, result.lines = state, message, lines


def _is_launch(form: object) -> bool:
    """Whether what came out of the box is a kernel's name, the types of its arguments, and constants."""
    match form:
        case (str(), dict() as kinds, dict() as constants):
            return all(isinstance(name, str) for name in (*kinds, *constants)) and all(
                map(_is_simple, kinds.values())
            )
    return False


def _is_simple(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_simple(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


_NOT_RUN = Result("", "", "", 0).message


def _state(error: BaseException, test: Path | None) -> tuple[str, str, list[str]]:
    """The state that an exception means, what to say, and the student's own lines on the way to it."""
    cause = error.__cause__
    if isinstance(error, AssertionError) and _is_verdict(error, test):
        if isinstance(cause, NotWritten):
            return NOT_ATTEMPTED, cause.message, []
        lines = _lines(cause) if isinstance(cause, StudentError) else []
        return WRONG, (str(error).splitlines() or ["The result is wrong."])[0], lines
    if isinstance(error, NotWritten):
        return NOT_ATTEMPTED, error.message, []
    if isinstance(error, StudentError):
        return CRASHED, error.message, _lines(error)
    if isinstance(error, Died):
        return CRASHED, f"Your code did not answer: {error}.", []
    if getattr(error, "from_the_box", False):
        return CRASHED, f"{type(error).__name__}: {error}", []
    if isinstance(error, pytest.fail.Exception):
        return WRONG, (error.msg or "").split("\n")[0], []
    if isinstance(error, pytest.skip.Exception):
        return FAULT, f"The test was skipped: {error.msg}.", []
    text = (str(error).splitlines() or [""])[0]
    return FAULT, f"{type(error).__name__}: {clean(text)}", []


def _is_verdict(error: AssertionError, test: Path | None) -> bool:
    """Whether a test said it, and not a library that a test uses."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return file in (str(test), feedback.__file__)


def _lines(error: StudentError) -> list[str]:
    return [f"line {number}: {line}" for number, line in error.frames]
