"""Request traces: when requests arrive, how long their prompts are and how much they generate.

Kwon et al. 2023 (PagedAttention, section 6.1) draw lengths from the ShareGPT and Alpaca data sets and
arrivals from a Poisson process. The traces here are synthetic, so that they need no data set.

What the paper says of the lengths, and is kept exactly: the mean number of tokens of prompts and outputs,
161.31 and 337.99 for ShareGPT, 19.31 and 58.45 for Alpaca. What it does not say is chosen:

* lengths are log-normal, whole and cut at the longest; a prompt's and its output's are independent;
* the spread of ShareGPT's outputs follows from Figure 2: of a request's memory in Orca (Max), 20.4 parts
  are tokens and 13.3 are still to come. Averaged over the steps of a request, what is to come is half its
  output, so ``E[output^2] / E[output]`` is 598 tokens for 7 requests in 15.7K slots;
* the other spreads, the lengths of a translation and the rounds of a conversation are guesses.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

LONGEST_PROMPT, LONGEST_OUTPUT = 512, 1536  # tokens; OPT has room for 2048 in all
LONGEST_CHAT = 1024  # tokens of history, and of an answer to it
CHAT_ROUNDS = 6  # of a conversation, on average


class Request(NamedTuple):
    """One request of a trace; its first ``prefix`` tokens are the same in all requests."""

    arrival: float  # in seconds
    prompt: int
    output: int
    prefix: int = 0

    @property
    def slots(self) -> int:
        """Slots it fills in the end: its last token is never computed, so it needs none."""
        return self.prompt + self.output - 1

    def tokens(self, number: int) -> list[int]:
        """A prompt of this length; beyond the prefix no token is another request's."""
        own = (number + 1) << 20
        return [*range(self.prefix), *range(own, own + self.prompt - self.prefix)]


@dataclass(frozen=True)
class Lengths:
    """Lengths from 1 to ``longest``, log-normal before they are cut, with the given mean.

    Args:
        mean: the mean of the cut distribution, exactly.
        spread: standard deviation of the logarithm, before the cut.
    """

    mean: float
    spread: float
    longest: int

    def __post_init__(self) -> None:
        if not 1 < self.mean < self.longest:
            raise ValueError(
                f"mean must lie between 1 and the longest, {self.longest}; got {self.mean!r}"
            )
        if not self.spread > 0:
            raise ValueError(f"spread must be above 0, got {self.spread!r}")

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the lengths 1, 2, ..., ``longest``."""
        low, high = -1e3, 1e3
        while True:  # the mean grows with the centre, so halving finds it
            centre = (low + high) / 2
            found = self._with_centre(centre)
            if centre in (low, high):
                return found
            if self._mean_of(found) < self.mean:
                low = centre
            else:
                high = centre

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        return random.choice(np.arange(1, self.longest + 1), size=count, p=self.probabilities)

    def _with_centre(self, centre: float) -> np.ndarray:
        logarithms = np.log(np.arange(1, self.longest + 1))
        exponents = -0.5 * ((logarithms - centre) / self.spread) ** 2 - logarithms
        weights = np.exp(exponents - exponents.max())
        return weights / weights.sum()

    def _mean_of(self, probabilities: np.ndarray) -> float:
        return float(probabilities @ np.arange(1, self.longest + 1))


@dataclass(frozen=True)
class Workload:
    """What requests look like; ``prefix`` tokens stand before every prompt, the same in all."""

    prompts: Lengths
    outputs: Lengths
    prefix: int = 0

    def with_prefix(self, prefix: int) -> "Workload":
        return replace(self, prefix=prefix)


SHAREGPT = Workload(Lengths(161.31, 1.0, LONGEST_PROMPT), Lengths(337.99, 1.0, LONGEST_OUTPUT))
ALPACA = Workload(Lengths(19.31, 0.5, LONGEST_PROMPT), Lengths(58.45, 0.85, LONGEST_OUTPUT))
TRANSLATION = Workload(  # of one sentence, after a prefix of instructions and examples
    Lengths(30.0, 0.5, LONGEST_PROMPT), Lengths(30.0, 0.5, LONGEST_OUTPUT)
)


def requests(workload: Workload, count: int, rate: float, seed: int = 0) -> list[Request]:
    """``count`` independent requests, ``rate`` a second on average; all at once if it is infinite."""
    random = np.random.default_rng(seed)
    arrivals = _poisson(random, count, rate)
    prompts = workload.prompts.draw(random, count) + workload.prefix
    outputs = workload.outputs.draw(random, count)
    return [
        Request(arrival, prompt, output, workload.prefix)
        for arrival, prompt, output in zip(
            arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True
        )
    ]


def chat(count: int, rate: float, seed: int = 0) -> list[Request]:
    """Requests that carry the conversation before them, of which the last 1024 tokens count.

    Conversations have one round or more, CHAT_ROUNDS on average; what is said in each is as long as
    ShareGPT's. As in the paper, no keys and values are kept from one round to the next.
    """
    random = np.random.default_rng(seed)
    arrivals = _poisson(random, count, rate)
    messages = SHAREGPT.prompts.draw(random, count)
    outputs = replace(SHAREGPT.outputs, longest=LONGEST_CHAT).draw(random, count)
    is_first = random.random(count) < 1 / CHAT_ROUNDS
    trace, history = [], 0
    for arrival, message, output, first in zip(
        arrivals.tolist(), messages.tolist(), outputs.tolist(), is_first.tolist(), strict=True
    ):
        said = message + (0 if first else history)
        trace.append(Request(arrival, min(said, LONGEST_CHAT), output))
        history = said + output
    # Rounds of one conversation do not follow each other at once.
    order = random.permutation(count)
    return [
        trace[other]._replace(arrival=request.arrival)
        for request, other in zip(trace, order, strict=True)
    ]


def _poisson(random: np.random.Generator, count: int, rate: float) -> np.ndarray:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number, at least 1; got {count!r}")
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate!r}")
    return np.cumsum(random.exponential(1 / rate, count))
