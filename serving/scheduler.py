"""Continuous batching: which sequences run which tokens in the next step, and who makes room.

A step gives every running sequence its next token and spends what is left of its token budget on
prompts, in chunks. Requests join and leave the batch between any two steps.

- First come, first served. When blocks run out, the request that arrived last gives back all of its
  blocks (all or nothing: a sequence without some of its keys and values cannot run). Its blocks are
  swapped to the CPU, or dropped and computed again later. It comes back before any later arrival.
- A request that could not end even alone is refused when it is added. So the earliest request can
  always go on, and every request that was accepted ends.
- A step that fails names nobody. What it ran is computed again, each request alone until its next
  token, so that one that breaks every step ends with its error and takes no other with it.

The scheduler hands out plans and takes results; it knows no model and no tensor::

    while scheduler.groups:
        plan = scheduler.schedule()
        ...                                  # carry it out, sample
        scheduler.finish_step(results)       # or scheduler.fail_step(error)

Sources: Kwon et al. 2023 (PagedAttention), section 4.5, on preemption; Yu et al. 2022 (Orca), on
scheduling each iteration anew; Agrawal et al. 2024 (Sarathi-Serve), on chunked prefills.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from numbers import Integral
from typing import NamedTuple

from serving.allocator import Allocator, Copy, NoFreeBlocks
from serving.sequence import Sequence, SequenceGroup, State

PREEMPTION = ("swap", "recompute")


class Run(NamedTuple):
    """Tokens of one sequence to compute in a step."""

    request: int
    sequence: int
    tokens: list[int]
    start: int  # the position of the first of them; those before are in memory
    slots: list[int]  # where to write the keys and values of each token
    block_table: list[int]  # where to read those of all positions up to the last token
    samples: bool  # whether the last token's output chooses the next token


@dataclass
class StepPlan:
    """What to do in one step, in this order: swap out, swap in, copy, then write and attend."""

    swap_out: list[Copy] = field(default_factory=list)  # from GPU to CPU
    swap_in: list[Copy] = field(default_factory=list)  # from CPU to GPU
    copies: list[Copy] = field(default_factory=list)  # on the GPU
    runs: list[Run] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)  # requests that lost their place
    resumed: list[int] = field(default_factory=list)  # requests that were swapped in
    num_tokens: int = 0  # of all runs

    def add(self, run: Run) -> None:
        self.runs.append(run)
        self.num_tokens += len(run.tokens)


class Continuation(NamedTuple):
    """A sequence goes on with a token, and perhaps ends with it."""

    parent: int
    token: int
    ends: bool = False


class Scheduler:
    """Plans steps for requests that share the blocks of one allocator.

    Args:
        token_budget: the most tokens computed in a step.
        max_sequences: the most sequences in a step.
        preemption: "swap" (where the CPU has room, else recompute) or "recompute".
        max_failures: failed steps without a new token that end a request as failed. The first may be
            another's fault, so at least 2.
    """

    def __init__(
        self,
        allocator: Allocator,
        *,
        token_budget: int = 512,
        max_sequences: int = 64,
        preemption: str = "swap",
        max_failures: int = 3,
    ) -> None:
        if preemption not in PREEMPTION:
            raise ValueError(f"preemption must be one of {PREEMPTION}, got {preemption!r}")
        _check_number("token_budget", token_budget, 1)
        _check_number("max_sequences", max_sequences, 1)
        _check_number("max_failures", max_failures, 2)
        self.allocator = allocator
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.preemption = preemption
        self.max_failures = max_failures
        self.groups: dict[int, SequenceGroup] = {}  # all that have not ended, by number
        # Each in order of arrival.
        self.queues: dict[State, list[SequenceGroup]] = {
            State.WAITING: [],
            State.RUNNING: [],
            State.SWAPPED: [],
        }
        self._requests, self._sequences = count(), count()
        self._running_sequences = 0  # the most that the running requests may come to have
        self._plan: StepPlan | None = None  # of the step under way

    # Requests come and go.

    def add(
        self,
        prompt: Iterable[int],
        *,
        max_new_tokens: int,
        parallel: int = 1,
        end_token: int | None = None,
        salt: bytes = b"",
        **unknown: object,
    ) -> SequenceGroup:
        """Accept a request, or refuse it with a sentence that says why.

        Args:
            prompt: token numbers, at least one.
            max_new_tokens: a sequence ends when it has generated so many.
            parallel: the most sequences generated at a time.
            end_token: a sequence ends when it has generated this token; it is part of the output.
            salt: prefixes are shared only between requests with the same salt.

        Returns what is known about the request from now on: its state, its outputs, its error.

        Raises:
            TypeError: an unknown option, a prompt that is not made of whole numbers, a salt not of bytes.
            ValueError: an empty prompt, a number out of range, or a request that can never fit.
        """
        if unknown:
            accepted = "max_new_tokens, parallel, end_token, salt"
            raise TypeError(f"unknown option {', '.join(unknown)}; accepted: {accepted}")
        prompt = list(prompt)
        if not prompt:
            raise ValueError("the prompt is empty: a request needs at least one token")
        for token in prompt:
            if not isinstance(token, Integral):
                raise TypeError(f"a prompt is made of whole numbers, got {type(token).__name__}")
            if not 0 <= token < 2**63:
                raise ValueError(f"a token is at least 0 and below 2**63, got {token}")
        if not isinstance(salt, bytes):
            raise TypeError(f"salt must be bytes, got {type(salt).__name__}")
        _check_number("max_new_tokens", max_new_tokens, 1)
        _check_number("parallel", parallel, 1)
        most = min(self.token_budget, self.max_sequences)
        if parallel > most:
            raise ValueError(f"parallel is {parallel}, but a step has room for {most} sequences")
        self._check_fits(len(prompt), max_new_tokens, parallel)
        first = Sequence(next(self._sequences), prompt.copy())
        group = SequenceGroup(
            number=next(self._requests),
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            parallel=parallel,
            end_token=end_token,
            salt=salt,
            sequences={first.number: first},
        )
        self.groups[group.number] = group
        self._enqueue(group, State.WAITING)
        return group

    def cancel(self, request: int) -> bool:
        """Remove a request, at any time, also during a step; returns whether it was still there."""
        if request not in self.groups:
            return False
        self._end(self.groups[request], State.CANCELLED)
        return True

    # A step.

    def schedule(self) -> StepPlan:
        """Plan the next step. It must be finished or failed before the next one is planned."""
        if self._plan is not None:
            raise RuntimeError("the last step is still under way: finish or fail it first")
        self._plan = plan = StepPlan()
        if not self._run_suspect(plan):
            self._run_running(plan)
            if not plan.preempted:
                self._run_newcomers(plan)
        return plan

    def finish_step(
        self, results: Mapping[int, Iterable[Continuation] | Exception]
    ) -> list[SequenceGroup]:
        """Take a step's results; returns the requests that ended with it.

        Args:
            results: for each request with a run that samples, how its sequences go on: which parent
                with which token. A parent named twice is forked, one not named is dropped, and without
                any the request ends. An exception instead ends this request as failed.

        Raises:
            RuntimeError: no step is under way.
            ValueError: results that do not fit the plan. The step stays under way.
        """
        plan = self._step()
        results = {
            request: result if isinstance(result, Exception) else list(result)
            for request, result in results.items()
        }
        self._check_results(plan, results)
        for run in plan.runs:
            if run.request in self.groups:  # it may have been cancelled meanwhile
                sequence = self.groups[run.request].sequences[run.sequence]
                sequence.computed += len(run.tokens)
                self.allocator.commit(sequence.number, sequence.tokens, sequence.computed)
        self._plan = None
        ended = []
        for request, result in results.items():
            if request not in self.groups:
                continue
            group = self.groups[request]
            if isinstance(result, Exception):
                group.error = result
                self._end(group, State.FAILED)
            else:
                self._continue(group, result)
            if request not in self.groups:
                ended.append(group)
        return ended

    def fail_step(self, error: BaseException) -> list[SequenceGroup]:
        """Take note that a step failed, at any point of it; returns the requests that ended with it.

        Nothing that it wrote is trusted: the requests it ran or moved are computed again.
        """
        plan = self._step()
        self._plan = None
        ran = {run.request for run in plan.runs}
        ended = []
        for request in sorted(ran | {*plan.preempted, *plan.resumed}):
            if request not in self.groups:
                continue
            group = self.groups[request]
            group.failures += request in ran
            if group.failures == self.max_failures:
                group.error = error
                self._end(group, State.FAILED)
                ended.append(group)
            else:
                self._restart(group)
        return ended

    # Planning.

    def _run_suspect(self, plan: StepPlan) -> bool:
        """Run the first request whose last step failed, alone; returns whether there was room."""
        suspects = [group for group in self.groups.values() if group.failures]
        if not suspects:
            return False
        suspect = suspects[0]
        if suspect.state is not State.RUNNING and not self._admit(suspect, plan):
            return False
        return self._run_if_room(suspect, plan)

    def _run_running(self, plan: StepPlan) -> None:
        """Give all running requests their tokens, the earliest first, preempting the latest."""
        for group in self.queues[State.RUNNING].copy():
            while group.state is State.RUNNING and not group.failures:
                if self._run_if_room(group, plan):
                    break
                # Those that already run in this step arrived earlier, so they are never the victim.
                self._preempt(self.queues[State.RUNNING][-1], plan)

    def _run_newcomers(self, plan: StepPlan) -> None:
        """Let in who arrived first, until one does not fit: nobody overtakes it."""
        while plan.num_tokens < self.token_budget:
            heads = [self.queues[state][:1] for state in (State.WAITING, State.SWAPPED)]
            group = min(sum(heads, []), key=_arrival, default=None)
            if group is None or group.failures or not self._admit(group, plan):
                return
            self._run_if_room(group, plan)

    def _admit(self, group: SequenceGroup, plan: StepPlan) -> bool:
        """Give a request the blocks for its tokens so far; returns whether there was room."""
        if self._running_sequences + group.parallel > self.max_sequences:
            return False
        spare = self.allocator.spare if self.queues[State.RUNNING] else 0
        try:
            if group.state is State.SWAPPED:
                written = self._written(group)
                copies = self.allocator.swap_in(self._allocated(group), spare=spare)
                plan.swap_in += [copy for copy in copies if copy.source in written]
                plan.resumed.append(group.number)
            else:
                self._allocate(group, next(iter(group.sequences.values())), spare)
        except NoFreeBlocks:
            return False
        self._enqueue(group, State.RUNNING)
        return True

    def _run_if_room(self, group: SequenceGroup, plan: StepPlan) -> bool:
        """Plan a running request's next tokens, as far as the budget goes.

        Returns False when a block is lacking; nothing is planned then.
        """
        budget = self.token_budget - plan.num_tokens
        alone = len(group.sequences) == 1
        try:
            for sequence in group.sequences.values():
                # After a loss, siblings catch up one after another, to find each other's blocks.
                if sequence.number not in self.allocator.tables:
                    self._allocate(group, sequence, 0)
                if sequence.missing > 1:
                    # All but the last token, because all siblings are sampled in the same step.
                    chunk = min(budget, sequence.missing - (not alone))
                    if chunk:
                        plan.add(self._run(group, sequence, chunk))
                    return True
            if len(group.sequences) <= budget:
                plan.copies += self.allocator.append(
                    sequence.number
                    for sequence in group.sequences.values()
                    if self.allocator.tables[sequence.number].length < len(sequence.tokens)
                )
                for sequence in group.sequences.values():
                    plan.add(self._run(group, sequence, 1))
        except NoFreeBlocks:
            return False
        return True

    def _run(self, group: SequenceGroup, sequence: Sequence, chunk: int) -> Run:
        start, stop = sequence.computed, sequence.computed + chunk
        return Run(
            group.number,
            sequence.number,
            sequence.tokens[start:stop],
            start,
            self.allocator.slots(sequence.number, start, stop),
            self.allocator.tables[sequence.number].blocks.copy(),
            samples=stop == len(sequence.tokens),
        )

    def _preempt(self, group: SequenceGroup, plan: StepPlan) -> None:
        plan.preempted.append(group.number)
        # A suspect is never swapped: let in and pushed out by the same plan, it would be swapped out
        # before it was swapped in.
        if self.preemption == "swap" and not group.failures:
            written = self._written(group)
            try:
                copies = self.allocator.swap_out(self._allocated(group))
            except NoFreeBlocks:
                pass  # the CPU's blocks have run out as well
            else:
                plan.swap_out += [copy for copy in copies if copy.source in written]
                self._enqueue(group, State.SWAPPED)
                return
        self._restart(group)

    # What happens to a request.

    def _continue(self, group: SequenceGroup, continuations: list[Continuation]) -> None:
        """Fork, drop and lengthen a request's sequences, and end those that are complete."""
        group.failures = 0
        parents, group.sequences = group.sequences, {}
        for parent, _, _ in continuations:
            child = parents[parent]
            if parent in group.sequences:
                child = Sequence(next(self._sequences), child.tokens.copy(), child.computed)
                self.allocator.fork(parent, child.number)
            group.sequences[child.number] = child
        for parent in parents:  # in their order, so that the same step frees the same blocks first
            if parent not in group.sequences:
                self.allocator.free(parent)
        for child, (_, token, ends) in zip([*group.sequences.values()], continuations, strict=True):
            child.tokens.append(token)
            generated = child.tokens[len(group.prompt) :]
            if ends or token == group.end_token or len(generated) == group.max_new_tokens:
                group.outputs.append(generated)
                self.allocator.free(child.number)
                del group.sequences[child.number]
        if not group.sequences:
            self._end(group, State.FINISHED)

    def _restart(self, group: SequenceGroup) -> None:
        """Drop a request's keys and values, not its tokens, and let it wait to be computed again."""
        self._free(group)
        self._enqueue(group, State.WAITING)

    def _end(self, group: SequenceGroup, state: State) -> None:
        self._free(group)
        self._dequeue(group)
        group.state = state
        del self.groups[group.number]

    def _enqueue(self, group: SequenceGroup, state: State) -> None:
        self._dequeue(group)
        group.state = state
        self._running_sequences += group.parallel * (state is State.RUNNING)
        insort(self.queues[state], group, key=_arrival)

    def _dequeue(self, group: SequenceGroup) -> None:
        queue = self.queues[group.state]
        place = bisect_left(queue, group.number, key=_arrival)
        if place < len(queue) and queue[place] is group:
            del queue[place]
            self._running_sequences -= group.parallel * (group.state is State.RUNNING)

    def _allocate(self, group: SequenceGroup, sequence: Sequence, spare: int) -> None:
        sequence.computed = self.allocator.allocate(
            sequence.number, sequence.tokens, salt=group.salt, spare=spare
        )

    def _allocated(self, group: SequenceGroup) -> list[int]:
        return [number for number in group.sequences if number in self.allocator.tables]

    def _written(self, group: SequenceGroup) -> set[int]:
        """The blocks that hold keys and values already: only they are worth a copy."""
        return {
            block
            for number in self._allocated(group)
            for block in self.allocator.tables[number].blocks[
                : self.allocator.blocks_for(group.sequences[number].computed)
            ]
        }

    def _free(self, group: SequenceGroup) -> None:
        for number in self._allocated(group):
            self.allocator.free(number)
            group.sequences[number].computed = 0

    # Checks.

    def _check_fits(self, prompt: int, new: int, parallel: int) -> None:
        # The last token is never computed, so it needs no slot. Only full blocks of the prompt are
        # sure to be shared.
        size, blocks = self.allocator.block_size, len(self.allocator.gpu.reference_counts)
        shared = prompt // size
        needed = shared + parallel * (self.allocator.blocks_for(prompt + new - 1) - shared)
        if needed > blocks:
            raise ValueError(
                f"the request can never fit: {parallel} x {prompt + new - 1} tokens "
                f"({prompt} of prompt, {new - 1} generated and read again) need {needed * size} slots "
                f"in blocks of {size}, and the cache has {blocks * size}"
            )

    def _check_results(
        self, plan: StepPlan, results: Mapping[int, list[Continuation] | Exception]
    ) -> None:
        sampled = {run.request for run in plan.runs if run.samples}
        lacking = sampled & self.groups.keys() - results.keys()
        surplus = results.keys() - sampled
        if lacking or surplus:
            raise ValueError(
                f"results must be for the requests that sample in this step: "
                f"lacking {sorted(lacking)}, not asked for {sorted(surplus)}"
            )
        for request in results.keys() & self.groups.keys():
            result, group = results[request], self.groups[request]
            if isinstance(result, Exception):
                continue
            strangers = {parent for parent, *_ in result} - group.sequences.keys()
            if strangers:
                raise ValueError(
                    f"request {request} has no sequences {sorted(strangers)}; "
                    f"it has {sorted(group.sequences)}"
                )
            growing = sum(not ends for *_, ends in result)
            if growing > group.parallel:
                raise ValueError(
                    f"request {request} may have {group.parallel} sequences, "
                    f"and {growing} would go on"
                )

    def _step(self) -> StepPlan:
        if self._plan is None:
            raise RuntimeError("no step is under way: call schedule first")
        return self._plan


def _arrival(group: SequenceGroup) -> int:
    return group.number


def _check_number(name: str, number: object, least: int) -> None:
    if not isinstance(number, int) or number < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {number!r}")
