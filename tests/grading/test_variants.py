"""The variants of the book's exercises: each is whole, and another exercise than the public one."""

import doctest
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import kernels
from exercises import catalogue, practice, stubs
from exercises.catalogue import Exercise
from grading import alone, assignment, feedback, judge
from grading.assignment import Assignment, AssignmentError
from grading.release import apply, release, variant, variants
from tests.grading.conftest import DOUBLE, TIER

pytestmark = pytest.mark.skipif(not kernels.INTERPRETED, reason="the grader interprets kernels")
EXERCISES = {name: assignment.find(name) for name in catalogue.names()}
VARIANTS = [
    (name, one["title"]) for name, found in EXERCISES.items() for one in variants(found.folder)
]
each_variant = pytest.mark.parametrize(("name", "title"), VARIANTS)
# Of the points, which the public solution must not get more of.
AT_MOST = 0.6
# Rows that fill a tile of the largest size take seconds, and show nothing that a variant changes.
SLOW = {"test_long_rows"}


class Briefly:
    """A pytest plugin: the tests as the grader runs them, but here, and of each two cases.

    The box is the concern of other tests. Of a test with many cases the first and the last are run,
    and none when more points are lost than ``until``, a share of all.
    """

    def __init__(self, made: Assignment, solution: Path, until: float) -> None:
        self.points: dict[str, float] = {}
        self.lost: set[str] = set()
        self._own = made.points
        self._until = until
        function = getattr(practice.load(solution), made.function)
        self._student = SimpleNamespace(**{made.function: function})

    @property
    def kept(self) -> float:
        """The share of all points that is not lost."""
        return 1 - sum(self.points[test] for test in self.lost) / sum(self.points.values())

    @pytest.fixture
    def student(self) -> Iterator[SimpleNamespace]:
        with practice._poisoned_memory():
            yield self._student

    @pytest.fixture
    def seed(self) -> int:
        return 11

    @pytest.fixture
    def compare(self):
        return feedback.compare

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "points(number, visibility, title)")
        config.option.tbstyle = "value"

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        items[:] = [item for item in items if item.originalname not in SLOW]
        first = {item.originalname: item for item in reversed(items)}
        last = {item.originalname: item for item in items}
        items[:] = [item for item in items if item in (*first.values(), *last.values())]
        for name, item in first.items():
            mark = item.get_closest_marker("points")
            self.points[name] = mark.args[0] if mark else self._own[name]

    def pytest_runtest_protocol(self, item: pytest.Function) -> bool | None:
        settled = item.originalname in self.lost or self.kept < 1 - self._until
        return True if settled else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo):
        if call.excinfo is not None:
            self.lost.add(item.originalname)
        return (yield)


def run(made: Assignment, solution: Path, until: float = 1.0) -> Briefly:
    plugin = Briefly(made, solution, until)
    alone.run(made.folder, made.tests(hidden=True), plugin)
    return plugin


def released(name: str, title: str, folder: Path) -> Assignment:
    """A class's exercise, released with the first seed that chooses the variant."""
    found = EXERCISES[name]
    seed = next(seed for seed in range(100) if variant(found.folder, seed)[1] == title)
    return release(found, folder, seed=seed).assignment


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_has_variants_and_hidden_tests(name):
    titles = [one["title"] for one in variants(EXERCISES[name].folder)]
    assert titles and len(set(titles)) == len(titles)
    assert (EXERCISES[name].folder / "test_hidden.py").exists()


@each_variant
def test_a_variant_asks_for_another_solution(name, title, tmp_path):
    made = released(name, title, tmp_path / "course")
    own = run(made, made.folder / "solution.py")
    assert own.lost == set()
    assert own.points.keys() - SLOW >= made.points.keys() - SLOW
    plain = run(made, EXERCISES[name].folder / "solution.py", until=1 - AT_MOST)
    assert plain.kept <= AT_MOST


@each_variant
def test_the_handout_of_a_variant_is_whole(name, title, tmp_path):
    made = released(name, title, tmp_path / "course")
    exercise = Exercise(made.folder, **tomllib.loads((made.folder / "exercise.toml").read_text()))
    stub = made.folder / "stub.py"
    assert stub.read_text("utf-8") == stubs.stub(exercise)
    report = judge.judge(replace(made, compiles=None), stub, seed=1, tier=TIER)
    assert report.score == 0 and {one.state for one in report.results} == {judge.NOT_ATTEMPTED}
    statement = (made.folder / "statement.md").read_text("utf-8")
    for test in made.points:
        assert test.removeprefix("test_").replace("_", " ") in statement
    assert statement != catalogue.find(name).read("statement.md")
    # The fence that ends the example would be read as its last line of output.
    text = re.sub(r"^```$", "", statement, flags=re.MULTILINE)
    names = {**vars(practice.load(made.folder / "solution.py")), "kernels": kernels}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0 and result.failed == 0


def test_a_variant_that_does_not_fit_its_exercise_is_named(tmp_path):
    folder = shutil.copytree(DOUBLE.folder, tmp_path / "double")
    with pytest.raises(AssignmentError, match="'thrice' in solution.py 1 times, .* there 0 times"):
        apply(folder, [["solution.py", "thrice", "twice"]])
    with pytest.raises(AssignmentError, match="in stub.py 9 times, and it is there"):
        apply(folder, [["stub.py", "d", "e", 9]])


def test_what_changes_in_the_solution_changes_in_the_stub(tmp_path):
    folder = shutil.copytree(DOUBLE.folder, tmp_path / "double")
    apply(
        folder,
        [
            [
                "solution.py",
                "values",
                "numbers",
                (folder / "solution.py").read_text().count("values"),
            ]
        ],
    )
    assert "values" not in (folder / "stub.py").read_text("utf-8")
