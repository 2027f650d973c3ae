"""How fast tiles come from the L2 cache, and from HBM, into an SM's shared memory, by the TMA.

    python -m benchmarks.copy_rate --experiment copy_rate

Programs that do nothing but copy, with four tiles of 128 x 128 numbers of 16 bits on their way at a time: a
bound on how fast a producer can feed its consumers. One row for each number of programs, one an SM, size of
what is read, over and over, and whether they read the same tiles together or start apart: ``programs,
source_mib, apart, tiles, bytes_a_cycle``, of each program by the SM's own clock, the median over the
programs, and ``terabytes_a_second`` of all together.
"""

import argparse
import itertools
import statistics

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

import kernels
from instruments import records

TILE, STAGES = 128, 4
TILE_BYTES = 2 * TILE * TILE
SOURCE_MIB = (16, 1024)  # within the L2 of a Hopper GPU, and far beyond
PROGRAMS = (1, 33, 66, 132)
# Enough for the first latency not to count.
TILES = 4096


@gluon.jit
def clock():
    """Cycles that this SM has counted."""
    return gl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=gl.int64, is_pure=False, pack=1
    )


@gluon.jit
def start_copy(source, slots, full, use, spread, tiles_there):
    """Start to copy a program's tile number ``use`` into the slot that is its turn."""
    STAGES: gl.constexpr = slots.shape[0]
    number = (gl.program_id(0) * spread + use) % tiles_there
    arrived = full.index(use % STAGES)
    mbarrier.expect(arrived, source.block_type.nbytes)
    place = [number * slots.shape[1], 0]
    tma.async_copy_global_to_shared(source, place, arrived, slots.index(use % STAGES))


@gluon.jit
def copy_kernel(source, cycles_ptr, tiles, spread, tiles_there, STAGES: gl.constexpr):
    """Copy ``tiles`` tiles, one after the other, and note how many cycles that took.

    A program starts ``spread`` tiles after the one before it.
    """
    shape: gl.constexpr = [STAGES] + source.block_type.shape
    slots = gl.allocate_shared_memory(source.dtype, shape, source.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
    began = clock()
    for use in gl.static_range(STAGES):
        start_copy(source, slots, full, use, spread, tiles_there)
    for use in range(tiles):
        mbarrier.wait(full.index(use % STAGES), (use // STAGES) & 1)
        if use + STAGES < tiles:
            start_copy(source, slots, full, use + STAGES, spread, tiles_there)
    gl.store(cycles_ptr + gl.program_id(0), clock() - began)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time copies into shared memory.")
    parser.add_argument("--experiment", required=True, help="name of the record")
    experiment = parser.parse_args().experiment
    if kernels.device().type != "cuda":
        raise SystemExit("copies are timed on a Hopper GPU, and PyTorch sees no GPU here")
    cases = itertools.product(SOURCE_MIB, (False, True), PROGRAMS)
    rows = [time_copies(programs, mib, apart) for mib, apart, programs in cases]
    print("recorded in", records.save(experiment, rows).relative_to(records.ROOT))


def time_copies(programs: int, source_mib: int, apart: bool) -> dict:
    """One row. The second launch counts, when the source is where it can be."""
    source = torch.zeros(source_mib * 2**20 // (2 * TILE), TILE, dtype=torch.float16, device="cuda")
    cycles = torch.empty(programs, dtype=torch.int64, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):
        start.record()
        launch(source, cycles, TILES, apart)
        end.record()
    torch.cuda.synchronize()
    copied = TILES * TILE_BYTES
    row = {
        "programs": programs,
        "source_mib": source_mib,
        "apart": apart,
        "tiles": TILES,
        "bytes_a_cycle": round(copied / statistics.median(cycles.tolist()), 2),
        "terabytes_a_second": round(1e-9 * programs * copied / start.elapsed_time(end), 3),
    }
    print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
    return row


def launch(source: torch.Tensor, cycles: torch.Tensor, tiles: int, apart: bool) -> None:
    """Copy with one program for each element of ``cycles``."""
    tile = [TILE, TILE]
    layout = gl.NVMMASharedLayout.get_default_for(tile, gl.float16)
    descriptor = TensorDescriptor.from_tensor(source, tile, layout)
    tiles_there, programs = len(source) // TILE, len(cycles)
    spread = tiles_there // programs if apart else 0
    copy_kernel[(programs,)](descriptor, cycles, tiles, spread, tiles_there, STAGES, num_warps=4)


if __name__ == "__main__":
    main()
