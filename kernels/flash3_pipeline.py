"""What the partitions of FlashAttention-3's kernel share: memory, barriers, and who does which work.

Tiles pass through rings in shared memory. A tile's reader waits until it has landed, and its writer until
all readers are done with what was there before; both waits are on barriers that lie in shared memory too.
Nothing here computes; :mod:`kernels.flash3_kernel` does.
"""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


class Ring(NamedTuple):
    """Slots in shared memory that tiles of queries pass through, with two barriers each.

    ``full`` completes a phase when what was asked for has landed, ``empty`` when all readers are done with
    it. The uses of a ring are numbered on and on: use ``n`` is of slot ``n % SLOTS``, in phase
    ``n // SLOTS`` of its barriers. A wait names the phase it waits for by its parity, as no other can be
    pending.

    ``tiles`` is [SLOTS, 1, 1, ROWS, BLOCK_D].
    """

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


class PairRing(NamedTuple):
    """As :class:`Ring`; a use has a tile of K and the tile of V that is multiplied at the same time.

    That is V of the step before (see :func:`consumer`). One barrier for both halves what the consumers
    have to wait for and to release; and each of these costs the four warps of a consumer a meeting.

    ``key`` and ``value`` are [SLOTS, 1, 1, BLOCK_N, BLOCK_D].
    """

    key: gl.shared_memory_descriptor
    value: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


class Shared(NamedTuple):
    """The shared memory of a program. Consumer i owns slot i of ``queries``, ``output`` and ``turn``."""

    queries: Ring
    pairs: PairRing
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

    They are loaded from the last to the first (see :func:`consumer`), in ``tiles + 1`` uses of the ring of
    pairs, from ``use`` on.
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
def make_tiles(descriptor, SLOTS: gl.constexpr):
    """Room for tiles of a descriptor."""
    shape: gl.constexpr = [SLOTS] + descriptor.block_type.shape
    return gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)


@gluon.jit
def tile_of(tiles, use):
    """The tile in the slot of a use, as a matrix [ROWS, BLOCK_D]."""
    SLOTS: gl.constexpr = tiles.shape[0]
    return tiles.index(use % SLOTS).reshape([tiles.shape[3], tiles.shape[4]])


@gluon.jit
def wait_full(ring, use):
    """Wait until everything of a use has landed."""
    SLOTS: gl.constexpr = ring.full.shape[0]
    mbarrier.wait(ring.full.index(use % SLOTS), (use // SLOTS) & 1)


@gluon.jit
def wait_empty(ring, use):
    """Wait until all readers are done with what the slot of a use held before."""
    SLOTS: gl.constexpr = ring.empty.shape[0]
    # The phase before this use's. Before the very first a barrier counts as completed.
    mbarrier.wait(ring.empty.index(use % SLOTS), (use // SLOTS + 1) & 1)


@gluon.jit
def release(ring, use):
    """One reader is done with a use."""
    SLOTS: gl.constexpr = ring.empty.shape[0]
    mbarrier.arrive(ring.empty.index(use % SLOTS), count=1)


@gluon.jit
def load_queries(shared, given, work, use, INDEX: gl.constexpr):
    """Once their slot is empty, start copying the queries of consumer INDEX."""
    wait_empty(shared.queries, use)
    slot = use % shared.queries.full.shape[0]
    full = shared.queries.full.index(slot)
    mbarrier.expect(full, given.query.block_type.nbytes)
    start_m = work.start_m + INDEX * shared.queries.tiles.shape[3]
    copy_tile(given.query, work.head, start_m, full, shared.queries.tiles.index(slot))


@gluon.jit
def load_pair(shared, given, work, step, KEY: gl.constexpr = True, VALUE: gl.constexpr = True):
    """Once their slot is empty, start copying K of this step, V of the step before, or both.

    Step 0 has no V, and step ``work.tiles`` no K. Steps count back from the last tile that the queries see.
    """
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
        start_v = start_n + BLOCK_N
        copy_tile(given.value, work.kv_head, start_v, full, shared.pairs.value.index(slot))


@gluon.jit
def copy_tile(descriptor, head, row, full, tile):
    """Start copying the tile that begins at a row. Its bytes count towards ``full`` as they land."""
    heads = descriptor.shape[1]
    place = [head // heads, head % heads, row, 0]
    tma.async_copy_global_to_shared(descriptor, place, full, tile)


@gluon.jit
def rounds_of_work(given, shared):
    """How many tiles of queries this program takes, one after the other."""
    BLOCK_M: gl.constexpr = shared.queries.tiles.shape[0] * shared.queries.tiles.shape[3]
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
    end. How many heads: see :func:`kernels.flash3.launch`.
    """
    BLOCK_M: gl.constexpr = shared.queries.tiles.shape[0] * shared.queries.tiles.shape[3]
    BLOCK_N: gl.constexpr = shared.pairs.key.shape[3]
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
def wait_turn(turn, use, INDEX: gl.constexpr):
    """Wait until the consumer before has issued its products of this step; the first one goes ahead."""
    mbarrier.wait(turn.index(INDEX), (use + (1 if INDEX == 0 else 0)) & 1)


@gluon.jit
def pass_turn(turn, INDEX: gl.constexpr):
    """The next consumer's products may follow."""
    mbarrier.arrive(turn.index((INDEX + 1) % turn.shape[0]), count=1)
