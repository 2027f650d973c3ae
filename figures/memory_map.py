"""Memory for keys and values, contiguous and paged, while requests come, grow, fork and go."""

from __future__ import annotations

import traitlets

from figures._mount import STATE, Figure

RATES = [1, 2, 3, 4, 6, 8, 12, 16]
PROMPTS = [2, 4, 6, 8, 12, 16]
OUTPUTS = [2, 4, 8, 12, 16, 24]
PREFIX_LENGTHS = [0, 4, 8, 16]
BLOCK_SIZES = [1, 2, 4, 8, 16]
RESERVATIONS = ["max", "pow2", "oracle"]
STEPS = 120


class MemoryMap(Figure):
    """What each of 256 slots is used for, step by step, on two memories that serve the same requests.

    `rate` requests arrive in ten steps on average, with prompts of `prompt` tokens and outputs of
    `output` on average, after `prefix` tokens that all share. Each generates `parallel` sequences:
    `method` says whether they go on by themselves ("sampling") or are drawn anew from each other
    ("beam"). Contiguous memory is reserved as `reservation` says, paged memory has blocks of
    `block_size`. `step` is the one that is shown, 0 to 120.
    """

    _module = "memory_map"
    _alternative = (
        "Interactive figure: the memory map. It shows which slots of a contiguous and of a paged memory "
        "for keys and values hold tokens, and which are reserved, wasted or free, as requests come and go."
    )

    rate = traitlets.Enum(RATES, 4).tag(**STATE)
    prompt = traitlets.Enum(PROMPTS, 8).tag(**STATE)
    output = traitlets.Enum(OUTPUTS, 12).tag(**STATE)
    prefix = traitlets.Enum(PREFIX_LENGTHS, 0).tag(**STATE)
    parallel = traitlets.Enum([1, 2, 4], 1).tag(**STATE)
    method = traitlets.Enum(["sampling", "beam"], "sampling").tag(**STATE)
    block_size = traitlets.Enum(BLOCK_SIZES, 4).tag(**STATE)
    reservation = traitlets.Enum(RESERVATIONS, "max").tag(**STATE)
    step = traitlets.Int(0, min=0, max=STEPS).tag(**STATE)
