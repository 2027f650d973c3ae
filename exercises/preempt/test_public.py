"""The public tests of `plan_step`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and what it hands over leaves the others little room: lists are in order of
arrival and nobody waits, except where that is the question. Blocks have 4 tokens. `student` holds the
learner's function. What is expected is written down as it must be.
"""

import copy

import pytest

BLOCK_SIZE = 4
NAMES = ("runs", "preempted", "admitted")


def plan(student, running, waiting, free) -> dict:
    """What the function returns, by name."""
    result = student.plan_step(copy.deepcopy(running), copy.deepcopy(waiting), free, BLOCK_SIZE)
    assert isinstance(result, tuple | list) and len(result) == 3, (
        f"The function must return (runs, preempted, admitted), and returned {result!r}."
    )
    return {name: [*arrivals] for name, arrivals in zip(NAMES, result, strict=True)}


def assert_right(result: dict, mistake: str, **expected) -> None:
    for name, value in expected.items():
        assert result[name] == value, f"{mistake} ({name} is {result[name]}; expected {value}.)"


def test_room_for_all(student):
    assert_right(
        plan(student, [(1, 1), (2, 6), (3, 11)], [], 0),
        "None of these has filled its last block, so all of them run, and need no free block.",
        runs=[1, 2, 3],
        preempted=[],
        admitted=[],
    )


def test_new_block(student):
    assert_right(
        plan(student, [(1, 4), (2, 5), (3, 8)], [], 2),
        "Of these the first and the third have filled their last block: with two free blocks all run.",
        runs=[1, 2, 3],
        preempted=[],
    )
    assert_right(
        plan(student, [(1, 4)], [(2, 5)], 2),
        "A running request whose last block is full takes one of the two free blocks: the other is not "
        "enough for five tokens.",
        runs=[1],
        admitted=[],
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_last_makes_room(student, order):
    running = [(1, 4), (2, 3), (3, 2)]
    assert_right(
        plan(student, [running[place] for place in order], [], 0),
        "Request 1 lacks a block, so request 3, the last to arrive, gives back its own, wherever it "
        "stands in the list; requests are served in order of arrival.",
        runs=[1, 2],
        preempted=[3],
    )


def test_several_make_room(student):
    assert_right(
        plan(student, [(1, 4), (2, 8), (3, 1), (4, 1)], [], 0),
        "Request 1 takes the block of request 4, and request 2 that of request 3: whoever gives blocks "
        "back is the last of those that are left.",
        runs=[1, 2],
        preempted=[4, 3],
    )


@pytest.mark.parametrize("running", [[(1, 2), (2, 4)], [(1, 4), (2, 4), (3, 4)]], ids=str)
def test_makes_room_for_itself(student, running):
    result = plan(student, running, [], len(running) - 2)
    last = running[-1][0]
    assert_right(
        result,
        f"Request {last} lacks a block and arrived last, so nobody else makes room for it: it gives its "
        "own blocks back, and does not run.",
        runs=[arrival for arrival, _ in running[:-1]],
        preempted=[last],
    )


def test_freed_blocks_are_used(student):
    assert_right(
        plan(student, [(1, 4), (2, 8), (3, 12), (4, 9)], [], 0),
        "Request 4 gives back three blocks, for nine tokens: enough for all that lack one.",
        runs=[1, 2, 3],
        preempted=[4],
    )


def test_admitted(student):
    assert_right(
        plan(student, [], [(7, 4), (5, 8), (6, 4)], 4),
        "There are four blocks for requests that need two, one and one: all come in, the earliest first, "
        "whatever the order of the list.",
        admitted=[5, 6, 7],
    )


def test_blocks_of_a_newcomer(student):
    assert_right(
        plan(student, [], [(1, 5)], 2),
        "Five tokens need two blocks of four, and two are free.",
        admitted=[1],
    )
    assert_right(
        plan(student, [], [(1, 8)], 2),
        "Eight tokens fill two blocks of four, and two are free: no slot more is asked for.",
        admitted=[1],
    )
    assert_right(
        plan(student, [], [(1, 9)], 2),
        "Nine tokens need three blocks of four, and two are free.",
        admitted=[],
    )
    assert_right(
        plan(student, [], [(1, 4), (2, 4)], 1),
        "Who comes in takes blocks away from the next.",
        admitted=[1],
    )


def test_nobody_overtakes(student):
    assert_right(
        plan(student, [], [(1, 4), (2, 12), (3, 4)], 2),
        "Request 2 does not fit, so request 3 has to wait behind it, although there is room for it.",
        admitted=[1],
    )


def test_nobody_enters_after_a_preemption(student):
    assert_right(
        plan(student, [(1, 4), (2, 12)], [(3, 4)], 0),
        "Request 2 gave back three blocks, one of which request 1 takes. Request 3 must not take the "
        "others: it arrived after request 2.",
        runs=[1],
        preempted=[2],
        admitted=[],
    )


def test_inputs_unchanged(student):
    running, waiting = [(2, 4), (1, 4)], [(4, 4), (3, 4)]
    passed = copy.deepcopy((running, waiting))
    student.plan_step(*passed, 3, BLOCK_SIZE)
    for name, before, after in zip(("running", "waiting"), (running, waiting), passed, strict=True):
        assert before == after, (
            f"The function changed {name}, which belongs to the caller: sorted() makes a list of its own."
        )
