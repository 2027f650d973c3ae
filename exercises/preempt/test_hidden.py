"""The test of `plan_step` that a learner does not see: random requests, new in every grading."""

import random

import pytest


def expected(running, waiting, free, block_size):
    """By trying for each request, in order of arrival, how many of the last must go for it."""
    order, preempted, runs = sorted(running), [], []
    for place, (arrival, tokens) in enumerate(order):
        while arrival not in preempted and tokens % block_size == 0 and free == 0:
            last, held = max(each for each in order[place:] if each[0] not in preempted)
            preempted.append(last)
            free += (held + block_size - 1) // block_size
        if arrival not in preempted:
            free -= tokens % block_size == 0
            runs.append(arrival)
    admitted = []
    for arrival, tokens in [] if preempted else sorted(waiting):
        free -= (tokens + block_size - 1) // block_size
        if free < 0:
            break
        admitted.append(arrival)
    return runs, preempted, admitted


@pytest.mark.points(2, visibility="hidden", title="random requests")
def test_random_requests(student, seed):
    numbers = random.Random(seed)
    for _ in range(100):
        block_size = numbers.randint(1, 5)
        requests = [(a, numbers.randint(1, 4 * block_size)) for a in range(numbers.randint(0, 10))]
        numbers.shuffle(requests)
        cut = numbers.randint(0, len(requests))
        given = (requests[:cut], requests[cut:], numbers.randint(0, 5), block_size)
        right = expected(*given)
        came = student.plan_step([*given[0]], [*given[1]], *given[2:])
        assert tuple(map(list, came)) == right, (
            f"plan_step{given} returns {came}; right is {right}."
        )
