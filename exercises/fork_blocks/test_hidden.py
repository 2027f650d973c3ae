"""The test of `append_slots` that a learner does not see: random forks, new in every grading."""

import random

import pytest


def expected(tables, lengths, references, free, block_size):
    """By asking, at every sequence, who names its last block at that moment."""
    tables, free, copies = [[*table] for table in tables], [*free], []
    others = {block: count for block, count in enumerate(references)}
    for place, table in enumerate(tables):
        room = len(table) * block_size - lengths[place]
        if room and others[table[-1]] == 1:
            continue
        if not free:
            return None
        block, *free = free
        others[block] = 1
        if room:
            copies.append((table[-1], block))
            others[table[-1]] -= 1
            table[-1] = block
        else:
            table.append(block)
    return tables, [others[block] for block in range(len(references))], free, copies


@pytest.mark.points(2, visibility="hidden", title="random forks")
def test_random_forks(student, seed):
    numbers = random.Random(seed)
    for _ in range(50):
        block_size = numbers.randint(1, 5)
        free = list(range(24))
        numbers.shuffle(free)
        tables, lengths = [], []
        for _ in range(numbers.randint(1, 3)):
            length = numbers.randint(0, 3 * block_size)
            blocks = [free.pop() for _ in range(-(-length // block_size))]
            for _ in range(numbers.randint(1, 3)):
                tables.append([*blocks])
                lengths.append(length)
        references = [sum(block in table for table in tables) for block in range(24)]
        writing = sorted(numbers.sample(range(len(tables)), numbers.randint(1, len(tables))))
        free = free[: numbers.randint(0, 8)]
        given = (
            [tables[place] for place in writing],
            [lengths[place] for place in writing],
            references,
            free,
            block_size,
        )
        right = expected(*given)
        came = student.append_slots(
            *([*part] if isinstance(part, list) else part for part in given)
        )
        if came is not None:
            came = (*came[:3], [tuple(pair) for pair in came[3]])
        assert came == right, f"append_slots{given} returns {came}; right is {right}."
