"""A step of the scheduler: running requests first, the last to arrive makes room, nobody overtakes."""


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
    ### BEGIN SOLUTION
    ### go over the running requests, the earliest first; while one lacks a block, the last of all
    ### that are left gives back its own. Then let in who waits, the earliest first, as far as blocks
    ### go, unless somebody had to make room.
    left = sorted(running)
    runs, preempted, admitted = [], [], []
    while left:
        arrival, tokens = left[0]
        needed = int(tokens % block_size == 0)
        if needed <= free:
            free -= needed
            runs.append(arrival)
            left.pop(0)
        else:
            last, held = left.pop()
            free += -(-held // block_size)
            preempted.append(last)
    if not preempted:
        for arrival, tokens in sorted(waiting):
            needed = -(-tokens // block_size)
            if needed > free:
                break
            free -= needed
            admitted.append(arrival)
    return runs, preempted, admitted
    ### END SOLUTION
