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
    end. How many heads: see :func:`kernels.flash3.launch`.
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
def wait_turn(turn, use, INDEX: gl.constexpr):
    """Wait until the consumer before has issued its products of this step; the first one goes ahead."""
    mbarrier.wait(turn.index(INDEX), (use + (1 if INDEX == 0 else 0)) & 1)


@gluon.jit
def pass_turn(turn, INDEX: gl.constexpr):
    """The next consumer's products may follow."""
    mbarrier.arrive(turn.index((INDEX + 1) % turn.shape[0]), count=1)
