"""FP8 attention for Hopper: FlashAttention-3's kernel with 8-bit tiles.

The program is that of :mod:`kernels.flash3_kernel`: a producer that keeps rings of tiles full, and
consumers of 64 queries each, with the same barriers and the same order of work. What 8 bits change:

* Tiles are half as large, and the tensor cores take twice as many products a second. The exponentials stay
  as they are, so they are now the larger part.
* Scores are multiplied with the scales of their blocks of Q and K. That costs nothing: an exponent is one
  fused multiply-add with a scale anyway.
* Weights are rounded to e4m3, whose numbers from 0 to 1 are few. As exponentials they can be made larger
  for nothing, by adding to the exponent: the largest of a row becomes 2⁸. V's scale goes the same way, see
  :func:`exponentiate`.
* Hopper adds FP8 products in an accumulator of some 14 bits. ``two_level``: each tile's product with V is
  computed by itself, and added to the output in float32.
* V comes transposed, and its keys in the order in which the threads hold the weights
  (:mod:`kernels.fp8_preparation`).

Source: Shah et al., *FlashAttention-3* (2024), section 3.3.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import flash3
from kernels.configurations import Configuration
from kernels.flash1 import LN_2
from kernels.flash3_pipeline import (
    PairRing,
    Ring,
    Shared,
    copy_tile,
    load_queries,
    make_barriers,
    make_tiles,
    pass_turn,
    release,
    rounds_of_work,
    tile_of,
    wait_empty,
    wait_full,
    wait_turn,
    work_tile,
)
from kernels.fp8_preparation import Prepared
from kernels.online_softmax import LOG2_E

WEIGHT_BITS = gl.constexpr(8.0)
LEAST_SCALE = gl.constexpr(2.0**-126)


class Given(NamedTuple):
    """As :class:`kernels.flash3_pipeline.Given`, and the scales.

    ``value`` is (batch, heads, head_dim, seq).
    """

    query: tma.tensor_descriptor
    key: tma.tensor_descriptor
    value: tma.tensor_descriptor
    output: tma.tensor_descriptor
    logsumexp_ptr: gl.tensor
    query_scale_ptr: gl.tensor
    key_scale_ptr: gl.tensor
    value_scale_ptr: gl.tensor
    scale_log2: gl.tensor
    heads_together: gl.tensor


class Rows(NamedTuple):
    """A consumer's queries: where they lie, the last key that each sees, [ROWS], and their scale.

    ``scale_log2`` has the scale of attention in it, and log2(e).
    """

    tile: gl.shared_memory_descriptor
    last_seen: gl.tensor
    scale_log2: gl.tensor


class Running(NamedTuple):
    """As :class:`kernels.flash3_kernel.Running`, weights :func:`packed`; and the scales of the next tile.

    They are loaded a step ahead.
    """

    running_max: gl.tensor
    running_sum: gl.tensor
    rescale: gl.tensor
    accumulator: gl.tensor
    weights: gl.tensor
    key_scale: gl.tensor
    value_scale: gl.tensor


@gluon.constexpr_function
def product_layout(ROWS, COLUMNS):
    """How a product of 8-bit tiles lies in the registers of a consumer. Each warp holds 16 rows."""
    return gl.NVMMADistributedLayout([3, 0], [ROWS // 16, 1], instr_shape=[16, COLUMNS, 32])


@gluon.jit
def load_pair(shared, given, work, step, KEY: gl.constexpr = True, VALUE: gl.constexpr = True):
    """As :func:`kernels.flash3_pipeline.load_pair`, with V's tile a run of columns."""
    use = work.use + step
    wait_empty(shared.pairs, use)
    slot = use % shared.pairs.full.shape[0]
    full = shared.pairs.full.index(slot)
    mbarrier.expect(full, given.key.block_type.nbytes * (KEY + VALUE))
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    start_n = (work.tiles - 1 - step) * BLOCK_N
    if KEY:
        copy_tile(given.key, work.kv_head, start_n, full, shared.pairs.key.index(slot))
    if VALUE:
        heads = given.value.shape[1]
        place = [work.kv_head // heads, work.kv_head % heads, 0, start_n + BLOCK_N]
        tma.async_copy_global_to_shared(given.value, place, full, shared.pairs.value.index(slot))


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
def tile_scales(tile, work, given, shared):
    """The scales of a tile of K, and of V; those of tile 0 for the tile before it, which is never used."""
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    block = work.kv_head * gl.cdiv(given.key.shape[2], BLOCK_N) + gl.maximum(tile, 0)
    return gl.load(given.key_scale_ptr + block), gl.load(given.value_scale_ptr + block)


@gluon.jit
def query_scale(work, given, shared, INDEX: gl.constexpr):
    """The scale of a consumer's queries. Past the last block, where rows are zero, the last one's."""
    ROWS: gl.constexpr = shared.queries.tiles.shape[3]
    blocks = gl.cdiv(given.output.shape[1], ROWS)
    block = gl.minimum(work.start_m // ROWS + INDEX, blocks - 1)
    return gl.load(given.query_scale_ptr + work.head * blocks + block)


@gluon.jit
def raise_maximum(scores, running_max, scale_log2, value_exponent):
    """Maxima of rows, [ROWS], with a tile of scores, [ROWS, BLOCK_N]: as they are, and to subtract.

    The maximum is kept scaled, and is that of a weight times V's scale, which is what will be rounded.
    """
    tile_max = gl.fma(gl.max(scores, axis=1), scale_log2, value_exponent)
    running_max = gl.maximum(running_max, tile_max)
    # While a row has seen nothing its maximum is -inf, and -inf - -inf is NaN: subtract 0 there.
    return running_max, gl.where(running_max == float("-inf"), 0.0, running_max)


@gluon.jit
def exponentiate(scores, shift, scale_log2, value_exponent):
    """Weights of a tile, [ROWS, BLOCK_N], times V's scale, and raised so that the largest is 2**8.

    V's 8-bit values are multiplied with what carries their scale already, so products of all blocks can
    be added up. For the sum of the weights alone it has to be divided out again, once a row.
    """
    raised = (WEIGHT_BITS + value_exponent) - shift
    return gl.exp2(gl.fma(scores, scale_log2, raised[:, None]))


ROUND_FOUR = gl.constexpr(
    "{ .reg .b16 low, high;"
    " cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;"
    " cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;"
    " mov.b32 $0, {low, high}; }"
)


@gluon.jit
def packed(exponentials):
    """Weights rounded to e4m3, four in a number: [ROWS, BLOCK_N] becomes [ROWS, BLOCK_N // 16, 4].

    The four that a thread has of 16 columns, in the order of V's keys. As 8-bit numbers they would cost a
    register for every one or two from a step to the next, and an instruction each to take them apart.
    """
    ROWS: gl.constexpr = exponentials.shape[0]
    BLOCK_N: gl.constexpr = exponentials.shape[1]
    # Column 8 half + 2 thread + which of 16; gl.split works on the last dimension.
    left, right = gl.split(exponentials.reshape([ROWS, BLOCK_N // 16, 2, 4, 2]))
    first_left, second_left = gl.split(left.permute((0, 1, 3, 2)))
    first_right, second_right = gl.split(right.permute((0, 1, 3, 2)))
    four = [first_left, first_right, second_left, second_right]
    return gl.inline_asm_elementwise(
        ROUND_FOUR, "=r,r,r,r,r", four, dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def unpacked(four, DTYPE: gl.constexpr, OUTPUT: gl.constexpr):
    """What :func:`packed` packed, as a factor of a product: [ROWS, BLOCK_N]. It compiles to nothing."""
    ROWS: gl.constexpr = four.shape[0]
    BLOCK_N: gl.constexpr = 16 * four.shape[1]
    first = gl.join(four.to(gl.int8), (four >> 8).to(gl.int8))
    second = gl.join((four >> 16).to(gl.int8), (four >> 24).to(gl.int8))
    bytes_ = gl.join(first, second).permute((0, 1, 2, 4, 3)).reshape([ROWS, BLOCK_N])
    weights = bytes_.to(DTYPE, bitcast=True)
    return gl.convert_layout(weights, gl.DotOperandLayout(0, OUTPUT, k_width=4))


@gluon.jit
def hide(scores, tile, last_seen):
    """A tile of scores, [ROWS, BLOCK_N], without those of keys after the last that a row sees, [ROWS]."""
    BLOCK_N: gl.constexpr = scores.shape[1]
    SCORES: gl.constexpr = product_layout(scores.shape[0], BLOCK_N)
    in_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SCORES))
    last_in_tile = last_seen - tile * BLOCK_N  # [ROWS]
    # Of a thread's columns only these bits are its own, the others the compiler knows. So it compares two
    # numbers, one a row, with constants, and keeps no columns in registers.
    own = in_n & 6
    visible = (in_n - own)[None, :] <= last_in_tile[:, None] - own[None, :]
    return gl.where(visible, scores, float("-inf"))


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
    TWO_LEVEL: gl.constexpr,
):
    """One step of a consumer: the scores of a tile of keys, and the output of the tile before."""
    ROWS: gl.constexpr = shared.queries.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    BLOCK_D: gl.constexpr = shared.pairs.key.shape[4]
    SCORES: gl.constexpr = product_layout(ROWS, BLOCK_N)
    OUTPUT: gl.constexpr = product_layout(ROWS, BLOCK_D)
    running_max, running_sum, rescale, accumulator, weights, key_scale, value_scale = running
    tile = work.tiles - 1 - step
    next_key_scale, next_value_scale = tile_scales(tile - 1, work, given, shared)
    scale_log2 = gl.maximum(rows.scale_log2 * key_scale, LEAST_SCALE)
    value_exponent = gl.log2(value_scale)

    weights = unpacked(weights, given.query.dtype, OUTPUT)
    use = work.use + step
    wait_full(shared.pairs, use)
    if PINGPONG:
        wait_turn(shared.turn, use, INDEX)
    key_tile = tile_of(shared.pairs.key, use)  # [BLOCK_N, BLOCK_D]
    value_tile = tile_of(shared.pairs.value, use).permute((1, 0))  # [BLOCK_N, BLOCK_D]
    no_scores = gl.zeros([ROWS, BLOCK_N], gl.float32, layout=SCORES)
    scores = warpgroup_mma(  # [ROWS, BLOCK_N]
        rows.tile, key_tile.permute((1, 0)), no_scores, use_acc=False, is_async=True
    )
    # Of the step before; here the tensor cores have the scores to compute meanwhile.
    before = gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT))
    if TWO_LEVEL:
        no_output = gl.zeros([ROWS, BLOCK_D], gl.float32, layout=OUTPUT)
        product = warpgroup_mma(weights, value_tile, no_output, use_acc=False, is_async=True)
    else:
        accumulator = accumulator * before[:, None]
        product = warpgroup_mma(weights, value_tile, accumulator, is_async=True)
    if PINGPONG:
        pass_turn(shared.turn, INDEX)
    # Products finish in order: one outstanding means that the scores are there.
    scores = warpgroup_mma_wait(0 if OVERLAP == "none" else 1, deps=[scores])
    if MASKED:
        scores = hide(scores, tile, rows.last_seen)
    running_max_was = running_max
    running_max, shift = raise_maximum(scores, running_max, scale_log2, value_exponent)
    rescale = gl.exp2(running_max_was - shift)
    if OVERLAP == "softmax":
        exponentials = exponentiate(scores, shift, scale_log2, value_exponent)
        # Landed long ago; but a wait on a barrier ends a basic block, so the assembler cannot move the next
        # wait, for the product, up before the exponentials.
        wait_full(shared.pairs, use)
    product = warpgroup_mma_wait(0, deps=[product])
    release(shared.pairs, use)
    accumulator = gl.fma(accumulator, before[:, None], product) if TWO_LEVEL else product
    if OVERLAP != "softmax":
        exponentials = exponentiate(scores, shift, scale_log2, value_exponent)
    running_sum = running_sum * rescale + gl.sum(exponentials, axis=1) * gl.exp2(-value_exponent)
    return Running(
        running_max,
        running_sum,
        rescale,
        accumulator,
        packed(exponentials),
        next_key_scale,
        next_value_scale,
    )


@gluon.jit
def consumer(
    INDEX: gl.constexpr,
    given,
    shared,
    CAUSAL: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    TWO_LEVEL: gl.constexpr,
):
    """Attention of ROWS queries: consumer INDEX's share of each of the program's tiles.

    The keys are walked from the last tile to the first, as in :func:`kernels.flash3_kernel.consumer`.
    """
    CONSUMERS: gl.constexpr = shared.queries.tiles.shape[0]
    ROWS: gl.constexpr = shared.queries.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
    BLOCK_D: gl.constexpr = shared.pairs.key.shape[4]
    SCORES: gl.constexpr = product_layout(ROWS, BLOCK_N)
    OUTPUT: gl.constexpr = product_layout(ROWS, BLOCK_D)
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
        rows_scale_log2 = given.scale_log2 * query_scale(work, given, shared, INDEX)
        key_scale, value_scale = tile_scales(work.tiles - 1, work, given, shared)
        next_key_scale, next_value_scale = tile_scales(work.tiles - 2, work, given, shared)
        scale_log2 = gl.maximum(rows_scale_log2 * key_scale, LEAST_SCALE)
        value_exponent = gl.log2(value_scale)

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
        release(shared.pairs, use)
        scores = hide(scores, work.tiles - 1, last_seen)
        unseen = gl.full([ROWS], float("-inf"), gl.float32, layout=SCORE_ROWS)
        nothing = gl.zeros([ROWS], gl.float32, layout=SCORE_ROWS)
        running_max, shift = raise_maximum(scores, unseen, scale_log2, value_exponent)
        exponentials = exponentiate(scores, shift, scale_log2, value_exponent)
        running_sum = gl.sum(exponentials, axis=1) * gl.exp2(-value_exponent)
        accumulator = gl.zeros([ROWS, BLOCK_D], gl.float32, layout=OUTPUT)
        running = Running(
            running_max,
            running_sum,
            nothing,
            accumulator,
            packed(exponentials),
            next_key_scale,
            next_value_scale,
        )

        rows = Rows(query_tile, last_seen, rows_scale_log2)
        # fmt: off
        for step in range(1, masked_steps):
            running = attend(
                INDEX, step, running, rows, work, given, shared, True, OVERLAP, PINGPONG, TWO_LEVEL
            )
        for step in range(masked_steps, work.tiles):
            running = attend(
                INDEX, step, running, rows, work, given, shared, False, OVERLAP, PINGPONG, TWO_LEVEL
            )
        # fmt: on

        running_max, running_sum, rescale, accumulator, weights, key_scale, value_scale = running
        # A row that saw nothing has a sum of 0, and stays 0.
        divisor = gl.where(running_sum == 0.0, 1.0, running_sum)
        logsumexp = (running_max + (gl.log2(divisor) - WEIGHT_BITS)) * LN_2
        logsumexp_ptrs = given.logsumexp_ptr + work.head.to(gl.int64) * seq_query + in_query
        gl.store(logsumexp_ptrs, logsumexp, mask=in_query < seq_query)
        use += work.tiles + 1
        release(shared.queries, round * CONSUMERS + INDEX)
        weights = unpacked(weights, given.query.dtype, OUTPUT)
        wait_full(shared.pairs, use - 1)
        if PINGPONG:
            wait_turn(shared.turn, use - 1, INDEX)
        before = gl.convert_layout(rescale, OUTPUT_ROWS)
        value_tile = tile_of(shared.pairs.value, use - 1).permute((1, 0))  # [BLOCK_N, BLOCK_D]
        if TWO_LEVEL:
            no_output = gl.zeros([ROWS, BLOCK_D], gl.float32, layout=OUTPUT)
            product = warpgroup_mma(weights, value_tile, no_output, use_acc=False, is_async=True)
        else:
            accumulator = accumulator * before[:, None]
            product = warpgroup_mma(weights, value_tile, accumulator, is_async=True)
        if PINGPONG:
            pass_turn(shared.turn, INDEX)
        product = warpgroup_mma_wait(0, deps=[product])
        release(shared.pairs, use - 1)
        accumulator = gl.fma(accumulator, before[:, None], product) if TWO_LEVEL else product
        output = accumulator * gl.convert_layout(1.0 / divisor, OUTPUT_ROWS)[:, None]
        tma.store_wait(0)  # until the output of the round before has left its place
        output_tile = shared.output.index(INDEX).reshape([1, ROWS, BLOCK_D])
        output_tile.reshape([ROWS, BLOCK_D]).store(output.to(given.output.dtype))
        fence_async_shared()
        place = [work.head, first_row, 0]  # rows past the last are clipped
        tma.async_copy_shared_to_global(given.output, place, output_tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=("heads_together",))
def fp8_kernel(
    query,
    key,
    value,
    output,
    logsumexp_ptr,
    query_scale_ptr,
    key_scale_ptr,
    value_scale_ptr,
    scale_log2,
    heads_together,
    CAUSAL: gl.constexpr,
    CONSUMERS: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    TWO_LEVEL: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """A program: its shared memory, and its partitions side by side."""
    given = Given(
        query,
        key,
        value,
        output,
        logsumexp_ptr,
        query_scale_ptr,
        key_scale_ptr,
        value_scale_ptr,
        scale_log2,
        heads_together,
    )
    shape: gl.constexpr = [CONSUMERS] + output.block_type.shape
    shared = Shared(
        Ring(
            make_tiles(query, CONSUMERS), make_barriers(CONSUMERS, 1), make_barriers(CONSUMERS, 1)
        ),
        PairRing(
            make_tiles(key, STAGES),
            make_tiles(value, STAGES),
            make_barriers(STAGES, 1),
            make_barriers(STAGES, CONSUMERS),
        ),
        gl.allocate_shared_memory(output.dtype, shape, output.layout),
        make_barriers(CONSUMERS, 1),
    )
    # Written out, as in kernels.flash3_kernel.
    # fmt: off
    gl.warp_specialize([
        (producer, (given, shared, CAUSAL)),
        (consumer, (gl.constexpr(0), given, shared, CAUSAL, OVERLAP, PINGPONG, TWO_LEVEL)),
        (consumer, (gl.constexpr(1), given, shared, CAUSAL, OVERLAP, PINGPONG, TWO_LEVEL)),
        (consumer, (gl.constexpr(2), given, shared, CAUSAL, OVERLAP, PINGPONG, TWO_LEVEL)),
    ][: 1 + CONSUMERS], [4] * CONSUMERS, [REGISTERS] * CONSUMERS)
    # fmt: on


@dataclass(frozen=True)
class Design:
    """One way to run the kernel: see :class:`kernels.flash3.Design`.

    Attributes:
        two_level: compute each tile's product with V by itself, and add it to the output in float32.
    """

    block_n: int = 128
    warpgroups: int = 2
    stages: int = 2
    overlap: str = "maximum"
    pingpong: bool = False
    two_level: bool = True

    @property
    def registers(self) -> int:
        """Registers that a thread of a consumer gets beside a producer."""
        return {2: 240, 3: 160}[self.warpgroups]


ROWS = 64  # queries of a consumer


@functools.cache
def shipped_design(head_dim: int) -> Design:
    """The design that :func:`kernels.fp8.attention` uses for a head dimension: the fastest on an H200.

    ``benchmarks/fp8.md`` has the log.
    """
    block_d = flash3.padded_head_dim(head_dim)
    if block_d == 64:
        return Design(warpgroups=3, stages=4, overlap="none", pingpong=True)
    if block_d == 128:
        return Design(stages=3, overlap="softmax")
    # An output and a product beside one another would be all 256 registers that a thread can have.
    return Design(two_level=False)


def forward(
    prepared: Prepared,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    causal: bool,
    scale: float,
    design: Design,
) -> None:
    """Launch the kernel on a Hopper GPU, for tensors that are not empty; arguments as of :func:`launch`."""
    programs = torch.cuda.get_device_properties(output.device).multi_processor_count
    grid, arguments, constants = launch(
        prepared, output, logsumexp, causal, scale, design, programs
    )
    with torch.cuda.device(output.device):
        fp8_kernel[grid](*arguments, **constants, num_warps=4)


def launch(
    prepared: Prepared,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    causal: bool,
    scale: float,
    design: Design,
    programs: int,
) -> tuple[tuple[int], tuple, dict]:
    """Grid, arguments and constants of :func:`fp8_kernel` for tensors that are not empty.

    Args:
        prepared: with scales for blocks of :data:`ROWS` queries and ``design.block_n`` keys; V interleaved.
        output, logsumexp: contiguous; the kernel writes every element.
        programs: how many run at once; one an SM.
    """
    batch, heads, seq_query, head_dim = output.shape
    query, key, value = (quantized.values for quantized in prepared)
    blocks = triton.cdiv(seq_query, design.warpgroups * ROWS)
    block_d = flash3.padded_head_dim(head_dim)
    arguments = (
        _descriptor(query, [1, 1, ROWS, block_d]),
        _descriptor(key, [1, 1, design.block_n, block_d]),
        _descriptor(value, [1, 1, block_d, design.block_n]),
        _descriptor(output.view(batch * heads, seq_query, head_dim), [1, ROWS, block_d]),
        logsumexp,
        *(quantized.scale for quantized in prepared),
        scale * LOG2_E,
        flash3._heads_together(query, key, blocks, programs) if causal else 1,
    )
    constants = {
        "CAUSAL": causal,
        "CONSUMERS": design.warpgroups,
        "STAGES": design.stages,
        "OVERLAP": design.overlap,
        "PINGPONG": design.pingpong,
        "TWO_LEVEL": design.two_level,
        "REGISTERS": design.registers,
    }
    return (min(batch * heads * blocks, programs),), arguments, constants


def _descriptor(tensor: torch.Tensor, tile: list[int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, tile, _layout(tuple(tile), tensor.dtype))


@functools.cache  # it takes the host longer than the rest of a descriptor
def _layout(tile: tuple[int, ...], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(list(tile), _GLUON_DTYPES[dtype])


_GLUON_DTYPES = {
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.float16: gl.float16,
    torch.bfloat16: gl.bfloat16,
}


def configurations() -> Iterator[Configuration]:
    """Every form that is launched at head dimensions 64, 128 and 256."""
    for head_dim in (64, 128, 256):
        for causal in (False, True):
            label = f"head_dim {head_dim}" + (", causal" if causal else "")
            yield configuration(label, head_dim, causal, shipped_design(head_dim))


def configuration(label: str, head_dim: int, causal: bool, design: Design) -> Configuration:
    """The compiled form that a design gives."""
    block_d = flash3.padded_head_dim(head_dim)
    tiles = {
        "query": ("fp8e4nv", torch.float8_e4m3fn, [1, 1, ROWS, block_d]),
        "key": ("fp8e4nv", torch.float8_e4m3fn, [1, 1, design.block_n, block_d]),
        "value": ("fp8e4nv", torch.float8_e4m3fn, [1, 1, block_d, design.block_n]),
        "output": ("fp16", torch.float16, [1, ROWS, block_d]),
    }
    types = {
        name: f"tensordesc<{kind}{tile},{_layout(tuple(tile), dtype)!r}>"
        for name, (kind, dtype, tile) in tiles.items()
    }
    types |= {name: "*fp32" for name in fp8_kernel.arg_names if name.endswith("_ptr")}
    constants = {
        "CAUSAL": causal,
        "CONSUMERS": design.warpgroups,
        "STAGES": design.stages,
        "OVERLAP": design.overlap,
        "PINGPONG": design.pingpong,
        "TWO_LEVEL": design.two_level,
        "REGISTERS": design.registers,
    }
    types |= {"scale_log2": "fp32", "heads_together": "i32"}
    return Configuration(label, fp8_kernel, types, constants, {"num_warps": 4}, (90,))
