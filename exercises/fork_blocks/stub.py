"""Copy on write: the file to write your solution in."""


def append_slots(
    tables: list[list[int]],
    lengths: list[int],
    references: list[int],
    free: list[int],
    block_size: int,
) -> tuple[list[list[int]], list[int], list[int], list[tuple[int, int]]] | None:
    """Give each sequence room for one more token that it can write without harm to another.

    Args:
        tables: each sequence's blocks, in order.
        lengths: how many tokens each sequence has.
        references: of each block of the memory, how many tables name it.
        free: the blocks that nobody has, in the order in which to take them.
        block_size: tokens a block.

    Returns:
        (tables, references, free, copies) as they are then; copies are pairs (source, target) of blocks,
        to be carried out before the tokens are written. None if there are too few free blocks.
    """
    # Your turn: go over the sequences in order, and see which of three cases each is in.
    raise NotImplementedError("append_slots is not written yet")
