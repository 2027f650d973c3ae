"""Programs of an attention kernel on the multiprocessors of a GPU: waves, idle time and the tail."""

from __future__ import annotations

import traitlets

from figures._gpus import datasheet_gpus
from figures._mount import STATE, Figure

GPUS = ("T4", "A100 80 GB", "H100 SXM", "H200", "B200")
BATCHES = [1, 2, 4, 8, 16, 32, 64]
HEADS = [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64]
LENGTHS = [2**k for k in range(8, 18)]
SPLITS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def multiprocessors() -> list[dict]:
    return [
        {"name": gpu["name"], "sms": gpu["sms"]} for gpu in datasheet_gpus() if gpu["name"] in GPUS
    ]


class ProgramScheduler(Figure):
    """Which program runs on which SM, and when, in steps of one tile of scores.

    `parallel` says how the work is cut: "heads", a program a head, or "tiles", a program a head, tile of
    `block_m` queries and split of the keys. `order` says which tile of queries starts first.
    `seq_query` is `seq_key`, or 1 as in decoding. `slots` programs fit on an SM at a time. `moment` is
    where the time cursor stands, from 0, the start, to 60, the end.
    """

    _module = "program_scheduler"
    _alternative = (
        "Interactive figure: programs on multiprocessors. It shows which multiprocessor of a GPU "
        "runs which program of an attention kernel, and when, and how many stand idle at the end."
    )

    batch = traitlets.Enum(BATCHES, 1).tag(**STATE)
    heads = traitlets.Enum(HEADS, 16).tag(**STATE)
    seq_query = traitlets.Int(8192).tag(**STATE, link={"values": [1], "orThatOf": "seq_key"})
    seq_key = traitlets.Enum(LENGTHS, 8192).tag(**STATE)
    block_m = traitlets.Enum([64, 128, 256], 128).tag(**STATE)
    block_n = traitlets.Enum([32, 64, 128], 64).tag(**STATE)
    causal = traitlets.Bool(False).tag(**STATE)
    order = traitlets.Enum(["first", "longest"], "longest").tag(**STATE)
    splits = traitlets.Enum(SPLITS, 1).tag(**STATE)
    parallel = traitlets.Enum(["heads", "tiles"], "tiles").tag(**STATE)
    gpu = traitlets.Enum(list(GPUS), "H200").tag(**STATE)
    slots = traitlets.Enum([1, 2], 1).tag(**STATE)
    moment = traitlets.Int(60, min=0, max=60).tag(**STATE)
    gpus = traitlets.List(default_value=multiprocessors(), read_only=True).tag(**STATE)

    @traitlets.observe("seq_key")
    def _as_many_queries(self, change):
        if self.seq_query != 1:
            self.seq_query = self.seq_key

    @traitlets.validate("seq_query")
    def _all_queries_or_one(self, proposal):
        if proposal["value"] not in (1, self.seq_key):
            raise traitlets.TraitError(
                f"seq_query is 1 or seq_key, which is {self.seq_key}; got {proposal['value']}."
            )
        return proposal["value"]
