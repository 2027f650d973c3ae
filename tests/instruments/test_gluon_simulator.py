"""The Gluon simulator: right kernels give right answers whatever the timing, wrong ones are found out."""

import json
from itertools import pairwise

import pytest
import torch
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

from instruments import gluon_simulator as simulator
from instruments.gluon_simulator import HopperClock, simulate
from instruments.gluon_simulator.clocks import COPIES

SEEDS = range(8)
UNITS = ("tensor cores", "exponential unit", "float32 units", "copy engine")


@gluon.jit
def copy_kernel(source, target, row, column):
    """Copy the tile of ``source`` at (row, column) to the same place of ``target``."""
    tile = gl.allocate_shared_memory(source.dtype, source.block_type.shape, source.layout)
    landed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(landed, count=1)
    mbarrier.expect(landed, source.block_type.nbytes)
    tma.async_copy_global_to_shared(source, [row, column], landed, tile)
    mbarrier.wait(landed, 0)
    tma.async_copy_shared_to_global(target, [row, column], tile)
    tma.store_wait(0)


@gluon.jit
def product_kernel(left, right, out_ptr, COLUMNS: gl.constexpr):
    """One product of tiles, ``left @ right.T``, stored through pointers."""
    left_tile = gl.allocate_shared_memory(left.dtype, left.block_type.shape, left.layout)
    right_tile = gl.allocate_shared_memory(right.dtype, right.block_type.shape, right.layout)
    landed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(landed, count=1)
    mbarrier.expect(landed, left.block_type.nbytes + right.block_type.nbytes)
    tma.async_copy_global_to_shared(left, [0, 0], landed, left_tile)
    tma.async_copy_global_to_shared(right, [0, 0], landed, right_tile)
    mbarrier.wait(landed, 0)
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    zeros = gl.full([64, COLUMNS], 0.0, gl.float32, LAYOUT)
    product = warpgroup_mma(left_tile, right_tile.permute((1, 0)), zeros, is_async=True)
    product = warpgroup_mma_wait(0, deps=[product])
    rows = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    gl.store(out_ptr + rows[:, None] * COLUMNS + columns[None, :], product)


@gluon.jit
def barriers(SLOTS: gl.constexpr, ARRIVALS: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(made.index(slot), count=ARRIVALS)
    return made


@gluon.jit
def load_both(left, right, tiles, full, empty, TILES: gl.constexpr, BUG: gl.constexpr):
    """Partition: keep the slots full, over all output tiles of this program."""
    SLOTS: gl.constexpr = full.shape[0]
    left_tiles, right_tiles = tiles
    expected: gl.constexpr = left.block_type.nbytes + right.block_type.nbytes
    use = 0
    for output in range(gl.program_id(0), TILES, gl.num_programs(0)):
        for depth in range(0, left.shape[1], left.block_type.shape[1]):
            slot = use % SLOTS
            phase = (use // SLOTS) & 1
            if BUG != "no wait for an empty slot":
                mbarrier.wait(
                    empty.index(slot), phase ^ (0 if BUG == "wrong phase of empty" else 1)
                )
            if BUG == "too many bytes":
                mbarrier.expect(full.index(slot), expected + 16)
            elif BUG == "too few bytes":
                mbarrier.expect(full.index(slot), expected - 16)
            elif BUG != "no expect":
                mbarrier.expect(full.index(slot), expected)
            row = output * left.block_type.shape[0]
            tma.async_copy_global_to_shared(
                left, [row, depth], full.index(slot), left_tiles.index(slot)
            )
            tma.async_copy_global_to_shared(
                right, [0, depth], full.index(slot), right_tiles.index(slot)
            )
            if BUG == "over-arrival":
                mbarrier.arrive(full.index(slot), count=1)
            use += 1


@gluon.jit
def multiply(out, depths, tiles, staging, full, empty, TILES: gl.constexpr, BUG: gl.constexpr):
    """Partition: sum the products of each output tile, and store it."""
    SLOTS: gl.constexpr = full.shape[0]
    ROWS: gl.constexpr = out.block_type.shape[0]
    COLUMNS: gl.constexpr = out.block_type.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    left_tiles, right_tiles = tiles
    use = 0
    for output in range(gl.program_id(0), TILES, gl.num_programs(0)):
        total = gl.full([ROWS, COLUMNS], 0.0, gl.float32, LAYOUT)
        for _ in range(depths):
            slot = use % SLOTS
            phase = (use // SLOTS) & 1
            if BUG != "no wait for a full slot":
                mbarrier.wait(full.index(slot), phase ^ (1 if BUG == "wrong phase of full" else 0))
            right_tile = right_tiles.index(slot).permute((1, 0))
            total = warpgroup_mma(left_tiles.index(slot), right_tile, total, is_async=True)
            if BUG == "early release":
                mbarrier.arrive(empty.index(slot), count=1)
            if BUG == "accumulator in flight":
                total = total + 1.0
            total = warpgroup_mma_wait(0, deps=[total])
            if BUG != "early release" and BUG != "no release":
                mbarrier.arrive(empty.index(slot), count=1)
            use += 1
        if BUG != "staging reused":
            tma.store_wait(0)
        staging.store(total.to(out.dtype))
        if BUG != "no fence":
            fence_async_shared()
        tma.async_copy_shared_to_global(out, [output * ROWS, 0], staging)
    if BUG != "no store wait":
        tma.store_wait(0)


@gluon.jit
def pipeline_kernel(
    left, right, out, depths, SLOTS: gl.constexpr, TILES: gl.constexpr, BUG: gl.constexpr
):
    """``left @ right.T``, persistent: a partition loads, another multiplies."""
    left_tiles = gl.allocate_shared_memory(left.dtype, [SLOTS] + left.block_type.shape, left.layout)
    right_tiles = gl.allocate_shared_memory(
        right.dtype, [SLOTS] + right.block_type.shape, right.layout
    )
    staging = gl.allocate_shared_memory(out.dtype, out.block_type.shape, out.layout)
    full = barriers(SLOTS, 1)
    empty = barriers(SLOTS, 1)
    gl.warp_specialize(
        [
            (load_both, (left, right, (left_tiles, right_tiles), full, empty, TILES, BUG)),
            (
                multiply,
                (out, depths, (left_tiles, right_tiles), staging, full, empty, TILES, BUG),
            ),
        ],
        [4],
        [160],
    )


BUGS = {
    "no wait for an empty slot": (simulator.Race, simulator.BarrierMisuse),
    "wrong phase of empty": simulator.Deadlock,
    "too many bytes": simulator.Deadlock,
    "too few bytes": simulator.BarrierMisuse,
    "no expect": simulator.Deadlock,
    "over-arrival": simulator.BarrierMisuse,
    "no wait for a full slot": simulator.Race,
    "wrong phase of full": (simulator.Race, simulator.Deadlock),
    "early release": simulator.Race,
    "accumulator in flight": simulator.InFlight,
    "no release": simulator.Deadlock,
    "staging reused": simulator.Race,
    "no fence": simulator.MissingFence,
    "no store wait": simulator.InFlight,
}


def descriptor(tensor, box):
    dtype = getattr(gl, str(tensor.dtype).removeprefix("torch."))
    return TensorDescriptor.from_tensor(
        tensor, list(box), gl.NVMMASharedLayout.get_default_for(list(box), dtype)
    )


def matrix(rows, columns, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def pipeline(bug=None, *, rows=200, depth=160, slots=2, programs=2, dtype=torch.float16, **options):
    """Run the pipeline; what it computed, what it should have, and the run."""
    left, right = matrix(rows, depth, dtype, 1), matrix(64, depth, dtype, 2)
    out = torch.full((rows, 64), float("nan"), dtype=dtype)
    run = simulate(
        pipeline_kernel,
        (programs,),
        descriptor(left, (64, 64)),
        descriptor(right, (64, 64)),
        descriptor(out, (64, 64)),
        -(-depth // 64),
        SLOTS=slots,
        TILES=-(-rows // 64),
        BUG=bug,
        **options,
    )
    return out, left.double() @ right.double().T, run


def assert_rounded(out, exact, depth):
    """Within the rounding of float32 sums of ``depth`` products, and of the result's own dtype."""
    slack = depth * torch.finfo(torch.float32).eps * exact.abs().max()
    error = (out.double() - exact).abs()
    assert (error <= torch.finfo(out.dtype).eps * exact.abs() + slack).all()


@pytest.mark.parametrize("row, column", [(0, 0), (64, 16), (-16, -8), (96, 48), (1000, 0)])
def test_tma_copies_what_is_inside(row, column):
    source, target = matrix(120, 72), torch.full((120, 72), 7.0, dtype=torch.float16)
    box = (64, 64)
    run = simulate(copy_kernel, (1,), descriptor(source, box), descriptor(target, box), row, column)
    expected = torch.full_like(target, 7.0)
    inside = (
        slice(min(max(row, 0), 120), max(min(row + 64, 120), 0)),
        slice(max(column, 0), max(min(column + 64, 72), 0)),
    )
    expected[inside] = source[inside]
    assert torch.equal(target, expected)
    bytes_ = run.traffic.buffers["copy_kernel", "source"].loaded
    assert bytes_ == 2 * expected[inside].numel()
    assert run.traffic.buffers["copy_kernel", "target"].stored == bytes_


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_product(dtype):
    left, right = matrix(64, 128, dtype, 1), matrix(32, 128, dtype, 2)
    out = torch.full((64, 32), float("nan"))
    box_left, box_right = descriptor(left, (64, 128)), descriptor(right, (32, 128))
    run = simulate(product_kernel, (1,), box_left, box_right, out, COLUMNS=32)
    assert_rounded(out, left.double() @ right.double().T, 128)
    assert run.shared_bytes == 2 * (64 + 32) * 128 + 8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slots, programs", [(1, 1), (2, 3), (3, 2)])
def test_pipeline_is_right_whatever_the_timing(slots, programs, seed):
    out, exact, _ = pipeline(slots=slots, programs=programs, seed=seed)
    assert_rounded(out, exact, 160)


def test_programs_on_several_sms():
    out, exact, run = pipeline(rows=320, programs=4, sms=3, clock=HopperClock())
    assert_rounded(out, exact, 160)
    assert {span.sm for span in run.trace} == {0, 1, 2}
    assert {span.program for span in run.trace} == {0, 1, 2, 3}


def test_bfloat16_pipeline():
    out, exact, _ = pipeline(dtype=torch.bfloat16)
    assert_rounded(out, exact, 160)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("seed", range(3))
def test_bugs_are_named_in_every_run(bug, seed):
    with pytest.raises(BUGS[bug]):
        pipeline(bug, seed=seed)


def test_a_deadlock_says_who_waits_for_what():
    with pytest.raises(simulator.Deadlock) as caught:
        pipeline("no release")
    message = str(caught.value)
    assert "load_both of program (0, 0, 0) waits at load_both (test_gluon_simulator.py:" in message
    assert "for empty[0], a phase of parity 0" in message
    assert "1 of 1 arrivals and 0 bytes are missing" in message
    assert "multiply of program (0, 0, 0)" in message and "for full[0]" in message


def test_a_race_names_both_sides():
    with pytest.raises(simulator.Race) as caught:
        pipeline("early release")
    message = str(caught.value)
    assert "load_both starts a TMA copy into left_tiles[0] at" in message
    assert "multiply starts a wgmma that reads left_tiles[0] at" in message


def test_missing_bytes_are_counted():
    with pytest.raises(simulator.Deadlock, match="16 bytes are missing"):
        pipeline("too many bytes")


def test_a_run_depends_on_its_seed_only():
    first, second, other = (pipeline(seed=seed)[2].trace for seed in (5, 5, 6))
    assert first == second
    assert first != other


def test_trace_is_consistent():
    _, _, run = pipeline(rows=320, programs=2, sms=2, clock=HopperClock())
    spans = run.trace
    assert all(span.end >= span.start for span in spans)
    for sm in (0, 1):
        for unit in UNITS:
            busy = sorted((s.start, s.end) for s in spans if (s.sm, s.lane) == (sm, unit))
            assert all(end <= start for (_, end), (start, _) in pairwise(busy))
            assert run.cycles >= sum(end - start for start, end in busy)
        completed = {(s.lane, s.end) for s in spans if s.sm == sm and s.name == "phase"}
        waits = [
            s
            for s in spans
            if s.sm == sm and s.name == "wait" and s.buffer[:-3] in ("full", "empty")
        ]
        assert waits and all((s.buffer, s.end) in completed for s in waits)
    assert run.cycles == max(span.end for span in spans)
    assert json.loads(json.dumps(run.rows()))[0]["lane"] == spans[0].lane


def test_times_are_the_clock_s():
    clock = HopperClock(latency=500, step=10)
    left, right, out = matrix(64, 128), matrix(32, 128), torch.empty(64, 32)
    box_left, box_right = descriptor(left, (64, 128)), descriptor(right, (32, 128))
    run = simulate(product_kernel, (1,), box_left, box_right, out, COLUMNS=32, clock=clock)
    fills = {span.buffer: span for span in run.trace if span.name == "fill"}
    left_copy, right_copy = (clock.cycles(COPIES, 2 * rows * 128) for rows in (64, 32))
    first, second = fills["left_tile"], fills["right_tile"]
    assert first.end - first.start == left_copy + 500
    # Copies queue, their latencies overlap.
    assert second.end == first.end + right_copy
    (wgmma,) = [span for span in run.trace if span.name == "wgmma"]
    assert wgmma.end - wgmma.start == 2 * 64 * 32 * 128 / 4096
    assert wgmma.start >= second.end
    assert wgmma.tile == (0, 0) and wgmma.buffer == "right_tile"


def test_a_second_slot_hides_the_loads():
    cycles = [pipeline(slots=slots, depth=1024, clock=HopperClock())[2].cycles for slots in (1, 2)]
    assert cycles[1] < cycles[0]


@gluon.jit
def turns(counter_ptr, INDEX: gl.constexpr, ROUNDS: gl.constexpr, FORGET: gl.constexpr):
    """Two partitions add to one counter in turns, by named barriers 8 and 9."""
    MINE: gl.constexpr = "8" if INDEX == 0 else "9"
    OTHERS: gl.constexpr = "9" if INDEX == 0 else "8"
    if INDEX == 1:
        arrive("8")
    for _ in range(ROUNDS):
        sync(MINE)
        gl.store(counter_ptr, gl.load(counter_ptr) * 2 + INDEX)
        if not (FORGET and INDEX == 1):
            arrive(OTHERS)
    if INDEX == 0:
        sync("8")


@gluon.jit
def sync(ID: gl.constexpr):
    gl.inline_asm_elementwise(
        "mov.u32 $0, 0; bar.sync " + ID + ", 256;", "=r", [], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def arrive(ID: gl.constexpr):
    gl.inline_asm_elementwise(
        "mov.u32 $0, 0; bar.arrive " + ID + ", 256;", "=r", [], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def turns_kernel(counter_ptr, ROUNDS: gl.constexpr, FORGET: gl.constexpr):
    gl.warp_specialize(
        [
            (turns, (counter_ptr, gl.constexpr(0), ROUNDS, FORGET)),
            (turns, (counter_ptr, gl.constexpr(1), ROUNDS, FORGET)),
        ],
        [4],
        [128],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_take_turns(seed):
    counter = torch.zeros(1, dtype=torch.int32)
    simulate(turns_kernel, (1,), counter, ROUNDS=5, FORGET=False, seed=seed)
    assert counter.item() == 0b0101010101


def test_a_named_barrier_s_deadlock_counts_threads():
    counter = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(simulator.Deadlock, match=r"turns 0 .*named barrier 8 \(128 of 256 threads"):
        simulate(turns_kernel, (1,), counter, ROUNDS=5, FORGET=True)


@gluon.jit
def queue_kernel(counter_ptr, owners_ptr, ITEMS: gl.constexpr):
    """Programs take items from a shared counter until none is left."""
    item = gl.atomic_add(counter_ptr, 1)
    while item < ITEMS:
        gl.store(owners_ptr + item, gl.program_id(0))
        item = gl.atomic_add(counter_ptr, 1)


def test_programs_share_an_atomic_counter():
    counter, owners = torch.zeros(1, dtype=torch.int32), torch.full((24,), -1, dtype=torch.int32)
    simulate(queue_kernel, (3,), counter, owners, ITEMS=24, sms=3)
    assert counter.item() == 24 + 3  # each program asks once too often
    assert set(owners.tolist()) == {0, 1, 2}


@gluon.jit
def arithmetic_kernel(in_ptr, out_ptr, minus_seven, half_ptr, SIZE: gl.constexpr):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    at = gl.arange(0, SIZE, LAYOUT)
    x = gl.load(in_ptr + at, mask=at < 3, other=-1.0)
    gl.store(out_ptr + 0, minus_seven // 2)
    gl.store(out_ptr + 1, minus_seven % 4)
    gl.store(out_ptr + 2, gl.max(x, axis=0))
    gl.store(out_ptr + 3, gl.sum(x, axis=0))
    gl.store(out_ptr + 4, gl.maximum(gl.load(in_ptr + 3), 2.0))  # of NaN and 2
    half = gl.load(half_ptr)
    gl.store(out_ptr + 5, half / 3)  # in float32
    gl.store(out_ptr + 6, half * 3)  # in float16
    gl.store(out_ptr + 7, gl.cdiv(minus_seven + 14, 4))
    gl.store(out_ptr + 8, (minus_seven + 2147483647 + 8).to(gl.float32))  # past int32
    total = 0
    for i in range(minus_seven, 0):
        total += i // 2
    gl.store(out_ptr + 9, total)


def test_arithmetic_is_the_hardware_s():
    half = torch.tensor([0.1], dtype=torch.float16)
    given, out = torch.tensor([1.0, 2.5, -4.0, float("nan")]), torch.full((10,), float("nan"))
    simulate(arithmetic_kernel, (1,), given, out, -7, half, SIZE=4)
    tenth = half.float().item()
    expected = [
        -3,
        -3,
        2.5,
        1.0 + 2.5 - 4.0 - 1.0,
        2.0,
        tenth / 3,
        (half * 3).item(),
        2,
        -(2**31),
        -12,
    ]
    assert torch.equal(out, torch.tensor(expected))


@gluon.jit
def outside_kernel(out_ptr, SIZE: gl.constexpr):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    gl.store(out_ptr + gl.arange(0, SIZE, LAYOUT), 1.0)


def test_an_address_outside_a_tensor_is_an_error():
    with pytest.raises(simulator.SimulationError, match="element 6 of out_ptr, which has 6"):
        simulate(outside_kernel, (1,), torch.zeros(6), SIZE=8)


@gluon.jit
def unknown_kernel(out_ptr):
    gl.store(out_ptr, gl.histogram(gl.load(out_ptr), 4))


def test_unknown_operations_are_named():
    with pytest.raises(simulator.NotSimulated, match=r"gluon.language.histogram at unknown_kernel"):
        simulate(unknown_kernel, (1,), torch.zeros(1))


@gluon.jit
def stored_number():
    return 1.0


@gluon.jit
def doubled_number():
    return 2.0


@gluon.jit
def number_kernel(out_ptr):
    gl.store(out_ptr, stored_number())


def test_a_name_means_what_it_means_at_the_launch(monkeypatch):
    out = torch.zeros(1)
    simulate(number_kernel, (1,), out)
    assert out.item() == 1
    monkeypatch.setitem(globals(), "stored_number", doubled_number)
    simulate(number_kernel, (1,), out)
    assert out.item() == 2


@gluon.jit
def forgotten_load_kernel(source):
    tile = gl.allocate_shared_memory(source.dtype, source.block_type.shape, source.layout)
    landed = barriers(1, 1)
    mbarrier.expect(landed.index(0), source.block_type.nbytes)
    tma.async_copy_global_to_shared(source, [0, 0], landed.index(0), tile)


def test_a_copy_that_outlives_its_program_is_an_error():
    with pytest.raises(simulator.InFlight, match="nobody waited for this: .* TMA copy into tile"):
        simulate(forgotten_load_kernel, (1,), descriptor(matrix(64, 64), (64, 64)))


def test_tma_refuses_what_the_hardware_refuses():
    source = descriptor(matrix(64, 64), (64, 64))
    source.strides = (60, 1)
    with pytest.raises(simulator.SimulationError, match="multiples of 16 bytes; source has"):
        simulate(forgotten_load_kernel, (1,), source)
    source.strides, source.block_shape = (64, 1), [512, 64]
    with pytest.raises(simulator.SimulationError, match="at most 256 elements"):
        simulate(forgotten_load_kernel, (1,), source)
