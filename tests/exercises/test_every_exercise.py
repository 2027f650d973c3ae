"""Every exercise: its solution passes, its stub does not, and wrong solutions lose the right tests."""

import ast
import doctest
import re
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")

import jupytext

import kernels
from exercises import catalogue, practice, stubs
from exercises.catalogue import Exercise, ExerciseError
from scripts.environment import ROOT
from tests.exercises.attempts import Attempt, AttemptError, all_attempts, attempts

EXERCISES = [catalogue.find(name) for name in catalogue.names()]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


def each_attempt(kind: str):
    return pytest.mark.parametrize("attempt", all_attempts(kind), ids=str)


def lost_and_skipped(exercise: Exercise, path: Path) -> tuple[set[str], set[str]]:
    outcomes = practice.run_tests(exercise, practice.load(path))
    assert outcomes.keys() == exercise.points.keys()
    lost = {test for test, outcome in outcomes.items() if isinstance(outcome, str)}
    skipped = {test for test, outcome in outcomes.items() if isinstance(outcome, practice.Skipped)}
    return lost, skipped


def lost(exercise: Exercise, path: Path) -> set[str]:
    return lost_and_skipped(exercise, path)[0]


def code_cells(chapter: str) -> list[str]:
    path = ROOT / "book" / f"{chapter}.md"
    if not path.exists():
        pytest.skip(f"book/{chapter}.md is not written yet")
    cells = jupytext.reads(path.read_text("utf-8"), fmt="md").cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def without_docstring(text: str) -> str:
    return text.removeprefix(ast.get_source_segment(text, ast.parse(text).body[0])).strip()


@each_exercise
def test_the_solution_passes_every_test(exercise):
    assert lost(exercise, exercise.folder / "solution.py") == set()


@each_exercise
def test_the_stub_fails_every_test(exercise):
    assert lost(exercise, exercise.folder / "stub.py") == exercise.points.keys()


@each_attempt("right")
def test_a_right_solution_passes_every_test(attempt, tmp_path):
    assert lost(attempt.exercise, attempt.write(tmp_path)) == set()


@each_attempt("wrong")
def test_a_wrong_solution_loses_exactly_the_tests_it_should(attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(practice, "_Practice", partial(Briefly, set(attempt.loses)))
    lost, skipped = lost_and_skipped(attempt.exercise, attempt.write(tmp_path))
    assert lost == set(attempt.loses) - skipped


class Briefly(practice._Practice):
    """Practice with hundreds of wrong solutions: of each test the cases that tell what comes of it.

    A test that must be lost runs until a case fails, as a learner is told of no other. One that must not
    be lost runs its first case and its last, or none if it takes longer than all the others together:
    right solutions run all.
    """

    SLOW = {"test_long_rows"}

    def __init__(self, loses: set[str], *arguments) -> None:
        super().__init__(*arguments)
        self.loses = loses

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        first = {item.originalname: item for item in reversed(items)}
        last = {item.originalname: item for item in items}
        ends = [*first.values(), *last.values()]
        items[:] = [item for item in items if item.originalname in self.loses or item in ends]

    def pytest_runtest_protocol(self, item: pytest.Function) -> bool | None:
        test = item.originalname
        if test in self.SLOW - self.loses:
            self.outcomes[test] = None
            return True
        settled = isinstance(self.outcomes.get(test), str)
        return True if settled else None


@each_exercise
def test_there_are_enough_right_and_wrong_solutions(exercise):
    assert len(attempts(exercise, "right")) >= 2
    assert len(attempts(exercise, "wrong")) >= 6


@each_exercise
def test_every_test_is_lost_by_a_wrong_solution_made_for_it(exercise):
    found = set().union(*(attempt.loses for attempt in attempts(exercise, "wrong")))
    assert found == exercise.points.keys()


@each_exercise
def test_the_stub_is_what_the_solution_says(exercise):
    assert exercise.read("stub.py") == stubs.stub(exercise)


@each_exercise
def test_solutions_keep_to_the_rules_of_the_exercise(exercise):
    texts = {file: exercise.read(file) for file in ("solution.py", "stub.py")}
    texts |= {str(attempt): attempt.text() for attempt in attempts(exercise, "right")}
    for file, text in texts.items():
        tree = ast.parse(text)
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert imported <= set(exercise.allowed_imports), file
        assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree)), file
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {*exercise.kernels, exercise.function} <= functions, file


@each_exercise
def test_the_statement_names_every_test_as_the_checker_does(exercise):
    statement = exercise.read("statement.md")
    for test in exercise.points:
        assert test.removeprefix("test_").replace("_", " ") in statement


@each_exercise
def test_the_example_in_the_statement_is_right(exercise):
    module = practice.load(exercise.folder / "solution.py")
    # The fence that ends the example would be read as its last line of output.
    text = re.sub(r"^```$", "", exercise.read("statement.md"), flags=re.MULTILINE)
    names = {**vars(module), "kernels": kernels}
    example = doctest.DocTestParser().get_doctest(text, names, exercise.name, None, None)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0 and result.failed == 0


@each_exercise
def test_the_chapter_holds_the_stub_and_then_checks_it(exercise):
    cells = code_cells(exercise.chapter)
    stub = without_docstring(exercise.read("stub.py"))
    assert stub in cells, f"no code cell of {exercise.chapter} is stub.py less its docstring"
    check = f'exercises.check("{exercise.name}", {exercise.function})'
    assert cells[cells.index(stub) + 1] == check


def an_attempt(folder: Path, text: str) -> Attempt:
    """An attempt at an exercise that asks for twice a number."""
    exercise = Exercise(folder, "Double", "01", "double", [], [], {})
    (folder / "solution.py").write_text(
        "def twice(x):\n    return x + x\n\n\ndef double(x):\n    y = twice(x)\n    return y\n"
    )
    (folder / "wrong").mkdir()
    (folder / "wrong" / "triple.toml").write_text(text)
    return attempts(exercise, "wrong")[0]


EDITS = """
why = "Three times."
[[edits]]
old = "y = twice(x)"
new = "y = twice(x) + x"
[[edits]]
old = "return y"
new = "return x and y"
"""
INSTEAD = """
why = "Three times."
instead = '''
def thrice(x):
    return 3 * x


def double(x):
    return thrice(x)
'''
"""


@pytest.mark.parametrize("text", [EDITS, INSTEAD], ids=["edits", "instead"])
def test_an_attempt_is_the_solution_with_changes(text, tmp_path):
    path = an_attempt(tmp_path, text).write(tmp_path)
    assert practice.load(path).double(5) == 15
    assert "def twice(x):\n    return x + x\n" in path.read_text("utf-8")
    assert path.read_text("utf-8").count("def double") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EDITS.replace("return y", "return z"), "expects 'return z' once .* it is there 0 times"),
        (EDITS.replace("return y", "return "), "expects 'return ' once .* it is there 2 times"),
        ('why = "Nothing."', "changes nothing"),
        (EDITS + 'odd = "what"', "cannot be read: .*'odd'"),
        ("why = ", "cannot be read"),
        ('wy = "Three times."', "cannot be read: .*'wy'"),
    ],
    ids=["absent", "twice", "nothing", "edit", "syntax", "field"],
)
def test_an_attempt_that_does_not_fit_its_solution_is_named(text, message, tmp_path):
    with pytest.raises(AttemptError, match=f"{tmp_path.name}/wrong/triple.toml .*{message}"):
        an_attempt(tmp_path, text).text()


def test_a_solution_without_marks_is_refused(tmp_path):
    solution = "def double(x):\n    ### BEGIN SOLUTION\n    ### Double it.\n    return 2 * x\n"
    exercise = Exercise(tmp_path, "Double", "01", "double", [], [], {})
    for text in ("def double(x):\n    return 2 * x\n", solution):
        (tmp_path / "solution.py").write_text(text)
        with pytest.raises(ExerciseError, match="must have ### BEGIN SOLUTION"):
            stubs.stub(exercise)


def test_a_stub_keeps_all_but_the_solution(tmp_path):
    exercise = Exercise(tmp_path, "Double", "01", "double", ["double_kernel"], [], {})
    (tmp_path / "solution.py").write_text(
        '"""A solution."""\n\n'
        "@triton.jit\ndef double_kernel(x_ptr):\n"
        "    ### BEGIN SOLUTION\n    ### load,\n    ### and store.\n    x = 1\n\n    y = 2\n"
        "    ### END SOLUTION\n\n\n"
        "def double(x):\n    x = x + 0\n    if x:\n"
        "        ### BEGIN SOLUTION\n        ### double it.\n        x = 2 * x\n"
        "        ### END SOLUTION\n    return x\n"
    )
    assert stubs.stub(exercise) == (
        '"""Double: the file to write your solution in."""\n\n'
        "@triton.jit\ndef double_kernel(x_ptr):\n"
        "    # Your turn: load,\n    # and store.\n    pass\n\n\n"
        "def double(x):\n    x = x + 0\n    if x:\n"
        "        # Your turn: double it.\n"
        '        raise NotImplementedError("double is not written yet")\n    return x\n'
    )
