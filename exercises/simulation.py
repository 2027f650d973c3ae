"""Running a learner's Gluon kernel on the simulator, and telling them what it found."""

import re

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from instruments.gluon_simulator import (
    BarrierMisuse,
    Deadlock,
    InFlight,
    MissingFence,
    Race,
    SimulationError,
)

# The function that a partition runs comes last; it is what the learner writes.
_PLACE = re.compile(r"at (?:\w+ \([^()]*:\d+\) < )*\w+ \([^()]*:(\d+)\)")
_KINDS = {
    Race: ("A race", "A barrier must tell the second that the first is over."),
    Deadlock: (
        "A deadlock",
        "Look for an arrival or bytes that never come, or for a wait with the wrong parity.",
    ),
    BarrierMisuse: ("A barrier misused", "Count the arrivals and the bytes of one phase."),
    InFlight: ("Not waited for", ""),
    MissingFence: ("A fence is missing", ""),
}


def tiles_of(matrix: torch.Tensor, rows: int = 64, columns: int = 64) -> TensorDescriptor:
    """What the TMA is told of a matrix: where it lies, and how large its tiles are."""
    tile = [rows, columns]
    dtype = getattr(gl, str(matrix.dtype).removeprefix("torch."))
    layout = gl.NVMMASharedLayout.get_default_for(tile, dtype)
    return TensorDescriptor.from_tensor(matrix, tile, layout)


def in_plain_words(error: SimulationError) -> str:
    """What the simulator found, in one line, with the lines of the learner's code."""
    kind, advice = _KINDS.get(type(error), ("The simulator stopped", ""))
    first, *others = _PLACE.sub(r"in line \1", str(error)).splitlines()
    # Of a deadlock, a line for each partition: what it waits for. One may have ended.
    waits = [re.sub(r" of program \(.*?\)", "", line.strip()) for line in others]
    waits = [line for line in waits if not line.endswith("for the other partitions to end")]
    return f"{kind}: {' '.join([first, '; '.join(waits)]).strip()}. {advice}".rstrip()
