"""FlashAttention-1 tile by tile: what crosses between HBM and the chip, in two loop orders."""

from __future__ import annotations

import math

import traitlets

from figures._mount import STATE, Figure

SHORTEST, LONGEST = 4, 16


class TileStepper(Figure):
    """The tiles of S, visited one after the other, with the bytes and statistics of each visit.

    `seq_query` and `seq_key` count rows and columns of the picture, `block_m` and `block_n` those of
    a tile. For the bytes each stands for `row_tokens` tokens with `head_dim` numbers of `dtype`.
    `order` is what the outer loop walks along: "keys", as Algorithm 1 is printed, or "queries".
    """

    _module = "tile_stepper"
    _alternative = (
        "Interactive figure: FlashAttention, tile by tile. It shows which tiles of Q, K, V and O "
        "cross between HBM and the chip at each visit, in two loop orders, and counts the bytes."
    )

    seq_query = traitlets.Enum(range(SHORTEST, LONGEST + 1), 8).tag(**STATE)
    seq_key = traitlets.Enum(range(SHORTEST, LONGEST + 1), 8).tag(**STATE)
    block_m = traitlets.Enum([1, 2, 4, 8], 2).tag(**STATE)
    block_n = traitlets.Enum([1, 2, 4, 8], 2).tag(**STATE)
    order = traitlets.Enum(["keys", "queries"], "keys").tag(**STATE)
    causal = traitlets.Bool(False).tag(**STATE)
    head_dim = traitlets.Enum([16, 32, 64, 128, 256], 64).tag(**STATE)
    dtype = traitlets.Enum(["fp32", "fp16", "bf16"], "fp16").tag(**STATE)
    row_tokens = traitlets.Enum([1, 16, 32, 64, 128], 64).tag(**STATE)
    step = traitlets.Int(0).tag(**STATE)

    @property
    def last_step(self) -> int:
        """0 is before the first visit; after the last comes the end, with an empty chip."""
        query_tiles, key_tiles = (
            math.ceil(self.seq_query / self.block_m),
            math.ceil(self.seq_key / self.block_n),
        )
        if self.order == "keys" or not self.causal:
            return query_tiles * key_tiles + 1
        ends = (min((i + 1) * self.block_m, self.seq_query) for i in range(query_tiles))
        seen = (end + self.seq_key - self.seq_query for end in ends)
        # A tile of queries that sees no key still takes a step: its zeros are stored.
        return sum(max(1, math.ceil(keys / self.block_n)) for keys in seen) + 1

    @traitlets.validate("step")
    def _existing_step(self, proposal):
        step = proposal["value"]
        if not 0 <= step <= self.last_step:
            raise traitlets.TraitError(
                f"step is a whole number from 0 to {self.last_step}; got {step}."
            )
        return step

    @traitlets.observe("seq_query", "seq_key", "block_m", "block_n", "order", "causal")
    def _stay_within_the_steps(self, change):
        self.step = min(self.step, self.last_step)
