"""What the engine generates is what the plain model does, whatever happens to its memory."""

from dataclasses import replace
from random import Random

import pytest
import torch

import kernels
from kernels import paged
from serving import tokenizer
from serving.engine import Completion, Engine
from serving.model import WEIGHTS, load
from serving.sampler import SamplingParams
from serving.scheduler import Run
from serving.sequence import State
from tests.serving import torch_paged
from tests.serving.memory import check_pools
from tests.serving.tiny import (
    CONFIG,
    check_plain,
    plain_beams,
    plain_logits,
    through_kernels,
    tiny_model,
)
from tests.serving.worker import check_scheduler

GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def make(model, paged=torch_paged, **options) -> Engine:
    sizes = {"num_blocks": 32, "block_size": 4, "token_budget": 32, "max_sequences": 8}
    # The stand-in looks at its numbers, which a CUDA graph cannot.
    graphs = {"graphs": paged is kernels.paged}
    return Engine(model, **sizes | graphs | options, paged=paged)


def remember_plans(engine: Engine) -> list:
    plans, schedule = [], engine.scheduler.schedule

    def remembering():
        plans.append(schedule())
        return plans[-1]

    engine.scheduler.schedule = remembering
    return plans


def run(engine: Engine) -> dict[int, list[Completion]]:
    """Step until every request has ended; returns the completions of those that were not lost."""
    tokens, found = {}, {}
    while engine.busy:
        for output in engine.step():
            assert output.error is None
            key = output.request, output.index
            tokens.setdefault(key, []).extend(output.tokens)
            if output.finish_reason:
                completion = Completion(tokens[key], output.finish_reason)
                found.setdefault(output.request, {})[output.index] = completion
            assert not output.last or output.request not in engine.requests
    return {number: [own[index] for index in sorted(own)] for number, own in found.items()}


def check_empty(engine: Engine) -> None:
    check_pools(engine.scheduler.allocator)
    check_scheduler(engine.scheduler)
    assert not engine.scheduler.allocator.tables
    assert not engine.requests


def prompts_of(count: int, length: int, seed: int = 0) -> list[list[int]]:
    random = Random(seed)
    return [[random.randrange(CONFIG.vocabulary) for _ in range(length)] for _ in range(count)]


# The stand-in for the kernels.


def random_cache(blocks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(blocks)
    return torch.randn(2, 2, blocks, 4, 2, 16, generator=generator).to(kernels.device())


def on_device(*numbers, dtype=torch.int32) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype, device=kernels.device())


def check_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    # Convex combinations of at most 16 numbers in float32, with scores of a few units.
    assert (got - expected).abs().max() < 1000 * 2.0**-24


def test_the_stand_in_attends_as_the_kernels_do():
    keys, values = random_cache(9)[0]
    query = torch.randn(7, 4, 16, generator=torch.Generator().manual_seed(0)).to(kernels.device())
    tables = on_device([3, 0, 8, 1], [2, 5, 0, 0], [7, 7, 7, 7])
    lengths = on_device(13, 5, 0)
    got, expected = (
        module.decode(query[:3], keys, values, tables, lengths) for module in (torch_paged, paged)
    )
    check_close(got, expected)
    starts, options = on_device(0, 4, 7), {"max_query_length": 4}
    got, expected = (
        module.prefill(query, keys, values, tables[:2], starts, lengths[:2], **options)
        for module in (torch_paged, paged)
    )
    check_close(got, expected)


def test_the_stand_in_moves_and_writes_as_the_kernels_do():
    caches = [random_cache(9), random_cache(9)]
    for cache, module in zip(caches, (torch_paged, paged), strict=True):
        new = torch.randn(2, 5, 2, 16, generator=torch.Generator().manual_seed(1)).to(cache.device)
        slots = on_device(7, -1, 35, 0, 6, dtype=torch.int64)
        module.append(*new, *cache[1], slots)
        module.copy_blocks(cache, on_device([0, 4], [8, 5], dtype=torch.int64))
        other = random_cache(3)
        module.swap_blocks(other, cache, torch.tensor([[0, 1], [2, 3]]))
    assert torch.equal(*caches)


def test_the_plain_model_is_the_same_with_pytorchs_attention(model):
    rows = prompts_of(2, 17)
    for got, expected in zip(
        plain_logits(model, rows), plain_logits(model, rows, through_kernels), strict=True
    ):
        assert (got - expected).abs().max() < 1000 * 2.0**-24 * expected.abs().max()


# Through the kernels themselves.


@pytest.mark.parametrize(
    ("options", "happens"),
    [
        ({"token_budget": 5}, "chunked"),
        ({"num_blocks": 9, "cpu_blocks": 9}, "swapped"),
        ({"num_blocks": 9, "preemption": "recompute"}, "computed again"),
    ],
    ids=str,
)
def test_greedy_tokens_through_the_kernels_are_the_plain_models(model, options, happens):
    engine = make(model, paged, **options)
    plans = remember_plans(engine)
    prompts = prompts_of(3, 9)
    completions = engine.generate(prompts, GREEDY)
    served = [(p, GREEDY, c) for p, c in zip(prompts, completions, strict=True)]
    check_plain(model, served, plain=through_kernels)
    assert len({tuple(c.tokens) for (c,) in completions}) == 3, "a dull model tests nothing"
    chunks = [run for plan in plans for run in plan.runs if not run.samples]
    swapped = [plan for plan in plans if plan.swap_out]
    preempted = [plan for plan in plans if plan.preempted]
    assert bool(chunks) == (happens == "chunked")
    assert bool(swapped) == (happens == "swapped")
    assert bool(preempted) == (happens != "chunked")
    check_empty(engine)


def test_forks_through_the_kernels_are_the_plain_models(model):
    engine = make(model, paged)
    plans = remember_plans(engine)
    prompts = prompts_of(2, 6)
    sampled = SamplingParams(max_new_tokens=5, n=3, seed=5, temperature=1.5, top_k=9)
    beams = SamplingParams(max_new_tokens=5, n=3, beam_search=True)
    completions = engine.generate(prompts, [sampled, beams])
    check_plain(model, [(prompts[0], sampled, completions[0])], plain=through_kernels)
    assert completions[1] == plain_beams(model, prompts[1], beams)
    assert any(plan.copies for plan in plans)
    check_empty(engine)


def test_a_known_prefix_through_the_kernels_is_not_computed_again(model):
    engine = make(model, paged)
    (prompt,) = prompts_of(1, 11)
    for tail in ([], [1, 2]):
        plans = remember_plans(engine)
        (completions,) = engine.generate([[*prompt, *tail]], GREEDY)
        check_plain(model, [([*prompt, *tail], GREEDY, completions)], plain=through_kernels)
        assert plans[0].num_tokens == (5 if tail else 11)  # two of its blocks are known


def test_the_trained_model_spells():
    model = load(WEIGHTS, torch.float32)
    engine = make(model, paged, end_token=tokenizer.END)
    prompt, params = tokenizer.encode("FlashAtten"), replace(GREEDY, max_new_tokens=4)
    (completions,) = engine.generate([prompt], params)
    assert tokenizer.decode(completions[0].tokens) == "tion"
    check_plain(model, [(prompt, params, completions)], plain=through_kernels)


# Choosing.


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=12, seed=1),
        SamplingParams(max_new_tokens=12, seed=2, temperature=0.7, top_p=0.8, n=4),
        SamplingParams(max_new_tokens=12, seed=3, top_k=3, n=2),
    ],
    ids=str,
)
def test_sampled_tokens_do_not_depend_on_who_else_is_served(model, params):
    (prompt, *others) = prompts_of(4, 7)
    alone = make(model).generate([prompt], params)[0]
    engine = make(model, num_blocks=24, cpu_blocks=24)
    number = engine.add(prompt, params)
    for seed, other in enumerate(others):
        engine.add(other, replace(params, seed=100 + seed))
    assert run(engine)[number] == alone
    check_plain(model, [(prompt, params, alone)])
    check_empty(engine)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("end_token", [None, 3])
def test_beams_are_those_of_the_plain_model(model, length_penalty, end_token):
    params = SamplingParams(
        max_new_tokens=6, n=3, beam_search=True, length_penalty=length_penalty, stop=((7,),)
    )
    for prompt in prompts_of(3, 5, seed=1):
        engine = make(model, end_token=end_token)
        expected = plain_beams(model, prompt, params, end_token)
        assert engine.generate([prompt], params) == [expected]
        check_empty(engine)


def test_enough_beams_find_the_likeliest_of_all_sequences():
    model = tiny_model(replace(CONFIG, vocabulary=4))
    params = SamplingParams(max_new_tokens=3, n=16, beam_search=True)
    (found,) = make(model, num_blocks=64, max_sequences=16).generate([[1, 2]], params)
    texts = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    logits = torch.stack(plain_logits(model, [[1, 2, *text[:-1]] for text in texts]))
    tokens = torch.tensor(texts, device=logits.device)
    chosen = logits[:, 1:].log_softmax(-1).gather(-1, tokens[..., None])
    order = chosen.double().sum((1, 2)).argsort(descending=True).tolist()
    assert [completion.tokens for completion in found] == [texts[place] for place in order[:16]]


def test_a_sequence_ends_with_the_end_token_a_stop_or_its_length(model):
    (prompt,) = prompts_of(1, 5)
    ((whole,),) = make(model).generate([prompt], GREEDY)
    tokens = whole.tokens
    assert whole.finish_reason == "length"
    pair = (tokens[3], tokens[4])
    first = next(i for i in range(1, 8) if (tokens[i - 1], tokens[i]) == pair)
    stopped = replace(GREEDY, stop=(pair, (99, 99)))
    ((got,),) = make(model).generate([prompt], stopped)
    assert got == Completion(tokens[: first + 1], "stop")
    ((got,),) = make(model, end_token=tokens[0]).generate([prompt], GREEDY)
    assert got == Completion(tokens[:1], "stop")


# What goes wrong.


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ([], {}, ValueError, "the prompt is empty"),
        ([1.5], {}, TypeError, "a prompt is made of whole numbers, got float"),
        ([-1], {}, ValueError, "a token is at least 0"),
        ([23], {}, ValueError, "a token is below 23, got 23"),
        ([1] * 60, {"max_new_tokens": 6}, ValueError, "60 tokens .* 6; .* at most 65 with this"),
        ([1] * 30, {"max_new_tokens": 20}, ValueError, "can never fit.*the cache has 48"),
        ([1], {"n": 9}, ValueError, "parallel is 9, but a step has room for 8"),
        ([1], {"temprature": 1.0}, TypeError, "temprature"),
        ([1], None, TypeError, "params must be SamplingParams, got dict"),
    ],
)
def test_a_bad_request_is_refused_and_harms_nobody(model, prompt, params, error, message):
    engine = make(model, num_blocks=12)
    (good,) = prompts_of(1, 5)
    number = engine.add(good, GREEDY)
    engine.step()
    with pytest.raises(error, match=message):
        engine.add(prompt, {} if params is None else SamplingParams(**params))
    check_plain(model, [(good, GREEDY, run_from(engine, number, 1))])
    check_empty(engine)


def run_from(engine: Engine, number: int, done: int) -> list[Completion]:
    """The completions of a request with one sequence, of which so many tokens were given already."""
    before = [*engine.requests[number].branches[0].tokens]
    assert len(before) == done
    return [Completion(before + c.tokens, c.finish_reason) for c in run(engine)[number]]


@pytest.mark.parametrize("state", [State.WAITING, State.RUNNING, State.SWAPPED])
def test_a_cancelled_request_leaves_nothing_behind(model, state):
    engine = make(model, num_blocks=7, cpu_blocks=7)
    kept, lost = prompts_of(2, 9)
    number, other = engine.add(kept, GREEDY), engine.add(lost, GREEDY)
    given = []
    while engine.requests[other].group.state is not state:
        given += [output for output in engine.step() if output.request == number]
    assert engine.cancel(other)
    assert not engine.cancel(other)
    (rest,) = run(engine)[number]
    tokens = [token for output in given for token in output.tokens]
    check_plain(model, [(kept, GREEDY, [Completion(tokens + rest.tokens, "length")])])
    check_empty(engine)


def test_logits_that_are_no_numbers_end_their_request_alone():
    model = tiny_model(replace(CONFIG, rotary_base=None))
    model.positions.weight[12] = float("nan")
    engine = make(model, num_blocks=8)
    prompts = prompts_of(2, 4)
    good = engine.add(prompts[0], GREEDY)
    bad = engine.add(prompts[1], replace(GREEDY, max_new_tokens=20))
    outputs = []
    while engine.busy:
        outputs += engine.step()
    (failed,) = (output for output in outputs if output.error is not None)
    assert failed.request == bad
    assert failed.last
    assert str(failed.error) == "the model's logits are not finite numbers"
    tokens = [t for output in outputs if output.request == good for t in output.tokens]
    # The plain model computes what comes after in the same pass, so it gets only what is needed.
    check_plain(model, [(prompts[0], GREEDY, [Completion(tokens, "length")])])
    check_empty(engine)
    # Blocks that hold what is no number do no harm to who gets them next.
    prompts = prompts_of(3, 4, seed=2)
    completions = engine.generate(prompts, GREEDY)
    check_plain(model, [(p, GREEDY, c) for p, c in zip(prompts, completions, strict=True)])


class Faulty:
    """The paged functions, any of which may fail, before or after its work."""

    def __init__(self, random: Random, probability: float) -> None:
        self.random, self.probability = random, probability

    def __getattr__(self, name):
        def call(*arguments, **options):
            when = self.random.random()
            if when < self.probability / 2:
                raise RuntimeError("out of memory")
            result = getattr(torch_paged, name)(*arguments, **options)
            if when < self.probability:
                raise RuntimeError("an illegal address")
            return result

        return call


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("seed", range(2))
def test_random_requests_with_faults_at_any_step_are_served_or_named(model, preemption, seed):
    random = Random(f"{preemption} {seed}")
    engine = make(
        model,
        Faulty(random, 0.01),
        num_blocks=24,
        cpu_blocks=12,
        token_budget=12,
        preemption=preemption,
        end_token=5,
    )
    prefixes = prompts_of(4, 9, seed)
    requests, tokens, found, ended = {}, {}, {}, []
    while len(requests) < 150 or engine.busy:
        while len(requests) < 150 and len(engine.requests) < 6:
            prompt = random.choice(prefixes)[: random.randint(1, 9)]
            prompt += [random.randrange(CONFIG.vocabulary) for _ in range(random.randint(0, 9))]
            params = SamplingParams(
                max_new_tokens=random.randint(1, 16),
                temperature=random.choice([0, 0.8, 1.5]),
                top_k=random.choice([None, 5]),
                top_p=random.choice([1.0, 0.9]),
                n=random.choice([1, 1, 2, 3]),
                beam_search=random.random() < 0.2,
                seed=random.randrange(1000),
            )
            requests[engine.add(prompt, params)] = prompt, params
        for output in engine.step():
            if output.error is None:
                key = output.request, output.index
                tokens.setdefault(key, []).extend(output.tokens)
                if output.finish_reason:
                    completion = Completion(tokens[key], output.finish_reason)
                    found.setdefault(output.request, {})[output.index] = completion
            if output.last:
                ended.append((output.request, output.error is None))
        if engine.busy and random.random() < 0.03:
            number = random.choice([*engine.requests])
            assert engine.cancel(number)
            ended.append((number, False))
        check_pools(engine.scheduler.allocator)
        check_scheduler(engine.scheduler)
        assert engine.requests.keys() == engine.scheduler.groups.keys()
    assert sorted(number for number, _ in ended) == [*requests]
    served = [number for number, whole in ended if whole]
    assert len(served) > 100
    plain = []
    for number in served:
        prompt, params = requests[number]
        completions = [found[number][index] for index in range(len(found[number]))]
        if params.beam_search:
            assert completions == plain_beams(model, prompt, params, end_token=5)
        else:
            assert len(completions) == params.n
            plain.append((prompt, params, completions))
    check_plain(model, plain, end_token=5)
    check_empty(engine)


def test_an_interrupted_step_leaves_the_engine_usable(model):
    engine = make(model)
    (prompt,) = prompts_of(1, 5)
    number = engine.add(prompt, GREEDY)
    compute = engine.runner.compute

    def interrupted(runs):
        raise KeyboardInterrupt

    engine.runner.compute = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.runner.compute = compute
    check_plain(model, [(prompt, GREEDY, run(engine)[number])])


def test_a_request_that_always_fails_is_named_by_generate(model):
    engine = make(model, Faulty(Random(0), 1.0))
    with pytest.raises(RuntimeError, match="the request of prompt 0 failed") as failure:
        engine.generate(prompts_of(2, 4), GREEDY)
    assert "out of memory" in str(failure.value.__cause__) or "illegal" in str(
        failure.value.__cause__
    )
    check_empty(engine)


def test_generate_refuses_what_it_cannot_keep_apart(model):
    engine = make(model)
    with pytest.raises(ValueError, match="there are 2 prompts, but 1 params"):
        engine.generate([[1], [2]], [GREEDY])
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.generate([[1], []], GREEDY)
    check_empty(engine)
    engine.add([1], GREEDY)
    with pytest.raises(RuntimeError, match="the engine is busy"):
        engine.generate([[1]], GREEDY)


# CUDA graphs.


def decode_run(prompt: list[int], place: int) -> Run:
    """The last of a prompt's 9 tokens, of which the others lie in blocks of its own."""
    blocks = [3 * place, 3 * place + 1, 3 * place + 2]
    slots = [blocks[2] * 4]
    return Run(place, place, prompt[-1:], 8, slots, blocks, samples=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_recorded_decode_steps_are_the_launched_ones(dtype):
    model = tiny_model(dtype=dtype)
    engines = [
        make(model, paged, max_sequences=12, num_blocks=128, token_budget=64, graphs=graphs)
        for graphs in (True, False)
    ]
    assert sorted(engines[0].runner.recorded) == [1, 2, 4, 8, 12]
    assert engines[1].runner.recorded == {}
    engines[0].runner.cache.normal_()
    engines[1].runner.cache.copy_(engines[0].runner.cache)
    prompts = prompts_of(11, 9)
    for count in (1, 3, 4, 11):
        runs = [decode_run(prompt, place) for place, prompt in enumerate(prompts[:count])]
        recorded, launched = (engine.runner.compute(runs) for engine in engines)
        # Products of other batch sizes may add in another order: roundings of float32 in sums of
        # fewer than 1000 terms, and of what is kept between layers, twice a layer and once at the end.
        error = (recorded - launched).abs().max() / launched.abs().max()
        assert error <= 1000 * 2.0**-24 + 5 * 2 * torch.finfo(dtype).eps
    params = SamplingParams(max_new_tokens=20, temperature=0)
    if dtype == torch.float32:
        completions = [engine.generate(prompts, params) for engine in engines]
        assert completions[0] == completions[1]
        check_plain(model, [(p, params, c) for p, c in zip(prompts, completions[0], strict=True)])
