"""The engine: requests come in, tokens come out, and a step computes the next tokens of all of them.

::

    engine = Engine(load("serving/weights"), num_blocks=512)
    engine.generate([[72, 105]], SamplingParams(max_new_tokens=20))

or, for requests that come and go::

    engine.add([72, 105], SamplingParams())
    while engine.busy:
        for output in engine.step():
            ...

A step lets the scheduler plan, the runner compute and the sampler choose; the scheduler then takes note of
what was chosen. A request that fails, or is cancelled, gives its blocks back and leaves the others alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from kernels import paged as paged_kernels
from serving import sampler
from serving.allocator import Allocator
from serving.model import Model
from serving.runner import Runner
from serving.sampler import SamplingParams
from serving.scheduler import Continuation, Scheduler, StepPlan
from serving.sequence import SequenceGroup


@dataclass(frozen=True)
class Output:
    """News of a request: tokens of one of its sequences, or its end with an error.

    Attributes:
        index: which of the request's ``n`` sequences; None with an error.
        tokens: its next tokens; all at once for a beam search.
        finish_reason: "stop" or "length" with a sequence's last tokens, "error" with an error.
        last: whether this is the last news of the request.
    """

    request: int
    index: int | None
    tokens: list[int]
    finish_reason: str | None
    last: bool = False
    error: BaseException | None = None


@dataclass(frozen=True)
class Completion:
    """A finished sequence of a request."""

    tokens: list[int]
    finish_reason: str


@dataclass
class Branch:
    """One growing sequence of a request."""

    index: int
    tokens: list[int]
    score: float = 0.0  # a beam's log-probability


@dataclass
class Request:
    """What the sampler knows about a request; the scheduler knows the rest."""

    group: SequenceGroup
    params: SamplingParams
    numbers: list[np.ndarray]  # each sequence's random numbers
    branches: list[Branch]  # in the order of the group's sequences
    hypotheses: list[tuple[float, Completion]] = field(default_factory=list)  # finished beams


@dataclass
class Choice:
    """How a request goes on after a step."""

    continuations: list[Continuation]
    outputs: list[Output]
    branches: list[Branch]
    hypotheses: list[tuple[float, Completion]]


class Engine:
    """Serves requests with one model on one GPU.

    Args:
        num_blocks, cpu_blocks: blocks for keys and values in the GPU's memory and, for swapping, in
            the CPU's.
        block_size: tokens a block.
        token_budget, max_sequences: the most tokens and sequences in a step.
        preemption: "swap" or "recompute": what happens to a request that has to make room.
        watermark: the part of the blocks kept free when a request is let in.
        end_token: ends every sequence that generates it.
        graphs: whether decode steps are recorded as CUDA graphs, where there is a GPU.
        paged: the functions on paged memory; kernels.paged or another with the same ones.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        cpu_blocks: int = 0,
        block_size: int = 16,
        token_budget: int = 512,
        max_sequences: int = 64,
        preemption: str = "swap",
        watermark: float = 0.01,
        end_token: int | None = None,
        graphs: bool = True,
        paged=paged_kernels,
    ) -> None:
        self.config = model.config
        self.end_token = end_token
        allocator = Allocator(num_blocks, cpu_blocks, block_size=block_size, watermark=watermark)
        self.scheduler = Scheduler(
            allocator,
            token_budget=token_budget,
            max_sequences=max_sequences,
            preemption=preemption,
        )
        self.runner = Runner(
            model,
            num_blocks=num_blocks,
            cpu_blocks=cpu_blocks,
            block_size=block_size,
            max_sequences=max_sequences,
            graphs=graphs,
            paged=paged,
        )
        self.requests: dict[int, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether there are requests that have not ended."""
        return bool(self.requests)

    def add(
        self, prompt: Iterable[int], params: SamplingParams | None = None, *, salt: bytes = b""
    ) -> int:
        """Accept a request; returns its number.

        Args:
            prompt: token numbers, at least one.
            salt: prefixes are shared only between requests with the same salt.

        Raises:
            TypeError, ValueError: a prompt or parameters that cannot be served; nothing is changed.
        """
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"params must be SamplingParams, got {type(params).__name__}")
        prompt = list(prompt)
        computed = len(prompt) + params.max_new_tokens - 1  # the last token is not read again
        if computed > self.config.positions:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and max_new_tokens is "
                f"{params.max_new_tokens}; together they are at most {self.config.positions + 1} "
                "with this model"
            )
        for token in prompt:
            if isinstance(token, Integral) and token >= self.config.vocabulary:
                raise ValueError(f"a token is below {self.config.vocabulary}, got {token}")
        group = self.scheduler.add(
            prompt, max_new_tokens=params.max_new_tokens, parallel=params.n, salt=salt
        )
        numbers = []
        if not params.beam_search:
            count = params.max_new_tokens
            numbers = [sampler.draw(params.seed, index, count) for index in range(params.n)]
        self.requests[group.number] = Request(group, params, numbers, [Branch(0, [])])
        return group.number

    def cancel(self, request: int) -> bool:
        """Remove a request between two steps; returns whether it was still there."""
        self.requests.pop(request, None)
        return self.scheduler.cancel(request)

    def step(self) -> list[Output]:
        """Compute the next tokens of as many requests as fit; returns what is new."""
        if not self.requests:
            return []
        plan = self.scheduler.schedule()
        try:
            choices = self._choose(plan, self.runner.execute(plan))
        except BaseException as error:
            failed = [self._failure(group) for group in self.scheduler.fail_step(error)]
            if not isinstance(error, Exception):
                raise
            return failed
        results = {
            number: choice if isinstance(choice, Exception) else choice.continuations
            for number, choice in choices.items()
        }
        ended = {group.number: group for group in self.scheduler.finish_step(results)}
        outputs = []
        for number, choice in choices.items():
            request = self.requests[number]
            if isinstance(choice, Exception):
                outputs.append(self._failure(request.group))
                continue
            request.branches, request.hypotheses = choice.branches, choice.hypotheses
            outputs += choice.outputs
            if number in ended:
                outputs[-1] = replace(outputs[-1], last=True)
                del self.requests[number]
        return outputs

    def generate(
        self,
        prompts: Sequence[Iterable[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[list[Completion]]:
        """Serve some requests to their end; returns each prompt's ``n`` completions.

        Args:
            params: for all prompts, or one for each.

        Raises:
            RuntimeError: the engine serves other requests, or a request failed.
        """
        if self.busy:
            raise RuntimeError("the engine is busy with other requests: use add and step")
        if params is None or isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts, but {len(params)} params")
        numbers: list[int] = []
        found: dict[int, dict[int, Completion]] = {}
        try:
            for prompt, own in zip(prompts, params, strict=True):
                numbers.append(self.add(prompt, own))
                found[numbers[-1]] = {}
            tokens: dict[tuple[int, int], list[int]] = {}
            while self.busy:
                for output in self.step():
                    if output.error is not None:
                        place = numbers.index(output.request)
                        raise RuntimeError(
                            f"the request of prompt {place} failed"
                        ) from output.error
                    grown = tokens.setdefault((output.request, output.index), [])
                    grown += output.tokens
                    if output.finish_reason:
                        completion = Completion(grown, output.finish_reason)
                        found[output.request][output.index] = completion
        finally:
            for number in numbers:
                self.cancel(number)
        return [[found[number][index] for index in sorted(found[number])] for number in numbers]

    # Choosing tokens. Nothing is changed until the whole step has gone well.

    def _choose(self, plan: StepPlan, logits: Tensor) -> dict[int, Choice | Exception]:
        """How each request that samples goes on."""
        rows: dict[int, list[int]] = {}
        for row, run in enumerate(run for run in plan.runs if run.samples):
            rows.setdefault(run.request, []).append(row)
        finite = logits.isfinite().all(-1).tolist()
        choices, sampled = {}, {}
        for number, own in rows.items():
            request = self.requests[number]
            if not all(finite[row] for row in own):
                choices[number] = ValueError("the model's logits are not finite numbers")
            elif request.params.beam_search:
                choices[number] = self._search(request, logits[own])
            else:
                sampled[number] = own
        return choices | self._sample(sampled, logits)

    def _sample(self, rows: dict[int, list[int]], logits: Tensor) -> dict[int, Choice]:
        """Each sequence's next token; after a prompt, that of all ``n`` sequences.

        Args:
            rows: each request's rows of logits, in the order of its sequences.
        """
        drawn = []  # (request, branch, its place among the request's sequences)
        places, options = [], []
        for number, own in rows.items():
            request = self.requests[number]
            params, branches = request.params, [*enumerate(request.branches)]
            if not request.branches[0].tokens:
                branches = [(0, Branch(index, [])) for index in range(params.n)]
            for parent, branch in branches:
                drawn.append((request, branch, parent))
                places.append(own[parent])
                top_k = params.top_k or self.config.vocabulary
                uniform = request.numbers[branch.index][len(branch.tokens)]
                options.append((params.temperature, top_k, params.top_p, uniform))
        tokens = _tokens(logits[places], options) if places else []
        choices = {number: Choice([], [], [], []) for number in rows}
        for (request, branch, parent), token in zip(drawn, tokens, strict=True):
            number, grown = request.group.number, [*branch.tokens, token]
            reason = self._finish_reason(request.params, grown)
            choice = choices[number]
            choice.continuations.append(
                Continuation([*request.group.sequences][parent], token, ends=reason is not None)
            )
            choice.outputs.append(Output(number, branch.index, [token], reason))
            if reason is None:
                choice.branches.append(Branch(branch.index, grown))
        return choices

    def _search(self, request: Request, logits: Tensor) -> Choice:
        """One step of beam search.

        Of the 2n likeliest ways to go on, those among the first n that end become hypotheses, and the
        first n others grow. It is over when no beam can still beat the n best hypotheses.
        """
        params, number = request.params, request.group.number
        scores = torch.tensor([branch.score for branch in request.branches], dtype=torch.float64)
        sequences = [*request.group.sequences]
        continuations, growing, found = [], [], [*request.hypotheses]
        for rank, (parent, token, score) in enumerate(
            sampler.extend_beams(logits, scores.to(logits.device), 2 * params.n)
        ):
            tokens = [*request.branches[parent].tokens, token]
            reason = self._finish_reason(params, tokens)
            if reason is None and len(growing) < params.n:
                growing.append(Branch(len(growing), tokens, score))
                continuations.append(Continuation(sequences[parent], token))
            elif reason is not None and rank < params.n:
                penalized = score / len(tokens) ** params.length_penalty
                found.append((penalized, Completion(tokens, reason)))
        best = sorted(found, key=lambda hypothesis: -hypothesis[0])[: params.n]
        # A log-probability only falls, so at best it stays, at the length that helps it most.
        longest = params.max_new_tokens**params.length_penalty
        if growing and (len(best) < params.n or growing[0].score / longest > best[-1][0]):
            return Choice(continuations, [], growing, best)
        outputs = [
            Output(number, index, completion.tokens, completion.finish_reason)
            for index, (_, completion) in enumerate(best)
        ]
        return Choice([], outputs, [], best)

    def _finish_reason(self, params: SamplingParams, tokens: list[int]) -> str | None:
        if tokens[-1] == self.end_token or params.stops(tokens):
            return "stop"
        return "length" if len(tokens) == params.max_new_tokens else None

    def _failure(self, group: SequenceGroup) -> Output:
        del self.requests[group.number]
        return Output(group.number, None, [], "error", last=True, error=group.error)


def _tokens(logits: Tensor, options: list[tuple[float, int, float, float]]) -> list[int]:
    """One token a row; options are its temperature, top-k, top-p and random number."""
    if all(temperature == 0 for temperature, *_ in options):
        return sampler.greedy(logits).tolist()
    options = torch.tensor(options, dtype=torch.float64, device=logits.device)
    return sampler.sample(logits, *options.T).tolist()
