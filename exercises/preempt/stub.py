"""Who makes room: the file to write your solution in."""


def plan_step(
    running: list[tuple[int, int]],
    waiting: list[tuple[int, int]],
    free: int,
    block_size: int,
) -> tuple[list[int], list[int], list[int]]:
    """Decide who computes a token in the next step, who gives its blocks back, and who is let in.

    Args:
        running: (arrival, tokens) of each request that holds blocks, for just these tokens; in any order.
        waiting: (arrival, tokens) of each request that holds none; in any order.
        free: how many blocks nobody holds.
        block_size: tokens a block.

    Returns:
        (runs, preempted, admitted), each the arrivals of requests: those running that get a slot for one
        more token, in order of arrival; those that give back all of their blocks, in the order in which
        they do; those waiting that get blocks for their tokens, in order of arrival.
    """
    # Your turn: go over the running requests, the earliest first; while one lacks a block, the last of all
    # that are left gives back its own. Then let in who waits, the earliest first, as far as blocks
    # go, unless somebody had to make room.
    raise NotImplementedError("plan_step is not written yet")
