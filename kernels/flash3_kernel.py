"""FlashAttention-3's kernel in Gluon: the producer, the consumers, and the program that they make up.

What they share is in :mod:`kernels.flash3_pipeline`; how it is launched, in :mod:`kernels.flash3`.
"""

from typing import NamedTuple

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
    PairRing,
    Ring,
    Shared,
    load_pair,
    load_queries,
    make_barriers,
    make_tiles,
    pass_turn,
    release,
    rounds_of_work,
    tile_of,
    wait_full,
    wait_turn,
    work_tile,
)


@gluon.constexpr_function
def product_layout(ROWS, COLUMNS):
    """How a product of 16-bit tiles lies in the registers of a consumer. Each warp holds 16 rows."""
    return gl.NVMMADistributedLayout([3, 0], [ROWS // 16, 1], instr_shape=[16, COLUMNS, 16])


class Rows(NamedTuple):
    """A consumer's queries: where they lie in shared memory, and the last key that each sees, [ROWS]."""

    tile: gl.shared_memory_descriptor
    last_seen: gl.tensor


class Running(NamedTuple):
    """What a consumer carries from one tile of keys to the next.

    ``running_max`` (scaled), ``running_sum`` and ``rescale`` are [ROWS], ``accumulator`` is
    [ROWS, BLOCK_D]. ``weights``, [ROWS, BLOCK_N], are the last tile's, not yet multiplied with its V; and
    ``rescale`` is what the accumulator has to be multiplied with before their product is added.
    """

    running_max: gl.tensor
    running_sum: gl.tensor
    rescale: gl.tensor
    accumulator: gl.tensor
    weights: gl.tensor


@gluon.jit
def producer(given, shared, CAUSAL: gl.constexpr):
    """Load what the consumers ask for, in the order in which they will, as soon as a slot is empty."""
    CONSUMERS: gl.constexpr = shared.queries.tiles.shape[0]
    use = 0
    for round in range(rounds_of_work(given, shared)):
        work = work_tile(round, use, given, shared, CAUSAL)
        load_pair(shared, given, work, 0, VALUE=False)
        for i in gl.static_range(CONSUMERS):
            load_queries(shared, given, work, round * CONSUMERS + i, i)
        for step in range(1, work.tiles):
            load_pair(shared, given, work, step)
        load_pair(shared, given, work, work.tiles, KEY=False)
        use += work.tiles + 1


@gluon.jit
def load_next(step, work, given, shared):
    """Without a producer: load what a step needs, if there is such a step."""
    if step < work.tiles:
        load_pair(shared, given, work, step)
    elif step == work.tiles:
        load_pair(shared, given, work, step, KEY=False)


@gluon.jit
def start_loads(round, work, given, shared):
    """Without a producer: load the queries, and fill the ring."""
    SLOTS: gl.constexpr = shared.pairs.full.shape[0]
    load_queries(shared, given, work, round, 0)
    load_pair(shared, given, work, 0, VALUE=False)
    for step in gl.static_range(1, SLOTS):
        load_next(step, work, given, shared)


@gluon.jit
def finish(step, work, given, shared, SPECIALIZED: gl.constexpr):
    """Be done with a step's K and V. If there is no producer, load into their slot what comes next."""
    release(shared.pairs, work.use + step)
    if not SPECIALIZED:
        SLOTS: gl.constexpr = shared.pairs.full.shape[0]
        load_next(step + SLOTS, work, given, shared)


@gluon.jit
def raise_maximum(scores, running_max, scale_log2):
    """Maxima of rows, [ROWS], with a tile of scores, [ROWS, BLOCK_N]: as they are, and to subtract.

    As in :func:`kernels.online_softmax.online_softmax_update`, but the maximum is kept scaled, so that an
    exponent is one fused multiply-add. Rounding moves the scaled maximum a little, by the same in the
    weights, in their sum and in what was accumulated, and so cancels when the output is divided; but the
    weights are rounded to 16 bits first. With scores far beyond 10 000, where one key has all the weight,
    that weight is then not exactly 1, and the output is off by one rounding more.
    """
    running_max = gl.maximum(running_max, gl.max(scores, axis=1) * scale_log2)
    # While a row has seen nothing its maximum is -inf, and -inf - -inf is NaN: subtract 0 there.
    return running_max, gl.where(running_max == float("-inf"), 0.0, running_max)


@gluon.jit
def exponentiate(scores, shift, running_sum, rescale, scale_log2):
    """Exponentials of a tile of scores, [ROWS, BLOCK_N], and sums of rows with them taken in, [ROWS]."""
    exponentials = gl.exp2(gl.fma(scores, scale_log2, -shift[:, None]))
    return exponentials, running_sum * rescale + gl.sum(exponentials, axis=1)


@gluon.jit
def hide(scores, tile, last_seen):
    """A tile of scores, [ROWS, BLOCK_N], without those of keys after the last that a row sees, [ROWS]."""
    BLOCK_N: gl.constexpr = scores.shape[1]
    SCORES: gl.constexpr = product_layout(scores.shape[0], BLOCK_N)
    in_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SCORES))
    columns = tile * BLOCK_N + in_n  # [BLOCK_N]
    return gl.where(columns[None, :] <= last_seen[:, None], scores, float("-inf"))


@gluon.jit
def attend(
    INDEX: gl.constexpr,
    step,
    running,
    rows,
    work,
    given,
    shared,
    MASKED: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
):
    """One step of a consumer: the scores of a tile of keys, and the output of the tile before."""
    ROWS: gl.constexpr = shared.queries.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    BLOCK_D: gl.constexpr = shared.pairs.key.shape[4]
    SCORES: gl.constexpr = product_layout(ROWS, BLOCK_N)
    OUTPUT: gl.constexpr = product_layout(ROWS, BLOCK_D)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, k_width=2)
    running_max, running_sum, rescale, accumulator, weights = running
    use = work.use + step
    wait_full(shared.pairs, use)
    if PINGPONG:
        wait_turn(shared.turn, use, INDEX)
    key_tile = tile_of(shared.pairs.key, use)  # [BLOCK_N, BLOCK_D]
    value_tile = tile_of(shared.pairs.value, use)
    no_scores = gl.zeros([ROWS, BLOCK_N], gl.float32, layout=SCORES)
    scores = warpgroup_mma(  # [ROWS, BLOCK_N]
        rows.tile, key_tile.permute((1, 0)), no_scores, use_acc=False, is_async=True
    )
    # Of the step before; here the tensor cores have the scores to compute meanwhile.
    accumulator = accumulator * gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT))[:, None]
    accumulator = warpgroup_mma(weights, value_tile, accumulator, is_async=True)
    if PINGPONG:
        pass_turn(shared.turn, INDEX)
    # Products finish in order: one outstanding means that the scores are there.
    scores = warpgroup_mma_wait(0 if OVERLAP == "none" else 1, deps=[scores])
    if MASKED:
        scores = hide(scores, work.tiles - 1 - step, rows.last_seen)
    running_max_was = running_max
    running_max, shift = raise_maximum(scores, running_max, given.scale_log2)
    rescale = gl.exp2(running_max_was - shift)
    if OVERLAP == "softmax":
        exponentials, running_sum = exponentiate(
            scores, shift, running_sum, rescale, given.scale_log2
        )
        # Landed long ago; but a wait on a barrier ends a basic block, so the assembler cannot move the next
        # wait, for the product, up before the exponentials.
        wait_full(shared.pairs, use)
    accumulator, weights = warpgroup_mma_wait(0, deps=[accumulator, weights])
    finish(step, work, given, shared, shared.queries.tiles.shape[0] > 1)
    if OVERLAP != "softmax":
        exponentials, running_sum = exponentiate(
            scores, shift, running_sum, rescale, given.scale_log2
        )
    weights = gl.convert_layout(exponentials.to(given.query.dtype), WEIGHTS)
    return Running(running_max, running_sum, rescale, accumulator, weights)


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
    The keys are walked from the last tile to the first. So tiles that need a mask come first: the one where
    the keys end, and under a causal mask those that reach beyond what the first of the queries sees.
    """
    CONSUMERS: gl.constexpr = shared.queries.tiles.shape[0]
    SPECIALIZED: gl.constexpr = CONSUMERS > 1
    ROWS: gl.constexpr = shared.queries.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    BLOCK_D: gl.constexpr = shared.pairs.key.shape[4]
    SCORES: gl.constexpr = product_layout(ROWS, BLOCK_N)
    OUTPUT: gl.constexpr = product_layout(ROWS, BLOCK_D)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, k_width=2)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUTPUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)

    seq_query, seq_key = given.output.shape[1], given.key.shape[2]
    use = 0
    for round in range(rounds_of_work(given, shared)):
        work = work_tile(round, use, given, shared, CAUSAL)
        first_row = work.start_m + INDEX * ROWS
        in_query = first_row + gl.arange(0, ROWS, layout=SCORE_ROWS)  # [ROWS]
        last_seen = gl.full([ROWS], seq_key - 1, gl.int32, layout=SCORE_ROWS)
        masked_steps = 1
        if CAUSAL:
            last_seen = gl.minimum(in_query + (seq_key - seq_query), last_seen)
            seen_by_all = gl.maximum(first_row + 1 + seq_key - seq_query, 0)
            masked_steps = gl.maximum(work.tiles - seen_by_all // BLOCK_N, 1)

        if not SPECIALIZED:
            start_loads(round, work, given, shared)
        wait_full(shared.queries, round * CONSUMERS + INDEX)
        query_tile = tile_of(shared.queries.tiles, round * CONSUMERS + INDEX)
        wait_full(shared.pairs, use)
        if PINGPONG:
            wait_turn(shared.turn, use, INDEX)
        key_tile = tile_of(shared.pairs.key, use)  # [BLOCK_N, BLOCK_D]
        no_scores = gl.zeros([ROWS, BLOCK_N], gl.float32, layout=SCORES)
        scores = warpgroup_mma(  # [ROWS, BLOCK_N]
            query_tile, key_tile.permute((1, 0)), no_scores, use_acc=False, is_async=True
        )
        if PINGPONG:
            pass_turn(shared.turn, INDEX)
        scores = warpgroup_mma_wait(0, deps=[scores])
        finish(0, work, given, shared, SPECIALIZED)
        scores = hide(scores, work.tiles - 1, last_seen)
        unseen = gl.full([ROWS], float("-inf"), gl.float32, layout=SCORE_ROWS)
        nothing = gl.zeros([ROWS], gl.float32, layout=SCORE_ROWS)
        running_max, shift = raise_maximum(scores, unseen, given.scale_log2)
        exponentials, running_sum = exponentiate(scores, shift, nothing, nothing, given.scale_log2)
        weights = gl.convert_layout(exponentials.to(given.query.dtype), WEIGHTS)  # [ROWS, BLOCK_N]
        accumulator = gl.zeros([ROWS, BLOCK_D], gl.float32, layout=OUTPUT)
        running = Running(running_max, running_sum, nothing, accumulator, weights)

        rows = Rows(query_tile, last_seen)
        # fmt: off
        for step in range(1, masked_steps):
            running = attend(
                INDEX, step, running, rows, work, given, shared, True, OVERLAP, PINGPONG
            )
        for step in range(masked_steps, work.tiles):
            running = attend(
                INDEX, step, running, rows, work, given, shared, False, OVERLAP, PINGPONG
            )
        # fmt: on

        running_max, running_sum, rescale, accumulator, weights = running
        # A row that saw nothing has a sum of 0, and stays 0.
        divisor = gl.where(running_sum == 0.0, 1.0, running_sum)
        logsumexp = (running_max + gl.log2(divisor)) * LN_2
        logsumexp_ptrs = given.logsumexp_ptr + work.head.to(gl.int64) * seq_query + in_query
        gl.store(logsumexp_ptrs, logsumexp, mask=in_query < seq_query)
        use += work.tiles + 1
        if APART:
            release(shared.queries, round * CONSUMERS + INDEX)
        wait_full(shared.pairs, use - 1)
        if PINGPONG:
            wait_turn(shared.turn, use - 1, INDEX)
        accumulator = accumulator * gl.convert_layout(rescale, OUTPUT_ROWS)[:, None]
        value_tile = tile_of(shared.pairs.value, use - 1)  # [BLOCK_N, BLOCK_D]
        accumulator = warpgroup_mma(weights, value_tile, accumulator, is_async=True)
        if PINGPONG:
            pass_turn(shared.turn, INDEX)
        accumulator = warpgroup_mma_wait(0, deps=[accumulator])
        finish(work.tiles, work, given, shared, SPECIALIZED)
        output = accumulator * gl.convert_layout(1.0 / divisor, OUTPUT_ROWS)[:, None]
        tma.store_wait(0)  # until the output of the round before has left its place
        output_tile = shared.output.index(INDEX).reshape([1, ROWS, BLOCK_D])
        output_tile.reshape([ROWS, BLOCK_D]).store(output.to(given.query.dtype))
        fence_async_shared()
        place = [work.head, first_row, 0]  # rows past the last are clipped
        tma.async_copy_shared_to_global(given.output, place, output_tile)
        if not APART:
            tma.store_wait(0)
            release(shared.queries, round * CONSUMERS + INDEX)
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
    query_tiles = make_tiles(query, CONSUMERS)
    output_tiles = query_tiles
    if APART:
        shape: gl.constexpr = [CONSUMERS] + output.block_type.shape
        output_tiles = gl.allocate_shared_memory(output.dtype, shape, output.layout)
    shared = Shared(
        Ring(query_tiles, make_barriers(CONSUMERS, 1), make_barriers(CONSUMERS, 1)),
        PairRing(
            make_tiles(key, STAGES),
            make_tiles(value, STAGES),
            make_barriers(STAGES, 1),
            make_barriers(STAGES, CONSUMERS),
        ),
        output_tiles,
        make_barriers(CONSUMERS, 1),
    )
    if CONSUMERS > 1:
        # The producer is the first partition, whose registers are what the others leave. The arguments are
        # written out, because in a variable the constants among them would become run-time values.
        # fmt: off
        gl.warp_specialize([
            (producer, (given, shared, CAUSAL)),
            (consumer, (gl.constexpr(0), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
            (consumer, (gl.constexpr(1), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
            (consumer, (gl.constexpr(2), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)),
        ][: 1 + CONSUMERS], [4] * CONSUMERS, [REGISTERS] * CONSUMERS)
        # fmt: on
    else:
        consumer(gl.constexpr(0), given, shared, CAUSAL, OVERLAP, PINGPONG, APART)
