"""One more slot for each sequence: a new block where the last is full, a copy where it is shared."""


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
    ### BEGIN SOLUTION
    ### go over the sequences in order, and see which of three cases each is in.
    tables = [[*table] for table in tables]
    references, free, copies = [*references], [*free], []
    for table, length in zip(tables, lengths, strict=True):
        full = length % block_size == 0
        shared = not full and references[table[-1]] > 1
        if not full and not shared:
            continue
        if not free:
            return None
        block = free.pop(0)
        references[block] = 1
        if full:
            table.append(block)
        else:
            copies.append((table[-1], block))
            references[table[-1]] -= 1
            table[-1] = block
    return tables, references, free, copies
    ### END SOLUTION
