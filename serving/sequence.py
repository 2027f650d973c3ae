"""What the scheduler keeps about a request: its sequences, their tokens, and how far they are computed."""

from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """Where a request is. It ends in one of the last three, whatever happens."""

    WAITING = "waiting"  # holds no memory
    RUNNING = "running"  # holds blocks on the GPU
    SWAPPED = "swapped"  # holds blocks on the CPU
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass
class Sequence:
    """The prompt and what was generated after it, one of a group's continuations."""

    number: int
    tokens: list[int]
    computed: int = 0  # of the first tokens, whose keys and values are in memory

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(eq=False)
class SequenceGroup:
    """A request: sequences that share a prompt, and are scheduled, swapped and ended together.

    One sequence computes the prompt; the first sampling then makes up to ``parallel`` of it, for parallel
    sampling or as the beams of a beam search.
    """

    number: int  # in order of arrival
    prompt: list[int]
    max_new_tokens: int
    parallel: int
    end_token: int | None
    salt: bytes
    sequences: dict[int, Sequence]  # those still growing, by number
    state: State = State.WAITING
    outputs: list[list[int]] = field(default_factory=list)  # generated tokens of those that ended
    failures: int = 0  # failed steps since the last new token
    error: BaseException | None = None  # why it failed
