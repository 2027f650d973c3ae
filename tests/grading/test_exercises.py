"""The book's exercises in the grader: right solutions get all points, wrong ones lose what they should."""

from dataclasses import replace

import pytest

import kernels
from exercises import catalogue
from grading import assignment, judge
from grading.release import release, variant
from tests.exercises.attempts import find
from tests.grading.conftest import needs_box

pytestmark = [
    needs_box,
    pytest.mark.skipif(not kernels.INTERPRETED, reason="the grader interprets kernels"),
]
EXERCISES = {name: assignment.find(name) for name in catalogue.names()}
# To judge every solution takes minutes. These are quick, and between them use all that a box can do:
# values alone, a kernel, counted bytes, the simulator, and integers.
QUICK = ["merge_softmax", "row_softmax", "merge_splits", "ring_of_tiles", "count_bytes"]
WRONG = [
    ("merge_softmax", "in_place"),
    ("merge_softmax", "lowest_number"),
    ("row_softmax", "float32_output"),
    ("row_softmax", "unwritten_rest"),
    ("ring_of_tiles", "never_releases"),
    ("ring_of_tiles", "no_wait_for_full"),
]


def lost(report: judge.Report) -> set[str]:
    return {result.name for result in report.results if result.state != judge.PASSED}


@pytest.mark.parametrize("name", QUICK)
def test_the_solution_has_all_points(name, submit):
    found = EXERCISES[name]
    report = submit((found.folder / "solution.py").read_text("utf-8"), found)
    assert lost(report) == set() and report.flags == []
    assert report.score == report.possible >= sum(found.points.values())


@pytest.mark.parametrize(("name", "attempt"), WRONG)
def test_a_wrong_solution_loses_what_it_should(name, attempt, submit):
    made = find(catalogue.find(name), "wrong", attempt)
    report = submit(made.text(), replace(EXERCISES[name], compiles=None), hidden=False)
    assert lost(report) == set(made.loses)
    assert not any(result.state == judge.FAULT for result in report.results)


@pytest.mark.parametrize("name", catalogue.names())
def test_the_stub_is_not_attempted(name, submit):
    found = EXERCISES[name]
    report = submit((found.folder / "stub.py").read_text("utf-8"), found)
    assert report.score == 0
    assert {result.state for result in report.results} == {judge.NOT_ATTEMPTED}
    assert {result.name for result in report.results} >= found.points.keys()


def test_a_seed_makes_new_hidden_numbers_and_the_same_again(submit, monkeypatch):
    found, seen = EXERCISES["merge_softmax"], []
    monkeypatch.setattr(judge.feedback, "compare", lambda _, exact, *__, **___: seen.append(exact))
    text = (found.folder / "solution.py").read_text("utf-8")
    for seed in (1, 1, 2):
        submit(text, found, seed=seed)
    first, again, other = seen[1::2]
    assert first.equal(again) and not first.equal(other)


def test_a_variant_is_judged_as_another_exercise(submit, tmp_path):
    # All others, and that their handouts are whole: test_variants.py.
    found = EXERCISES["row_softmax"]
    seed = next(seed for seed in range(20) if variant(found.folder, seed)[1])
    made = replace(release(found, tmp_path / "course", seed=seed).assignment, compiles=None)
    solutions = [
        (place / "solution.py").read_text("utf-8") for place in (made.folder, found.folder)
    ]
    own, plain = (lost(submit(solution, made)) for solution in solutions)
    assert own == set() and len(plain) >= 3
