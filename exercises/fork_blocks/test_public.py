"""The public tests of `append_slots`. A failing one says in a sentence what is probably wrong.

Each test looks for one mistake, and what it hands over leaves the others little room: there are as many
free blocks as needed, in no particular order, except where they are the question. `student` holds the
learner's function. What is expected is written down as it must be, and must be met exactly.
"""

import copy

import pytest

BLOCK_SIZE = 4
NAMES = ("tables", "references", "free", "copies")


def call(student, tables, lengths, references, free):
    return student.append_slots(
        copy.deepcopy(tables), [*lengths], [*references], [*free], BLOCK_SIZE
    )


def append(student, tables, lengths, references, free) -> dict:
    """What the function returns, by name."""
    result = call(student, tables, lengths, references, free)
    assert isinstance(result, tuple | list) and len(result) == 4, (
        "There are enough free blocks, so (tables, references, free, copies) must be returned, and "
        f"{result!r} was."
    )
    result = dict(zip(NAMES, result, strict=True))
    result["copies"] = [tuple(pair) for pair in result["copies"]]
    return result


def assert_right(result: dict, mistake: str, **expected) -> None:
    for name, value in expected.items():
        assert result[name] == value, f"{mistake} ({name} is {result[name]}; expected {value}.)"


def test_room_left(student):
    for length in (5, 7):
        result = append(student, [[3, 0], [2]], [length, 1], [1, 0, 1, 1], [1])
        assert_right(
            result,
            f"A last block with {length % BLOCK_SIZE} of {BLOCK_SIZE} tokens that nobody shares has room "
            "for one more: nothing changes.",
            tables=[[3, 0], [2]],
            references=[1, 0, 1, 1],
            free=[1],
            copies=[],
        )


def test_full_block(student):
    for length, table in ((4, [3]), (8, [3, 0])):
        references = [int(block in table) for block in range(4)]
        result = append(student, [table], [length], references, [2])
        assert_right(
            result,
            f"A sequence of {length} tokens has filled its last block of {BLOCK_SIZE}: it gets a free "
            "one at the end of its table, with one reference, and nothing is copied.",
            tables=[[*table, 2]],
            references=[*references[:2], 1, *references[3:]],
            copies=[],
        )


def test_first_token(student):
    result = append(student, [[]], [0], [1, 0], [1])
    assert_right(
        result,
        "A sequence without a token has no block: it gets its first one, which is the case of a full "
        "block.",
        tables=[[1]],
        references=[1, 1],
        free=[],
        copies=[],
    )


def test_free_order(student):
    result = append(student, [[0], [1]], [4, 4], [1, 1, 0, 0, 0], [4, 2, 3])
    assert_right(
        result,
        "Free blocks are taken from the front of the list, the first sequence's first; what is left "
        "stays in its order.",
        tables=[[0, 4], [1, 2]],
        free=[3],
    )


def test_two_share(student):
    result = append(student, [[0, 3], [0, 3]], [6, 6], [2, 0, 0, 2], [1, 2])
    assert result["tables"][0] == [0, 1], (
        "The first of two that share a block which is not full must get a free block in its place: it "
        f"would write into what the other reads. (Its table is {result['tables'][0]}; expected [0, 1].)"
    )
    assert result["copies"][:1] == [(3, 1)], (
        "The tokens in a shared block must come along: the copy is (shared block, new block). "
        f"(copies begin with {result['copies'][:1]}; expected [(3, 1)].)"
    )


def test_last_writer(student):
    result = append(student, [[0, 3], [0, 3]], [6, 6], [2, 0, 0, 2], [1, 2])
    assert_right(
        {"table": result["tables"][1]},
        "Once the first has its copy, the last sequence has the block for itself and writes into it: a "
        "copy takes a reference away from its source, at once.",
        table=[0, 3],
    )


def test_shared_elsewhere(student):
    result = append(student, [[0, 3]], [6], [2, 0, 1, 2], [1])
    assert_right(
        result,
        "A block with two references is shared, although only one of those who have it writes in this "
        "step: look at references, not at the tables that were handed over.",
        tables=[[0, 1]],
        copies=[(3, 1)],
    )


def test_full_and_shared(student):
    result = append(student, [[0, 3], [0, 3]], [8, 8], [2, 0, 0, 2], [1, 2])
    assert_right(
        result,
        "A full block is never written again, so it stays shared: both sequences get a new block behind "
        "it, and nothing is copied.",
        tables=[[0, 3, 1], [0, 3, 2]],
        references=[2, 1, 1, 2],
        copies=[],
    )


def test_three_share(student):
    result = append(student, [[3], [3], [3]], [2, 2, 2], [0, 0, 0, 3], [1, 2, 0])
    assert_right(
        result,
        "Of three that share a block two get a copy, each of them its own. A new block has one reference, "
        "and the old one loses one with each copy.",
        tables=[[1], [2], [3]],
        references=[0, 1, 1, 1],
        copies=[(3, 1), (3, 2)],
    )


@pytest.mark.parametrize(
    ("tables", "lengths", "references", "free"),
    [
        ([[0]], [4], [1, 1], []),
        ([[0], [1]], [4, 4], [1, 1, 0], [2]),
        ([[0], [0], [0]], [2, 2, 2], [3, 0], [1]),
    ],
    ids=["none", "one too few", "one copy too many"],
)
def test_too_few_blocks(student, tables, lengths, references, free):
    try:
        result = call(student, tables, lengths, references, free)
    except IndexError as error:
        result = f"an IndexError, {error}"
    assert result is None, (
        f"With {len(free)} free blocks there is no room for all of these sequences: return None, and no "
        f"exception and no half of the work. (It returned {result}.)"
    )


def test_inputs_unchanged(student):
    given = ([[0, 3], [0, 3], [2]], [6, 6, 4], [2, 0, 1, 2, 0], [1, 4])
    passed = copy.deepcopy(given)
    student.append_slots(*passed, BLOCK_SIZE)
    for name, before, after in zip(
        ("tables", "lengths", "references", "free"), given, passed, strict=True
    ):
        assert before == after, (
            f"The function changed {name}, which belongs to the caller: work on copies, and copy the "
            "tables inside of tables, too."
        )
