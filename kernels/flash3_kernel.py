"""FlashAttention-3's kernel in Gluon: the producer, the consumers, and the program that they make up.

What they share is in :mod:`kernels.flash3_pipeline`; how it is launched, in :mod:`kernels.flash3`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.flash1 import LN_2
from kernels.flash3_pipeline import (
    Given,
    Shared,
    load_keys,
    load_queries,
    make_barriers,
    make_ring,
    pass_turn,
    release,
    rounds_of_work,
    tile_of,
    wait_full,
    wait_turn,
    work_tile,
)

# Of a product's rows each warp holds 16; a warpgroup, four warps, 64.
ROWS_A_WARP = gl.constexpr(16)


@gluon.jit
def producer(given, shared, CAUSAL: gl.constexpr):
    """Load what the consumers ask for, in the order in which they will, as soon as a slot is empty."""
    CONSUMERS: gl.constexpr = shared.query.tiles.shape[0]
    use = 0
    for round in range(rounds_of_work(given, shared)):
        work = work_tile(round, use, given, shared, CAUSAL)
        load_keys(shared.key, given.key, work, 0)
        for i in gl.static_range(CONSUMERS):
            load_queries(shared, given, work, round * CONSUMERS + i, i)
        for step in range(1, work.tiles):
            load_keys(shared.key, given.key, work, step)
            load_keys(shared.value, given.value, work, step - 1)
        load_keys(shared.value, given.value, work, work.tiles - 1)
        use += work.tiles


@gluon.jit
def finish(ring, descriptor, work, step, SPECIALIZED: gl.constexpr):
    """Be done with a tile of K or V. If there is no producer, load into its slot what comes next."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    release(ring, work.use + step)
    if not SPECIALIZED:
        if step + SLOTS < work.tiles:
            load_keys(ring, descriptor, work, step + SLOTS)


@gluon.jit
def start_loads(round, work, given, shared):
    """Without a producer: load the queries, and fill the rings."""
    STAGES: gl.constexpr = shared.key.tiles.shape[0]
    load_queries(shared, given, work, round, 0)
    for step in gl.static_range(STAGES):
        if step < work.tiles:
            load_keys(shared.key, given.key, work, step)
            load_keys(shared.value, given.value, work, step)


@gluon.jit
def softmax_step(scores, running_max, running_sum, scale_log2):
    """Take a tile of scores, [ROWS, BLOCK_N], into the statistics of its rows, [ROWS].

    As :func:`kernels.online_softmax.online_softmax_update`, but the maximum is kept scaled, so that an
    exponent is one fused multiply-add. Rounding moves the scaled maximum a little, by the same in the
    weights, in their sum and in what was accumulated, and so cancels when the output is divided; but the
    weights are rounded to 16 bits first. With scores far beyond 10 000, where one key has all the weight,
    that weight is then not exactly 1, and the output is off by one rounding more.
    """
    running_max_was = running_max
    running_max = gl.maximum(running_max, gl.max(scores, axis=1) * scale_log2)
    # While a row has seen nothing its maximum is -inf, and -inf - -inf is NaN: subtract 0 there.
    shift = gl.where(running_max == float("-inf"), 0.0, running_max)
    exponentials = gl.exp2(gl.fma(scores, scale_log2, -shift[:, None]))
    rescale = gl.exp2(running_max_was - shift)
    running_sum = running_sum * rescale + gl.sum(exponentials, axis=1)
    return running_max, running_sum, rescale, exponentials


@gluon.jit
def consumer(
    INDEX: gl.constexpr,
    given,
    shared,
    CAUSAL: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    APART: gl.constexpr,
):
    """Attention of ROWS queries: consumer INDEX's share of each of the program's tiles.

    APART: the output has shared memory of its own, so the queries' is free after the last scores.
    The keys are walked from the last tile to the first. So the one tile that always needs a mask, where
    the keys end, is dealt with before the loop.
    """
    CONSUMERS: gl.constexpr = shared.query.tiles.shape[0]
    SPECIALIZED: gl.constexpr = CONSUMERS > 1
    ROWS: gl.constexpr = shared.query.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.key.tiles.shape[3]
    BLOCK_D: gl.constexpr = shared.key.tiles.shape[4]
    DTYPE: gl.constexpr = given.query.dtype
    # How a product of 16-bit tiles lies in the registers of a warpgroup, and one as a left operand.
    WARPS: gl.constexpr = [ROWS // ROWS_A_WARP, 1]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], WARPS, instr_shape=[16, BLOCK_N, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], WARPS, instr_shape=[16, BLOCK_D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, k_width=2)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUTPUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)

    seq_query, seq_key = given.output.shape[1], given.key.shape[2]
    in_m = gl.arange(0, ROWS, layout=SCORE_ROWS)
    in_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SCORES))
    no_scores = gl.zeros([ROWS, BLOCK_N], gl.float32, layout=SCORES)
    use = 0
    for round in range(rounds_of_work(given, shared)):
        work = work_tile(round, use, given, shared, CAUSAL)
        rows = work.start_m + INDEX * ROWS + in_m  # [ROWS]
        whole_tiles = seq_key // BLOCK_N
        last_seen = gl.full([ROWS], seq_key - 1, gl.int32, layout=SCORE_ROWS)
        if CAUSAL:
            last_seen = gl.minimum(rows + (seq_key - seq_query), last_seen)
            first_stop = work.start_m + INDEX * ROWS + 1 + seq_key - seq_query
            whole_tiles = gl.minimum(gl.maximum(first_stop, 0) // BLOCK_N, whole_tiles)
        running_max = gl.full([ROWS], float("-inf"), gl.float32, layout=SCORE_ROWS)
        running_sum = gl.zeros([ROWS], gl.float32, layout=SCORE_ROWS)
        accumulator = gl.zeros([ROWS, BLOCK_D], gl.float32, layout=OUTPUT)

        if not SPECIALIZED:
            start_loads(round, work, given, shared)
        wait_full(shared.query, round * CONSUMERS + INDEX)
        query_tile = tile_of(shared.query, round * CONSUMERS + INDEX)
        wait_full(shared.key, use)
        if PINGPONG:
            wait_turn(shared.turn, use, INDEX)
        key_tile = tile_of(shared.key, use)  # [BLOCK_N, BLOCK_D]
        scores = warpgroup_mma(  # [ROWS, BLOCK_N]
            query_tile, key_tile.permute((1, 0)), no_scores, use_acc=False, is_async=True
        )
        if PINGPONG:
            pass_turn(shared.turn, INDEX)
        scores = warpgroup_mma_wait(0, deps=[scores])
        finish(shared.key, given.key, work, 0, SPECIALIZED)
        columns = (work.tiles - 1) * BLOCK_N + in_n  # [BLOCK_N]
        scores = gl.where(columns[None, :] <= last_seen[:, None], scores, float("-inf"))
        running_max, running_sum, rescale, exponentials = softmax_step(
            scores, running_max, running_sum, given.scale_log2
        )
        weights = gl.convert_layout(exponentials.to(DTYPE), WEIGHTS)  # [ROWS, BLOCK_N]
        wait_full(shared.key, use + 1, pred=work.tiles > 1)

        for step in range(1, work.tiles):
            # In flight together: this tile's scores, and the output of the tile before.
            if PINGPONG:
                wait_turn(shared.turn, use + step, INDEX)
            key_tile = tile_of(shared.key, use + step)
            scores = warpgroup_mma(
                query_tile, key_tile.permute((1, 0)), no_scores, use_acc=False, is_async=True
            )
            wait_full(shared.value, use + step - 1)
            value_tile = tile_of(shared.value, use + step - 1)  # [BLOCK_N, BLOCK_D]
            accumulator = warpgroup_mma(weights, value_tile, accumulator, is_async=True)
            if PINGPONG:
                pass_turn(shared.turn, INDEX)
            # Products finish in order: one outstanding means that the scores are there.
            scores = warpgroup_mma_wait(1 if OVERLAP else 0, deps=[scores])
            finish(shared.key, given.key, work, step, SPECIALIZED)
            tile = work.tiles - 1 - step
            if CAUSAL:
                if tile >= whole_tiles:
                    columns = tile * BLOCK_N + in_n
                    scores = gl.where(columns[None, :] <= last_seen[:, None], scores, float("-inf"))
            running_max, running_sum, rescale, exponentials = softmax_step(
                scores, running_max, running_sum, given.scale_log2
            )
            # Needed one step later only; but a wait on a barrier ends a basic block, so the assembler
            # cannot move the next wait, for the product, up before the exponentials.
            wait_full(shared.key, use + step + 1, pred=step + 1 < work.tiles)
            accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])
            finish(shared.value, given.value, work, step - 1, SPECIALIZED)
            accumulator = accumulator * gl.convert_layout(rescale, OUTPUT_ROWS)[:, None]
            weights = gl.convert_layout(exponentials.to(DTYPE), WEIGHTS)

        # A row that saw nothing has a sum of 0, and stays 0.
        divisor = gl.where(running_sum == 0.0, 1.0, running_sum)
        logsumexp = (running_max + gl.log2(divisor)) * LN_2
        first_row = work.head.to(gl.int64) * seq_query
        gl.store(given.logsumexp_ptr + first_row + rows, logsumexp, mask=rows < seq_query)
        use += work.tiles
        if APART:
            release(shared.query, round * CONSUMERS + INDEX)
        wait_full(shared.value, use - 1)
        accumulator = warpgroup_mma(
            weights, tile_of(shared.value, use - 1), accumulator, is_async=True
        )
        accumulator = warpgroup_mma_wait(0, deps=[accumulator])
        finish(shared.value, given.value, work, work.tiles - 1, SPECIALIZED)
        output = accumulator * gl.convert_layout(1.0 / divisor, OUTPUT_ROWS)[:, None]
        tma.store_wait(0)  # until the output of the round before has left its place
        output_tile = shared.output.index(INDEX).reshape([1, ROWS, BLOCK_D])
        output_tile.reshape([ROWS, BLOCK_D]).store(output.to(DTYPE))
        fence_async_shared()
        place = [work.head, work.start_m + INDEX * ROWS, 0]  # rows past the last are clipped
        tma.async_copy_shared_to_global(given.output, place, output_tile)
        if not APART:
            tma.store_wait(0)
            release(shared.query, round * CONSUMERS + INDEX)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=("heads_together",))
def flash3_kernel(
    query,
    key,
    value,
    output,
    logsumexp_ptr,
    scale_log2,
    heads_together,
    CAUSAL: gl.constexpr,
    CONSUMERS: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    APART: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """A program: its shared memory, and its partitions side by side.

    One consumer alone is not a partition but the whole program, and loads for itself.
    """
    given = Given(query, key, value, output, logsumexp_ptr, scale_log2, heads_together)
    query_ring = make_ring(query, CONSUMERS, 1)
    output_tiles = query_ring.tiles
    if APART:
        shape: gl.constexpr = [CONSUMERS] + output.block_type.shape
        output_tiles = gl.allocate_shared_memory(output.dtype, shape, output.layout)
    shared = Shared(
        query_ring,
        make_ring(key, STAGES, CONSUMERS),
        make_ring(value, STAGES, CONSUMERS),
        output_tiles,
        make_barriers(CONSUMERS, 1),
    )
    if CONSUMERS > 1:
        # The producer is the first partition, whose registers are what the others leave. The arguments are
        # written out, because in a variable the constants among them would become run-time values.
        gl.warp_specialize(
            [
                (producer, (given, shared, CAUSAL)),
                (consumer, (gl.constexpr(0), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
                (consumer, (gl.constexpr(1), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
                (consumer, (gl.constexpr(2), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
            ][: 1 + CONSUMERS],
            [4] * CONSUMERS,
            [REGISTERS] * CONSUMERS,
        )
    else:
        consumer(gl.constexpr(0), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)
