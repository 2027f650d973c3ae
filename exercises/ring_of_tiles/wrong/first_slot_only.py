# loses: test_runs_ahead
"""All tiles pass through one slot."""

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
import triton.experimental.gluon.language.nvidia.hopper as hopper

# Of a tile: rows of left, rows of right (columns of the product), and columns of both.
ROWS, COLUMNS, DEPTH = gl.constexpr(64), gl.constexpr(64), gl.constexpr(64)


@gluon.jit
def producer(left, right, left_tiles, right_tiles, full, empty, row, tiles, STAGES: gl.constexpr):
    """Copy the tiles of left, from ``row`` on, and of right into the ring, as slots become empty."""
    for tile in range(tiles):
        slot = 0
        hopper.mbarrier.wait(empty.index(slot), (tile + 1) & 1)
        landed = full.index(slot)
        hopper.mbarrier.expect(landed, left.block_type.nbytes + right.block_type.nbytes)
        hopper.tma.async_copy_global_to_shared(
            left, [row, tile * DEPTH], landed, left_tiles.index(slot)
        )
        hopper.tma.async_copy_global_to_shared(
            right, [0, tile * DEPTH], landed, right_tiles.index(slot)
        )


@gluon.jit
def consumer(
    product_ptr,
    left_tiles,
    right_tiles,
    full,
    empty,
    row,
    rows,
    columns,
    tiles,
    STAGES: gl.constexpr,
):
    """Sum the products of the tiles in the ring, [ROWS, COLUMNS], and store what is inside."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    total = gl.zeros([ROWS, COLUMNS], gl.float32, LAYOUT)
    for tile in range(tiles):
        slot = 0
        hopper.mbarrier.wait(full.index(slot), tile & 1)
        right_tile = right_tiles.index(slot).permute((1, 0))  # [DEPTH, COLUMNS]
        total = hopper.warpgroup_mma(left_tiles.index(slot), right_tile, total, is_async=True)
        total = hopper.warpgroup_mma_wait(0, deps=[total])
        hopper.mbarrier.arrive(empty.index(slot), count=1)
    row += gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    gl.store(product_ptr + row[:, None] * columns + column[None, :], total, mask=inside)


@gluon.jit
def product_kernel(left, right, product_ptr, STAGES: gl.constexpr):
    """``left @ right.T``, float32 and contiguous. A program has ROWS of its rows, and all columns."""
    left_tiles = gl.allocate_shared_memory(left.dtype, [STAGES, ROWS, DEPTH], left.layout)
    right_tiles = gl.allocate_shared_memory(right.dtype, [STAGES, COLUMNS, DEPTH], right.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        hopper.mbarrier.init(full.index(slot), count=1)
        hopper.mbarrier.init(empty.index(slot), count=1)
    row = gl.program_id(0) * ROWS
    rows, columns = left.shape[0], right.shape[0]
    tiles = gl.cdiv(left.shape[1], DEPTH)
    gl.warp_specialize(
        [
            (producer, (left, right, left_tiles, right_tiles, full, empty, row, tiles, STAGES)),
            (
                consumer,
                (
                    product_ptr,
                    left_tiles,
                    right_tiles,
                    full,
                    empty,
                    row,
                    rows,
                    columns,
                    tiles,
                    STAGES,
                ),
            ),
        ],
        [4],  # warps of the consumer
        [160],  # registers of each of its threads
    )
