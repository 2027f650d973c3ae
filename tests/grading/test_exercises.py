"""The book's exercises in the grader: right solutions get all points, wrong ones lose what they should."""

from dataclasses import replace

import pytest

import kernels
from exercises import catalogue, stubs
from exercises.catalogue import Exercise
from grading import assignment, judge
from grading.release import release, variant
from tests.exercises.attempts import find
from tests.grading.conftest import needs_box

pytestmark = [
    needs_box,
    pytest.mark.skipif(not kernels.INTERPRETED, reason="the grader interprets kernels"),
    pytest.mark.xdist_group("exercises in the grader"),  # they share boxes
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


VARIED = [name for name, found in EXERCISES.items() if (found.folder / "variants.toml").exists()]


@pytest.mark.parametrize("name", VARIED)
def test_a_variant_is_whole_and_another_exercise(name, submit, tmp_path):
    found = EXERCISES[name]
    seeds = {}
    for seed in range(20):
        seeds.setdefault(variant(found.folder, seed)[1], seed)
    assert len(seeds) > 1 and "" in seeds
    for title, seed in seeds.items():
        course = release(found, tmp_path / str(seed), seed=seed)
        made = replace(course.assignment, compiles=None)
        solution = (made.folder / "solution.py").read_text("utf-8")
        exercise = catalogue.find(name)
        fields = {key: getattr(exercise, key) for key in vars(exercise) if key != "folder"}
        assert stubs.stub(Exercise(made.folder, **fields)) == (made.folder / "stub.py").read_text(
            "utf-8"
        )
        if title:
            assert lost(submit(solution, made)) == set()
            plain = (found.folder / "solution.py").read_text("utf-8")
            assert len(lost(submit(plain, made))) >= 3
