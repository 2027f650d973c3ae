"""Train the small GPT that the serving engine serves, on the book's own text and code.

    python -m benchmarks.train_tiny

Tokens are bytes (serving/tokenizer.py). The model is serving/model.py's, with rotary positions and two
query heads a head of keys and values; its attention, forward and backward, is chapter 5's. It learns the
book's Markdown and the source of what it explains. Every twentieth passage of the text is held out, and
the weights are kept that predict those best.

Writes ``serving/weights/``: ``model.safetensors`` (bfloat16) and ``config.json`` as Hugging Face has them
for GPT-2, and ``training.json``: what they were made with, from which data, and how the loss fell. The same
command on the same GPU, versions and text gives the same weights, unless it runs out of its seconds.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import kernels
from benchmarks.training import make_optimizer, tame
from instruments import records
from serving import tokenizer
from serving.model import WEIGHTS, Config, Model, save

SOURCES = ("book/*.md", "kernels/*.py", "serving/*.py", "README.md")

CONFIG = Config(
    layers=5,
    width=256,
    heads=4,
    kv_heads=2,
    vocabulary=tokenizer.VOCABULARY,
    positions=1024,
    rotary_base=10_000.0,
)

PASSAGE = 4096
"""Tokens that are together trained on or held out."""

HELD_OUT_EVERY = 20
EVALUATE_EVERY = 100


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the small GPT on the book.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens a passage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-seconds", type=float, default=80, help="then stop training")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder for the weights")
    chosen = parser.parse_args()
    for name in ("steps", "batch", "length"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is at least 1, not {getattr(chosen, name)}")
    if chosen.length > CONFIG.positions:
        parser.error(f"--length is at most {CONFIG.positions}, not {chosen.length}")
    if not torch.cuda.is_available():
        raise SystemExit("the model is trained on a CUDA GPU, and PyTorch sees none here")
    be_deterministic()
    files = corpus()
    training, held_out = split(tokens_of(files))
    started = time.monotonic()
    model, history = train(
        CONFIG,
        training,
        held_out,
        steps=chosen.steps,
        batch=chosen.batch,
        length=chosen.length,
        seed=chosen.seed,
        budget_seconds=chosen.budget_seconds,
    )
    save(model, chosen.out, torch.bfloat16)
    facts = {
        "environment": records.environment(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": digest([chosen.out / "model.safetensors"]),
        "data": [str(path.relative_to(records.ROOT)) for path in files],
        "data_sha256": digest(files),
        "tokens": {"trained": len(training), "held_out": len(held_out)},
        "seed": chosen.seed,
        "steps": chosen.steps,
        "batch": chosen.batch,
        "length": chosen.length,
        "seconds": round(time.monotonic() - started, 1),
        "kept": min(history, key=lambda row: row["held_out_loss"]),
        "history": history,
    }
    path = chosen.out / "training.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {chosen.out}: {(chosen.out / 'model.safetensors').stat().st_size:,} bytes")


def be_deterministic() -> None:
    """Every sum in the same order in every run; cuBLAS has to be told before its first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Meant to show reads of what was never written; it costs a launch for every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False


def corpus() -> list[Path]:
    """What the model learns, always in the same order."""
    return [path for pattern in SOURCES for path in sorted(records.ROOT.glob(pattern))]


def digest(files: list[Path]) -> str:
    """SHA-256 of the files, one after the other."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.read_bytes())
    return total.hexdigest()


def tokens_of(files: list[Path]) -> torch.Tensor:
    """The files' bytes, each file ended by the token for it."""
    tokens = []
    for path in files:
        tokens += [*path.read_bytes(), tokenizer.END]
    return torch.tensor(tokens, dtype=torch.int16)


def split(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on, and every twentieth passage, which is not."""
    held_out = torch.arange(len(tokens)) // PASSAGE % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return tokens[~held_out], tokens[held_out]


def train(
    config: Config,
    training: torch.Tensor,
    held_out: torch.Tensor,
    *,
    steps: int,
    batch: int,
    length: int,
    seed: int,
    budget_seconds: float = float("inf"),
    evaluate_every: int = EVALUATE_EVERY,
) -> tuple[Model, list[dict]]:
    """Train from random weights; returns the model that predicts the held-out text best, and losses.

    The learning rate rises as in ``benchmarks.training`` and then falls along a cosine.
    """
    torch.manual_seed(seed)
    device = kernels.device()
    with device:
        model = Model(config)
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    schedule = torch.optim.lr_scheduler.ChainedScheduler(
        [
            tame(optimizer),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        ]
    )
    training, held_out = training.to(device), held_out.to(device)
    generator = torch.Generator().manual_seed(seed)
    history, best, losses = [], None, []
    started = time.monotonic()
    for step in range(1, steps + 1):
        starts = torch.randint(len(training) - length, (batch,), generator=generator)
        loss = mean_loss(model, passages(training, starts, length))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
        spent = time.monotonic() - started > budget_seconds
        if step % evaluate_every == 0 or step == steps or spent:
            row = {
                "step": step,
                "loss": round(torch.stack(losses).mean().item(), 4),
                "held_out_loss": round(evaluate(model, held_out, batch, length), 4),
            }
            losses = []
            print(row, f"{time.monotonic() - started:.0f} s", flush=True)
            if not history or row["held_out_loss"] < min(r["held_out_loss"] for r in history):
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            history.append(row)
        if spent:
            print(f"{budget_seconds:g} s are spent at step {step} of {steps}", flush=True)
            break
    model.load_state_dict(best)
    return model, history


def passages(tokens: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """One row a start, with the token after the last for a target: ``(batch, length + 1)``."""
    places = starts[:, None] + torch.arange(length + 1)
    return tokens[places.to(tokens.device)].long()


def mean_loss(model: Model, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token, in natural logarithms."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1])
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Model, tokens: torch.Tensor, batch: int, length: int) -> float:
    """The loss on passages that follow each other through the whole text."""
    starts = torch.arange(0, len(tokens) - length, length)
    weighted = [
        mean_loss(model, passages(tokens, part, length)) * len(part) for part in starts.split(batch)
    ]
    return (torch.stack(weighted).sum() / len(starts)).item()


if __name__ == "__main__":
    main()
