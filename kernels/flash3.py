"""FlashAttention-3, forward, for Hopper: one warp moves tiles, the others multiply and exponentiate.

The arithmetic is FlashAttention-2's. What changes is who does it, and when. Hopper's units work without
being waited for: the tensor memory accelerator (TMA) copies whole tiles between HBM and shared memory, and
a warpgroup (four warps) starts a matrix product and goes on. So the kernel is written as programs that run
side by side on one SM and talk through barriers in shared memory:

* :func:`producer`, in a few registers, keeps rings of K and V tiles full;
* each :func:`consumer`, a warpgroup with the registers the producer gave up, owns 64 queries.

Five ideas, each of them a switch or a number of the launch, so that each can be measured alone:

========== ===========================================================================================
SPECIALIZED a producer of its own; without, the warps that compute also start the loads
STAGES      slots of each ring: how far loads run ahead
OVERLAP     the softmax of a tile runs under the product of the weights before it with their V
PINGPONG    consumers take turns at the tensor cores, so that one's softmax runs under another's products
persistent  (a grid of one program an SM) the next tile's loads run under the end of this one's
========== ===========================================================================================

Written in Gluon, Triton's language for those who place the data themselves. It needs compute capability
9.0; on other GPUs :mod:`kernels.flash2` runs.

Source: Shah et al., *FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision*
(2024).
"""

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

from kernels.checks import check_attention_inputs, launch_device
from kernels.configurations import POINTER_TYPES, Configuration
from kernels.flash1 import LN_2
from kernels.online_softmax import LOG2_E

DTYPES = (torch.float16, torch.bfloat16)

# Of a product's rows each warp holds 16; a warpgroup, four warps, 64.
ROWS_A_WARP = gl.constexpr(16)


class Ring(NamedTuple):
    """Slots in shared memory that tiles pass through, [SLOTS, 1, 1, ROWS, BLOCK_D], with two barriers each.

    ``full`` completes a phase when a tile has landed, ``empty`` when all readers are done with it. The uses
    of a ring are numbered on and on: use ``n`` is of slot ``n % SLOTS``, in phase ``n // SLOTS`` of its
    barriers. A wait names the phase it waits for by its parity, as no other can be pending.
    """

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


class Shared(NamedTuple):
    """The shared memory of a program. Consumer i owns slot i of ``query``, ``output`` and ``turn``."""

    query: Ring
    key: Ring
    value: Ring
    output: gl.shared_memory_descriptor
    turn: gl.shared_memory_descriptor


class Given(NamedTuple):
    """The arguments of a launch. A descriptor tells the TMA shape, strides and tile of a tensor.

    ``query``, ``key`` and ``value`` have four dimensions, (batch, heads, seq, head_dim). ``output`` has
    three, with the heads counted over the whole batch, as everything here counts them.
    """

    query: tma.tensor_descriptor
    key: tma.tensor_descriptor
    value: tma.tensor_descriptor
    output: tma.tensor_descriptor
    logsumexp_ptr: gl.tensor
    scale_log2: gl.tensor
    heads_together: gl.tensor


class Work(NamedTuple):
    """The queries from ``start_m`` on of one head, which see the first ``tiles`` tiles of its keys.

    They are loaded from the last to the first (see :func:`consumer`), in the uses of the rings of K and V
    from ``use`` on.
    """

    head: gl.tensor
    kv_head: gl.tensor
    start_m: gl.tensor
    tiles: gl.tensor
    use: gl.tensor


@gluon.jit
def make_barriers(SLOTS: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers that complete a phase at so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(barriers.index(slot), count=ARRIVALS)
    return barriers


@gluon.jit
def make_ring(descriptor, SLOTS: gl.constexpr, READERS: gl.constexpr):
    """An empty ring for a descriptor's tiles."""
    shape: gl.constexpr = [SLOTS] + descriptor.block_type.shape
    tiles = gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)
    return Ring(tiles, make_barriers(SLOTS, 1), make_barriers(SLOTS, READERS))


@gluon.jit
def tile_of(ring, use):
    """The tile in the slot of a use, as a matrix [ROWS, BLOCK_D]."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    return ring.tiles.index(use % SLOTS).reshape([ring.tiles.shape[3], ring.tiles.shape[4]])


@gluon.jit
def wait_full(ring, use, pred=True):
    """Wait until the tile of a use has landed."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    mbarrier.wait(ring.full.index(use % SLOTS), (use // SLOTS) & 1, pred=pred)


@gluon.jit
def release(ring, use):
    """One reader is done with the tile of a use."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    mbarrier.arrive(ring.empty.index(use % SLOTS), count=1)


@gluon.jit
def load(ring, use, descriptor, head, row):
    """Once the slot is empty, start copying the tile of a use into it. ``full`` completes as it lands."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    slot = use % SLOTS
    # The phase before this use's. Before the very first a barrier counts as completed.
    mbarrier.wait(ring.empty.index(slot), (use // SLOTS + 1) & 1)
    full = ring.full.index(slot)
    mbarrier.expect(full, descriptor.block_type.nbytes)
    heads = descriptor.shape[1]
    place = [head // heads, head % heads, row, 0]
    tma.async_copy_global_to_shared(descriptor, place, full, ring.tiles.index(slot))


@gluon.jit
def load_queries(shared, given, work, use, INDEX: gl.constexpr):
    """:func:`load` the queries of consumer INDEX."""
    ROWS: gl.constexpr = shared.query.tiles.shape[3]
    load(shared.query, use, given.query, work.head, work.start_m + INDEX * ROWS)


@gluon.jit
def load_keys(ring, descriptor, work, step):
    """:func:`load` tile number ``step`` of K or V, counted back from the last that the queries see."""
    BLOCK_N: gl.constexpr = ring.tiles.shape[3]
    start_n = (work.tiles - 1 - step) * BLOCK_N
    load(ring, work.use + step, descriptor, work.kv_head, start_n)


@gluon.jit
def rounds_of_work(given, shared):
    """How many tiles of queries this program takes, one after the other."""
    BLOCK_M: gl.constexpr = shared.query.tiles.shape[0] * shared.query.tiles.shape[3]
    batch_heads, seq_query = given.output.shape[0], given.output.shape[1]
    in_all = batch_heads * gl.cdiv(seq_query, BLOCK_M)
    whole_rounds = in_all // gl.num_programs(0)
    return whole_rounds + gl.where(tile_number(whole_rounds) < in_all, 1, 0)


@gluon.jit
def tile_number(round):
    """Which tile this program takes in a round: back and forth, so that none gets the longest each time."""
    programs, place = gl.num_programs(0), gl.program_id(0)
    return round * programs + gl.where(round % 2 == 0, place, programs - 1 - place)


@gluon.jit
def work_tile(round, use, given, shared, CAUSAL: gl.constexpr):
    """The :class:`Work` of a round: some heads together, of all of them the same rows, the last rows first.

    Under a causal mask the last rows see the most keys. So long tiles start first, and short ones fill the
    end. Only some heads at a time, so that their K and V stay in the L2 cache.
    """
    BLOCK_M: gl.constexpr = shared.query.tiles.shape[0] * shared.query.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.key.tiles.shape[3]
    batch_heads, seq_query = given.output.shape[0], given.output.shape[1]
    seq_key = given.key.shape[2]
    blocks = gl.cdiv(seq_query, BLOCK_M)
    number = tile_number(round)
    first_head = number // (given.heads_together * blocks) * given.heads_together
    number -= first_head * blocks
    together = gl.minimum(given.heads_together, batch_heads - first_head)
    start_m = (blocks - 1 - number // together) * BLOCK_M
    seen = seq_key
    if CAUSAL:
        seen = gl.minimum(seq_key, start_m + BLOCK_M + seq_key - seq_query)
    # Queries that see nothing visit one tile as well, all hidden: no case of their own.
    tiles = gl.maximum(gl.cdiv(seen, BLOCK_N), 1)
    head = first_head + number % together
    kv_head = head // (given.query.shape[1] // given.key.shape[1])
    return Work(head, kv_head, start_m, tiles, use)


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
def wait_turn(turn, use, INDEX: gl.constexpr):
    """Wait until the consumer before has issued its products of this step; the first one goes ahead."""
    mbarrier.wait(turn.index(INDEX), (use + (1 if INDEX == 0 else 0)) & 1)


@gluon.jit
def pass_turn(turn, INDEX: gl.constexpr):
    """The next consumer's products may follow."""
    mbarrier.arrive(turn.index((INDEX + 1) % turn.shape[0]), count=1)


@gluon.jit
def softmax_step(scores, running_max, running_sum, scale_log2):
    """Take a tile of scores, [ROWS, BLOCK_N], into the statistics of its rows, [ROWS].

    As :func:`kernels.online_softmax.online_softmax_update`, but the maximum is kept scaled, so that an
    exponent is one fused multiply-add. Rounding moves the scaled maximum a little, by the same in the
    weights, in their sum and in what was accumulated: it cancels when the output is divided.
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
    SPECIALIZED: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    OUTPUT_APART: gl.constexpr,
):
    """Attention of ROWS queries: consumer INDEX's share of each of the program's tiles.

    The keys are walked from the last tile to the first. So the one tile that always needs a mask, where
    the keys end, is dealt with before the loop.
    """
    CONSUMERS: gl.constexpr = shared.query.tiles.shape[0]
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
        if OUTPUT_APART:
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
        if not OUTPUT_APART:
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
    SPECIALIZED: gl.constexpr,
    OVERLAP: gl.constexpr,
    PINGPONG: gl.constexpr,
    OUTPUT_APART: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """A program: its shared memory, and its partitions side by side."""
    given = Given(query, key, value, output, logsumexp_ptr, scale_log2, heads_together)
    query_ring = make_ring(query, CONSUMERS, 1)
    output_tiles = query_ring.tiles
    if OUTPUT_APART:
        shape: gl.constexpr = [CONSUMERS] + output.block_type.shape
        output_tiles = gl.allocate_shared_memory(output.dtype, shape, output.layout)
    shared = Shared(
        query_ring,
        make_ring(key, STAGES, CONSUMERS),
        make_ring(value, STAGES, CONSUMERS),
        output_tiles,
        make_barriers(CONSUMERS, 1),
    )
    if SPECIALIZED:
        # The arguments are written out because in a variable constants would become run-time values.
        # The first partition is the producer; it gets the registers that the others leave.
        gl.warp_specialize(
            [
                (producer, (given, shared, CAUSAL)),
                (
                    consumer,
                    (gl.constexpr(0), given, shared, CAUSAL, True, OVERLAP, PINGPONG, OUTPUT_APART),
                ),
                (
                    consumer,
                    (gl.constexpr(1), given, shared, CAUSAL, True, OVERLAP, PINGPONG, OUTPUT_APART),
                ),
                (
                    consumer,
                    (gl.constexpr(2), given, shared, CAUSAL, True, OVERLAP, PINGPONG, OUTPUT_APART),
                ),
            ][: 1 + CONSUMERS],
            [4] * CONSUMERS,
            [REGISTERS] * CONSUMERS,
        )
    else:
        consumer(gl.constexpr(0), given, shared, CAUSAL, False, OVERLAP, PINGPONG, OUTPUT_APART)


@dataclass(frozen=True)
class Design:
    """One way to run the kernel: the switches of this module's table, and the sizes of its tiles.

    Attributes:
        block_n: keys a tile.
        consumers: warpgroups that compute, 2 or 3, of 64 queries each. Without ``specialized`` a program
            is two warpgroups in step, on 128 queries, and this is 1.
        stages: slots for tiles of K, and as many for V.
        specialized, overlap, pingpong, persistent: see the module.
        output_apart: give the output a place of its own in shared memory. The queries of the next tile
            then load under the last products of this one; otherwise the output leaves through their slot.
    """

    block_n: int
    consumers: int = 2
    stages: int = 2
    specialized: bool = True
    overlap: bool = True
    pingpong: bool = True
    persistent: bool = True
    output_apart: bool = True

    def __post_init__(self):
        if self.consumers not in ((2, 3) if self.specialized else (1,)):
            raise ValueError(
                f"consumers must be 2 or 3, and 1 without specialized; got {self.consumers} "
                f"with specialized={self.specialized}"
            )
        if self.pingpong and not self.specialized:
            raise ValueError(
                "pingpong needs specialized: one consumer has nobody to take turns with"
            )

    @property
    def rows(self) -> int:
        """Queries of a consumer."""
        return 64 if self.specialized else 128

    @property
    def registers(self) -> int:
        """Registers a thread of a consumer may have.

        An SM has 512 for each of 128 threads. The producer keeps 32 (with two consumers, 24), and the
        hardware gives them out in steps of 8.
        """
        return {1: 255, 2: 240, 3: 160}[self.consumers]

    @property
    def warps(self) -> int:
        """Warps of the launch: the producer's, or all; Triton adds the consumers'."""
        return 4 if self.specialized else 8


def shipped_design(head_dim: int) -> Design:
    """The design that :func:`attention` uses for a head dimension."""
    block_d = padded_head_dim(head_dim)
    if block_d == 64:
        return Design(block_n=128, consumers=3)
    return Design(block_n=128) if block_d == 128 else Design(block_n=64, output_apart=False)


def padded_head_dim(head_dim: int) -> int:
    """Columns of a tile: a power of two, of at least the 128 bytes in which a tile is swizzled."""
    return max(64, triton.next_power_of_2(head_dim))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    design: Design | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention-3 forward, on a Hopper GPU.

    The TMA wants a contiguous last dimension, other strides of whole multiples of 16 bytes, and tensors
    that start at one; an input that is laid out otherwise is copied once.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16 or bfloat16; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is a multiple of 8 from 16 to 256; the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        design: how to run; ``None`` means :func:`shipped_design`.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or if ``head_dim`` is
            no multiple of 8; before any launch.
        RuntimeError: the GPU is not of compute capability 9.0.
    """
    scale = check_attention_inputs(query, key, value, scale, DTYPES)
    if query.shape[-1] % 8:
        raise ValueError(
            f"query has head_dim {query.shape[-1]}; accepted: multiples of 8, since the TMA copies "
            "rows of whole multiples of 16 bytes"
        )
    _check_hopper(query)
    design = design or shipped_design(query.shape[-1])
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
        return (output, logsumexp) if return_logsumexp else output
    programs = torch.cuda.get_device_properties(query.device).multi_processor_count
    grid, arguments, constants = launch(
        query, key, value, output, logsumexp, causal, scale, design, programs
    )
    with launch_device(query):
        flash3_kernel[grid](*arguments, **constants, num_warps=design.warps)
    return (output, logsumexp) if return_logsumexp else output


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    causal: bool,
    scale: float,
    design: Design,
    programs: int,
) -> tuple[tuple[int], tuple, dict]:
    """Grid, arguments and constants of :func:`flash3_kernel` for tensors that are not empty.

    Args:
        output, logsumexp: contiguous; the kernel writes every element.
        programs: how many a persistent grid has; one an SM.
    """
    batch, heads, seq_query, head_dim = query.shape
    kv_heads, seq_key = key.shape[1:3]
    rows = [design.rows, padded_head_dim(head_dim)]
    columns = [design.block_n, rows[1]]
    arguments = (
        _descriptor(_readable(query), [1, 1, *rows]),
        _descriptor(_readable(key), [1, 1, *columns]),
        _descriptor(_readable(value), [1, 1, *columns]),
        _descriptor(output.view(batch * heads, seq_query, head_dim), [1, *rows]),
        logsumexp,
        scale * LOG2_E,
        # Without a mask all tiles are as long: one head after the other. With one, as many heads together
        # as have their K and V in 32 MiB, which leaves room in an L2 cache of 50.
        heads // kv_heads * max(1, 2**25 // (4 * seq_key * head_dim)) if causal else 1,
    )
    tiles = batch * heads * triton.cdiv(seq_query, design.consumers * design.rows)
    constants = {
        "CAUSAL": causal,
        "CONSUMERS": design.consumers,
        "STAGES": design.stages,
        "SPECIALIZED": design.specialized,
        "OVERLAP": design.overlap,
        "PINGPONG": design.pingpong,
        "OUTPUT_APART": design.output_apart,
        "REGISTERS": design.registers,
    }
    return (min(tiles, programs) if design.persistent else tiles,), arguments, constants


def _descriptor(tensor: torch.Tensor, tile: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for(tile, getattr(gl, str(tensor.dtype)[6:]))
    return TensorDescriptor.from_tensor(tensor, tile, layout)


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a contiguous copy if the TMA cannot read it where it lies."""
    *strides, last = tensor.stride()
    aligned = all(stride > 0 and stride * tensor.itemsize % 16 == 0 for stride in strides)
    if last == 1 and aligned and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_hopper(query: torch.Tensor) -> None:
    if query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0):
        return
    came = "the CPU"
    if query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        came = f"{torch.cuda.get_device_name(query.device)}, of compute capability {major}.{minor}"
    raise RuntimeError(
        f"kernels.flash3 runs on a GPU of compute capability 9.0 (Hopper), but query is on {came}: "
        "kernels.flash2 computes the same there"
    )


def configurations() -> Iterator[Configuration]:
    """Every form that :func:`attention` launches at head dimensions 64, 128 and 256."""
    for head_dim in (64, 128, 256):
        for causal in (False, True):
            label = f"float16, head_dim {head_dim}" + (", causal" if causal else "")
            yield configuration(label, torch.float16, head_dim, causal, shipped_design(head_dim))


def configuration(
    label: str, dtype: torch.dtype, head_dim: int, causal: bool, design: Design
) -> Configuration:
    """The compiled form that a design gives."""
    tensor = torch.empty(1, 1, 1, head_dim, dtype=dtype)
    logsumexp = torch.empty(1, 1, 1)
    _, arguments, constants = launch(
        tensor, tensor, tensor, tensor.clone(), logsumexp, causal, 1.0, design, 1
    )
    types = [_descriptor_type(descriptor) for descriptor in arguments[:4]]
    return Configuration(
        label,
        flash3_kernel,
        dict(zip(flash3_kernel.arg_names, [*types, "*fp32", "fp32", "i32"], strict=False)),
        constants,
        {"num_warps": design.warps},
        (90,),
    )


def _descriptor_type(descriptor: TensorDescriptor) -> str:
    dtype = POINTER_TYPES[descriptor.base.dtype].removeprefix("*")
    return f"tensordesc<{dtype}{list(descriptor.block_shape)},{descriptor.layout!r}>"
