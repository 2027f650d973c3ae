"""Train whole models with one attention after the other: milliseconds a step, memory, loss curves.

    python -m benchmarks.training --experiment training

The models, randomly initialised and trained from the first step on one GPU, in bfloat16 autocast with
float32 weights and a fused AdamW:

* ``gpt2-small``: 12 layers, 768 wide, 12 heads; 1K to 8K tokens.
* ``gpt-1.3b``: 24 layers, 2048 wide, 16 heads; 2K and 8K tokens, as in FlashAttention-2's Table 1.
* ``bert-large``: 24 layers, 1024 wide, 16 heads, no causal mask; 512 tokens, of which the 15 % that
  are hidden are predicted.
* ``lra``: the vanilla Transformer for the long-range arena of Xiong et al. (Nyströmformer), whose setting
  the FlashAttention paper follows: 2 layers, 64 wide, 2 heads, an MLP 128 wide, batches of 32, or 256
  at 1K. It fills in hidden bytes here, not the arena's tasks.

The tokens are the bytes of the book's own chapters, so of a GPT's 50257 tokens (50304, rounded up to a
multiple of 64, as BERT's 30522 are to 30528) only 256 occur: the embedding and the last product have
their full size, and the FLOPs are the model's.

One row a model, length and attention: ``model, parameters, n, batch, attention, ms, spread,
tokens_per_second, tflops, mfu, of_gemm, peak_bytes, speedup``. ``tflops`` counts :func:`model_flops`;
``mfu`` is that over the datasheet's dense bfloat16 peak (null for a GPU not in ``PEAK_TFLOPS``),
``of_gemm`` over the matrix product that ``benchmarks.ceilings`` measured; ``speedup`` is name to how
many times faster than that attention. Where memory ran out everything measured is null.

A second record, ``<experiment>_loss``, has the loss of GPT-2 small with ``flash2`` and with ``sdpa``, the
mean of every five steps, for three seeds; its last row is :func:`agreement`, from two seeds on. Only here,
and not in the timed steps, the learning rate rises linearly over the first ``warm_up`` steps and the
gradient's norm is cut to ``clip``: without them a curve jumps, and jumps where rounding decides.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import kernels
from benchmarks import contestants
from benchmarks.attention import _integers, _names
from benchmarks.gpt import Shape, Transformer
from instruments import records, roofline
from instruments.timing import time_interleaved
from kernels import flash1, flash2, flash2_backward

PEAK_TFLOPS = {"NVIDIA H200": 989, "NVIDIA H100 80GB HBM3": 989}
"""Dense bfloat16 TFLOP/s in the datasheet."""

HIDDEN_SHARE, HIDDEN_TOKEN = 0.15, 256
"""Of an encoder's tokens so many are hidden, behind the first token that no byte is."""

SEEDS = (0, 1, 2)
LOSS_LENGTH, LOSS_BATCH, LOSS_EVERY = 1024, 8, 5
WARM_UP_STEPS, LARGEST_NORM = 40, 1.0


@dataclass(frozen=True)
class Model:
    """A model and the batches it is timed with: length to sequences, the most telling length first."""

    shape: Shape
    batches: dict[int, int]


MODELS = {
    "gpt2-small": Model(Shape(12, 768, 12, 50304), {1024: 16, 8192: 2, 4096: 4, 2048: 8}),
    "gpt-1.3b": Model(Shape(24, 2048, 16, 50304), {8192: 1, 2048: 4}),
    "bert-large": Model(Shape(24, 1024, 16, 30528, causal=False), {512: 32}),
    "lra": Model(Shape(2, 64, 2, 512, causal=False, hidden=128), {4096: 32, 1024: 256, 2048: 32}),
}


class FlashAttention1(torch.autograd.Function):
    """Chapter 3's forward over chapter 5's backward: the book writes no backward of FlashAttention-1."""

    @staticmethod
    def forward(ctx, query, key, value, causal):
        output, logsumexp = flash1.attention(
            query, key, value, causal=causal, return_logsumexp=True
        )
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.causal = causal
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, *_, logsumexp = ctx.saved_tensors
        everything = query.shape[2] + key.shape[2]
        gradients = flash2_backward.backward(
            grad_output,
            torch.zeros_like(logsumexp),
            *ctx.saved_tensors,
            seed=None,
            scale=query.shape[-1] ** -0.5,
            before=everything,
            after=0 if ctx.causal else everything,
            softcap=0.0,
            dropout=0.0,
        )
        return *gradients, None


def _flash2(query, key, value, causal):
    return flash2.attention(query, key, value, causal=causal)


def _sdpa(query, key, value, causal):
    return scaled_dot_product_attention(query, key, value, is_causal=causal)


ATTENTIONS = {
    "eager": contestants.peer("eager"),
    "flash1": FlashAttention1.apply,
    "flash2": _flash2,
    "sdpa": _sdpa,
}
"""Standard attention with S and P in memory; chapter 3's forward over chapter 5's backward; chapter 5;
PyTorch's ``scaled_dot_product_attention``, which chooses its backend itself."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time training steps of whole models.")
    parser.add_argument("--models", type=_names(MODELS), default=list(MODELS))
    parser.add_argument("--lengths", type=_integers, help="only these of each model's own")
    parser.add_argument("--attentions", type=_names(ATTENTIONS), default=list(ATTENTIONS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of three steps each")
    parser.add_argument("--loss-steps", type=int, default=200, help="0: no loss curves")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="then start no further case"
    )
    parser.add_argument("--experiment", required=True, help="name of the record")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error(f"--rounds is at least 1, not {chosen.rounds}")
    if chosen.loss_steps and chosen.loss_steps < LOSS_EVERY:
        parser.error(f"--loss-steps is 0 or at least {LOSS_EVERY}, not {chosen.loss_steps}")
    cases = in_order(chosen.models, chosen.lengths)
    if not cases:
        known = sorted({n for model in chosen.models for n in MODELS[model].batches})
        parser.error(f"--lengths {chosen.lengths} has none of {', '.join(chosen.models)}: {known}")
    if not torch.cuda.is_available():
        raise SystemExit("training is timed on a CUDA GPU, and PyTorch sees none here")
    gpu = torch.cuda.get_device_name()
    ceilings = {
        "mfu": PEAK_TFLOPS.get(gpu),
        "of_gemm": roofline.load_ceilings(records.slug(gpu)).tflops["bfloat16"],
    }
    rows, curves = [], []

    def measure(model, length):
        rows.extend(time_case(model, length, chosen.attentions, chosen.rounds, ceilings))

    def follow(seed):
        shape = MODELS["gpt2-small"].shape
        curves.extend(
            [loss_curve(shape, name, seed, chosen.loss_steps) for name in ("flash2", "sdpa")]
        )

    jobs = [functools.partial(measure, *case) for case in cases]
    if chosen.loss_steps:
        # After each model's first length, before the others.
        jobs[len(chosen.models) : len(chosen.models)] = [
            functools.partial(follow, seed) for seed in SEEDS
        ]
    try:
        for job in within_budget(jobs, chosen.budget_seconds):
            job()
    finally:
        # What was measured is kept, even if a later case fails.
        if rows:
            print("recorded in", records.save(chosen.experiment, rows).relative_to(records.ROOT))
        if curves:
            compared = [agreement(curves)] if len(curves) > 2 else []
            path = records.save(f"{chosen.experiment}_loss", curves + compared)
            print("recorded in", path.relative_to(records.ROOT))


def in_order(models: list[str], lengths: list[int] | None) -> list[tuple[str, int]]:
    """Each model at its first length, then each at its second, and so on."""
    columns = [
        [(name, n) for n in MODELS[name].batches if lengths is None or n in lengths]
        for name in models
    ]
    return [case for row in itertools.zip_longest(*columns) for case in row if case]


def within_budget(jobs: Iterable, seconds: float, clock: Callable = time.monotonic) -> Iterator:
    """The jobs in turn, none once the seconds are spent."""
    end = clock() + seconds
    jobs = list(jobs)
    for started, job in enumerate(jobs):
        if clock() >= end:
            print(f"{seconds:g} s are spent: {len(jobs) - started} of {len(jobs)} jobs not started")
            return
        yield job


def time_case(
    name: str, length: int, attentions: list[str], rounds: int, ceilings: dict
) -> list[dict]:
    """One row for each attention, all in the same model, their steps interleaved."""
    shape, batch = MODELS[name].shape, MODELS[name].batches[length]
    torch.manual_seed(0)
    with torch.device(kernels.device()):
        model = Transformer(shape, length)
    optimizer = make_optimizer(model)
    data = draw_batch(book_bytes(), shape, batch, length, torch.Generator().manual_seed(0))
    steps = {a: functools.partial(take_step, model, optimizer, a, data) for a in attentions}
    peaks = {a: peak_bytes(step) for a, step in steps.items()}
    taken = time_interleaved(
        {a: step for a, step in steps.items() if peaks[a] is not None}, rounds=rounds
    )
    flops = model_flops(model, batch, length)
    rows = []
    for attention in attentions:
        timing = taken.get(attention)
        row = {
            "model": name,
            "parameters": model.parameter_count(),
            "n": length,
            "batch": batch,
            "attention": attention,
            **speeds(timing and timing.median, batch * length, flops, ceilings),
            "spread": timing and round(timing.spread, 4),
            "peak_bytes": peaks[attention],
            "speedup": {
                other: round(timing.speedup_over(taken[other]), 3)
                if timing and other in taken
                else None
                for other in attentions
                if other != attention
            },
        }
        rows.append(row)
        measured = "out of memory"
        if timing:
            measured = f"{row['ms']:.2f} ms, {row['tflops']} TFLOP/s, {row['peak_bytes']:,} bytes"
        print(f"{name} n {length} batch {batch} {attention}: {measured}", flush=True)
    return rows


def speeds(ms: float | None, tokens: int, flops: float, ceilings: dict) -> dict:
    """What follows from the milliseconds of a step; all None where there are none.

    Args:
        ceilings: name of a share to the TFLOP/s that it is a share of, None where that is not known.
    """
    if ms is None:
        return dict.fromkeys(("ms", "tokens_per_second", "tflops", *ceilings))
    tflops = 1e-9 * flops / ms
    shares = {
        name: round(tflops / ceiling, 4) if ceiling else None for name, ceiling in ceilings.items()
    }
    return {
        "ms": round(ms, 4),
        "tokens_per_second": round(1000 * tokens / ms),
        "tflops": round(tflops, 2),
        **shares,
    }


def model_flops(model: Transformer, batch: int, seq: int) -> int:
    """FLOPs of a step, forward and backward, as the FlashAttention-2 paper counts them.

    Megatron-LM's formula: 6 for each parameter and token, and ``12 * layers * width * seq`` a token for
    attention, which is not halved under a causal mask. An encoder's last product counts for the
    predicted tokens only.
    """
    shape, tokens = model.shape, batch * seq
    head = model.embedding.weight.numel()
    predicted = tokens if shape.causal else batch * hidden_tokens(seq)
    weights = tokens * (model.parameter_count() - head) + predicted * head
    return 6 * weights + 12 * shape.layers * shape.width * seq * tokens


def book_bytes() -> torch.Tensor:
    """The Markdown of the book, one token a byte."""
    chapters = sorted((records.ROOT / "book").glob("*.md"))
    text = bytearray(b"".join(chapter.read_bytes() for chapter in chapters))
    return torch.frombuffer(text, dtype=torch.uint8)


def hidden_tokens(seq: int) -> int:
    """How many tokens of a sequence an encoder must fill in: 76 of 512."""
    return int(HIDDEN_SHARE * seq)


def draw_batch(
    text: torch.Tensor, shape: Shape, batch: int, seq: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Passages of the text as tokens, targets and predicted places, on the book's device.

    A decoder predicts each next byte; an encoder the bytes that are hidden from it.
    """
    starts = torch.randint(len(text) - seq, (batch, 1), generator=generator)
    tokens = text[starts + torch.arange(seq + 1)].long()
    if shape.causal:
        tokens, targets, predicted = tokens[:, :-1], tokens[:, 1:].flatten(), None
    else:
        tokens = tokens[:, :-1]
        places = torch.rand(batch, seq, generator=generator).argsort(1)[:, : hidden_tokens(seq)]
        predicted = (places + seq * torch.arange(batch)[:, None]).flatten()
        targets = tokens.flatten()[predicted]
        tokens = tokens.flatten().index_fill(0, predicted, HIDDEN_TOKEN).view(batch, seq)
    device = kernels.device()
    predicted = predicted if predicted is None else predicted.to(device)
    return tokens.to(device), targets.to(device), predicted


def make_optimizer(model: Transformer) -> torch.optim.Optimizer:
    """AdamW as GPT-2's successors use it, in one kernel."""
    return torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )


def tame(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Cut the gradient before each update, and raise the rate from a 40th of it to all in 40 steps.

    Returns:
        The schedule, whose ``step`` follows each of the optimizer's.
    """

    def cut(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)

    optimizer.register_step_pre_hook(cut)
    return torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / WARM_UP_STEPS, total_iters=WARM_UP_STEPS - 1
    )


def compute_loss(model: Transformer, attention: str, data: tuple) -> torch.Tensor:
    """Mean cross-entropy of the predicted tokens."""
    tokens, targets, predicted = data
    return cross_entropy(model(tokens, ATTENTIONS[attention], predicted), targets)


def take_step(model: Transformer, optimizer, attention: str, data: tuple) -> torch.Tensor:
    """Forward, backward and update; returns the loss."""
    try:
        with torch.autocast(data[0].device.type, dtype=torch.bfloat16):
            loss = compute_loss(model, attention, data)
        loss.backward()
        optimizer.step()
        return loss.detach()
    finally:
        # Also when memory ran out: the next attention's step starts without half a gradient.
        optimizer.zero_grad()


def peak_bytes(step: Callable[[], object]) -> int | None:
    """The most memory held during a step, weights and optimizer included; None where it runs out."""
    torch.cuda.empty_cache()
    try:
        step()  # the first step of all makes the optimizer's state at its end, when memory is free
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated()


def loss_curve(
    shape: Shape,
    attention: str,
    seed: int,
    steps: int,
    batch: int = LOSS_BATCH,
    length: int = LOSS_LENGTH,
) -> dict:
    """Train from the seed's weights on the seed's passages; the mean loss of every five steps."""
    torch.manual_seed(seed)
    with torch.device(kernels.device()):
        model = Transformer(shape, length)
    optimizer, generator = make_optimizer(model), torch.Generator().manual_seed(seed)
    schedule = tame(optimizer)
    text = book_bytes()
    losses = []
    for _ in range(steps - steps % LOSS_EVERY):
        data = draw_batch(text, shape, batch, length, generator)
        losses.append(take_step(model, optimizer, attention, data))
        schedule.step()
    means = torch.stack(losses).view(-1, LOSS_EVERY).mean(1).tolist()
    print(f"loss with {attention}, seed {seed}: {means[0]:.3f} to {means[-1]:.3f}", flush=True)
    return {
        "model": "gpt2-small",
        "n": length,
        "batch": batch,
        "attention": attention,
        "seed": seed,
        "every": LOSS_EVERY,
        "warm_up": WARM_UP_STEPS,
        "clip": LARGEST_NORM,
        "losses": [round(mean, 5) for mean in means],
    }


def agreement(curves: list[dict]) -> dict:
    """How far the two attentions' losses differ, beside how far ``sdpa``'s own differ between seeds.

    ``difference`` is the largest distance of ``flash2`` and ``sdpa`` at one point of one seed;
    ``seed_spread`` the largest distance between two seeds of ``sdpa`` at one point. The curves agree
    within the noise of the seeds where ``ratio``, the first over the second, is at most 1.
    """
    losses = {
        name: torch.tensor([c["losses"] for c in curves if c["attention"] == name])
        for name in ("flash2", "sdpa")
    }
    difference = (losses["flash2"] - losses["sdpa"]).abs().max().item()
    seed_spread = (losses["sdpa"].amax(0) - losses["sdpa"].amin(0)).max().item()
    return {
        "attention": "flash2",
        "against": "sdpa",
        "difference": round(difference, 5),
        "seed_spread": round(seed_spread, 5),
        "ratio": round(difference / seed_spread, 4),
    }


if __name__ == "__main__":
    main()
