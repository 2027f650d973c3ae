"""From logits to tokens: greedy, sampling with temperature, top-k and top-p, and beam search.

Everything here is a pure function of its arguments. The random numbers are arguments too: each sequence has
its own, drawn from the request's seed before it runs (:func:`draw`). So what a request generates does not
depend on who shares its batch, nor on being preempted and computed again.
"""

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How a request's sequences go on.

    Attributes:
        max_new_tokens: a sequence ends when it has generated so many.
        temperature: divides the logits; 0 is greedy, always the likeliest token.
        top_k: only so many of the likeliest tokens; None means all.
        top_p: of those, only as many as are needed for this share of their probability.
        n: sequences to generate.
        beam_search: the ``n`` sequences are the likeliest that a search with ``n`` beams finds.
        length_penalty: a beam's score is its log-probability divided by its length to this power.
        seed: of the random numbers; the same seed gives the same sequences.
        stop: sequences of tokens; one that ends with any of them is complete, and keeps it.
    """

    max_new_tokens: int = 16
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    n: int = 1
    beam_search: bool = False
    length_penalty: float = 1.0
    seed: int = 0
    stop: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        _check_whole("max_new_tokens", self.max_new_tokens, 1)
        _check_whole("n", self.n, 1)
        _check_whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1)
        _check_real("temperature", self.temperature, 0, float("inf"))
        _check_real("length_penalty", self.length_penalty, 0, float("inf"))
        _check_real("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError("top_p must be above 0 and at most 1, got 0")
        stop = tuple(tuple(tokens) for tokens in self.stop)
        if not all(stop):
            raise ValueError("stop has an empty sequence, which would end everything at once")
        object.__setattr__(self, "stop", stop)

    def stops(self, tokens: list[int]) -> bool:
        """Whether these generated tokens end with a stop sequence."""
        return any(tuple(tokens[-len(stop) :]) == stop for stop in self.stop)


def draw(seed: int, sequence: int, count: int) -> np.ndarray:
    """A sequence's random numbers, one a token, uniform in [0, 1).

    Philox makes them from the seed and the sequence's number alone (Salmon et al. 2011).
    """
    key = np.array([seed, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def greedy(logits: Tensor) -> Tensor:
    """The first of each row's likeliest tokens, ``(rows,)``."""
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    likeliest = logits == logits.amax(-1, keepdim=True)
    return torch.where(likeliest, tokens, len(tokens)).amin(-1)


def filtered(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's tokens, the likeliest first, and their probabilities once the filters are applied.

    Args:
        logits: ``(rows, vocabulary)``.
        temperature, top_k, top_p: ``(rows,)``. Temperature 0 leaves one token, the first of the
            likeliest; so top-k keeps exactly k, equals in order of their number.

    Returns:
        Tokens and float64 probabilities, both ``(rows, vocabulary)``.
    """
    cold = temperature == 0
    divisor = torch.where(cold, 1.0, temperature)[:, None]
    descending, tokens = logits.double().sort(dim=-1, descending=True, stable=True)
    # Their largest is subtracted first: a small temperature must not make infinities.
    weights = ((descending - descending[:, :1]) / divisor).exp()
    rank = torch.arange(logits.shape[-1], device=logits.device)
    weights = weights * (rank < torch.where(cold, 1, top_k)[:, None])
    before = weights.cumsum(-1) - weights
    # The likeliest is always kept. Every comparison is with what came before, so the token that
    # reaches the share is the last.
    kept = (before < top_p[:, None] * weights.sum(-1, keepdim=True)) | (top_p[:, None] == 1)
    weights = weights * kept
    return tokens, weights / weights.sum(-1, keepdim=True)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """One token a row, by inversion: the first whose cumulative probability exceeds the row's number.

    Args:
        uniform: ``(rows,)``, float64 in [0, 1).

    The other arguments: as :func:`filtered`. Returns ``(rows,)``.
    """
    tokens, probabilities = filtered(logits, temperature, top_k, top_p)
    cumulative = probabilities.cumsum(-1)
    place = (cumulative <= uniform[:, None]).sum(-1, keepdim=True)
    # Rounding may leave the last sum just below 1.
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(place, last))[:, 0]


class Candidate(NamedTuple):
    """A beam, one token longer."""

    parent: int  # which beam
    token: int
    score: float  # log-probability of all that was generated


def extend_beams(logits: Tensor, scores: Tensor, count: int) -> list[Candidate]:
    """The ``count`` likeliest ways to go on with one token, the likeliest first.

    Args:
        logits: ``(beams, vocabulary)``.
        scores: ``(beams,)`` in float64, the log-probability of each beam so far.
    """
    total = scores[:, None] + logits.double().log_softmax(-1)
    best = total.flatten().sort(descending=True, stable=True)
    return [
        Candidate(*divmod(place, logits.shape[-1]), score)
        for place, score in zip(
            best.indices[:count].tolist(), best.values[:count].tolist(), strict=True
        )
    ]


def _check_whole(name: str, number: object, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {number!r}")


def _check_real(name: str, number: object, least: float, most: float) -> None:
    right = isinstance(number, Real) and not isinstance(number, bool)
    if not right or not least <= number <= most or number == float("inf"):
        upper = "" if most == float("inf") else f" and at most {most}"
        raise ValueError(f"{name} must be a finite number, at least {least}{upper}; got {number!r}")
