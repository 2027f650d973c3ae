# loses: test_two_tiles, test_many_tiles, test_rising_scores, test_ragged_end, test_logsumexp,
# test_any_timing, test_releases_every_slot, test_softmax_under_the_product
"""Two products may be outstanding, so the scores are not there."""

import typing

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
import triton.experimental.gluon.language.nvidia.hopper as hopper

# Queries and keys of a tile, and columns of both; slots of a ring.
BLOCK_M, BLOCK_N, HEAD_DIM, STAGES = map(gl.constexpr, (64, 64, 64, 2))
LN_2 = gl.constexpr(0.6931471805599453)
# How scores, weights, and outputs lie in the registers of the consumer's four warps.
LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
ROWS = gl.constexpr(gl.SliceLayout(1, LAYOUT))
COLUMNS = gl.constexpr(gl.SliceLayout(0, LAYOUT))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, LAYOUT, k_width=2))


class Ring(typing.NamedTuple):
    """Slots that tiles pass through, [SLOTS, rows, HEAD_DIM], with a full and an empty barrier each."""

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@gluon.jit
def make_ring(descriptor, SLOTS: gl.constexpr):
    """An empty ring for a descriptor's tiles."""
    shape: gl.constexpr = [SLOTS] + descriptor.block_type.shape
    tiles = gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], hopper.mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], hopper.mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        hopper.mbarrier.init(full.index(slot), count=1)
        hopper.mbarrier.init(empty.index(slot), count=1)
    return Ring(tiles, full, empty)


@gluon.jit
def load(ring, use, descriptor, row):
    """Once the slot of a use is empty, start copying the tile at a row into it."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    slot = use % SLOTS
    hopper.mbarrier.wait(ring.empty.index(slot), (use // SLOTS + 1) & 1)
    hopper.mbarrier.expect(ring.full.index(slot), descriptor.block_type.nbytes)
    hopper.tma.async_copy_global_to_shared(
        descriptor, [row, 0], ring.full.index(slot), ring.tiles.index(slot)
    )


@gluon.jit
def wait_for(ring, use):
    """Wait until the tile of a use has landed; returns it, [rows, HEAD_DIM]."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    hopper.mbarrier.wait(ring.full.index(use % SLOTS), (use // SLOTS) & 1)
    return ring.tiles.index(use % SLOTS)


@gluon.jit
def release(ring, use):
    """The tile of a use is needed no more."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    hopper.mbarrier.arrive(ring.empty.index(use % SLOTS), count=1)


@gluon.jit
def start_scores(queries, keys, tile):
    """Once a tile of keys is there, start its scores, [BLOCK_M, BLOCK_N]. They need to be waited for."""
    key_tile = wait_for(keys, tile).permute((1, 0))  # [HEAD_DIM, BLOCK_N]
    nothing = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, LAYOUT)
    return hopper.warpgroup_mma(
        queries.tiles.index(0), key_tile, nothing, use_acc=False, is_async=True
    )


@gluon.jit
def start_output(weights, values, tile, accumulator):
    """Once a tile of values is there, start ``accumulator + weights @ values``, to be waited for."""
    value_tile = wait_for(values, tile)  # [BLOCK_N, HEAD_DIM]
    return hopper.warpgroup_mma(weights, value_tile, accumulator, is_async=True)


@gluon.jit
def softmax_step(scores, tile, running_max, running_sum, scale_log2, seq_key):
    """Take a tile of scores into the maxima and sums of its rows.

    Returns:
        The exponentials of the tile, what the output so far must be multiplied by to be relative to the
        new maxima, as the exponentials are, and the new maxima and sums.
    """
    column = tile * BLOCK_N + gl.arange(0, BLOCK_N, COLUMNS)
    scores = gl.where(column[None, :] < seq_key, scores, float("-inf"))
    new_max = gl.maximum(running_max, gl.max(scores, axis=1) * scale_log2)
    exponentials = gl.exp2(gl.fma(scores, scale_log2, -new_max[:, None]))
    rescale = gl.exp2(running_max - new_max)
    new_sum = running_sum * rescale + gl.sum(exponentials, axis=1)
    return exponentials, rescale, new_max, new_sum


@gluon.jit
def producer(query, key, value, queries, keys, values, row, tiles):
    """Load the queries, and the tiles of keys and values in the order in which they are needed."""
    load(queries, 0, query, row)
    load(keys, 0, key, 0)
    for tile in range(1, tiles):
        load(keys, tile, key, tile * BLOCK_N)
        load(values, tile - 1, value, (tile - 1) * BLOCK_N)
    load(values, tiles - 1, value, (tiles - 1) * BLOCK_N)


@gluon.jit
def consumer(
    output_ptr, logsumexp_ptr, queries, keys, values, row, tiles, scale_log2, seq_query, seq_key
):
    """Attention of the queries from ``row`` on."""
    DTYPE: gl.constexpr = keys.tiles.dtype
    running_max = gl.full([BLOCK_M], float("-inf"), gl.float32, ROWS)
    running_sum = gl.zeros([BLOCK_M], gl.float32, ROWS)
    accumulator = gl.zeros([BLOCK_M, HEAD_DIM], gl.float32, LAYOUT)
    wait_for(queries, 0)
    scores = start_scores(queries, keys, 0)
    scores = hopper.warpgroup_mma_wait(0, deps=[scores])
    release(keys, 0)
    exponentials, rescale, running_max, running_sum = softmax_step(
        scores, 0, running_max, running_sum, scale_log2, seq_key
    )
    weights = gl.convert_layout(exponentials.to(DTYPE), WEIGHTS)  # [BLOCK_M, BLOCK_N]

    for tile in range(1, tiles):
        # In flight together: this tile's scores, and the output of the tile before.
        scores = start_scores(queries, keys, tile)
        accumulator = start_output(weights, values, tile - 1, accumulator)
        scores = hopper.warpgroup_mma_wait(2, deps=[scores])
        release(keys, tile)
        exponentials, rescale, running_max, running_sum = softmax_step(
            scores, tile, running_max, running_sum, scale_log2, seq_key
        )
        accumulator, weights = hopper.warpgroup_mma_wait(0, deps=[accumulator, weights])
        release(values, tile - 1)
        # It is relative to the old maxima, and what follows to the new ones.
        accumulator = accumulator * rescale[:, None]
        weights = gl.convert_layout(exponentials.to(DTYPE), WEIGHTS)

    accumulator = start_output(weights, values, tiles - 1, accumulator)
    accumulator, weights = hopper.warpgroup_mma_wait(0, deps=[accumulator, weights])
    release(values, tiles - 1)
    release(queries, 0)
    rows = row + gl.arange(0, BLOCK_M, ROWS)
    logsumexp = (running_max + gl.log2(running_sum)) * LN_2
    gl.store(logsumexp_ptr + rows, logsumexp, mask=rows < seq_query)
    output = (accumulator / running_sum[:, None]).to(DTYPE)
    columns = gl.arange(0, HEAD_DIM, COLUMNS)[None, :]
    place = output_ptr + rows[:, None] * HEAD_DIM + columns
    gl.store(place, output, mask=rows[:, None] < seq_query)


@gluon.jit
def attention_kernel(query, key, value, output_ptr, logsumexp_ptr, scale_log2):
    """One head, (rows, HEAD_DIM) each. A program has BLOCK_M queries; the results are contiguous."""
    queries = make_ring(query, 1)
    keys = make_ring(key, STAGES)
    values = make_ring(value, STAGES)
    row = gl.program_id(0) * BLOCK_M
    seq_query, seq_key = query.shape[0], key.shape[0]
    tiles = gl.cdiv(seq_key, BLOCK_N)  # at least 1
    gl.warp_specialize(
        [
            (producer, (query, key, value, queries, keys, values, row, tiles)),
            (
                consumer,
                (
                    output_ptr,
                    logsumexp_ptr,
                    queries,
                    keys,
                    values,
                    row,
                    tiles,
                    scale_log2,
                    seq_query,
                    seq_key,
                ),
            ),
        ],
        [4],  # warps of the consumer
        [240],  # registers of each of its threads
    )
