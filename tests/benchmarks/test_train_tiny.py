"""The small GPT learns, the same way each time, and is read back as it was written."""

import json

import pytest
import torch

import kernels
from benchmarks import train_tiny
from serving import tokenizer
from serving.model import Config, load, save

TOY = Config(layers=1, width=32, heads=2, kv_heads=1, vocabulary=257, positions=32, rotary_base=1e4)


@pytest.fixture(scope="module")
def text():
    return train_tiny.split(train_tiny.tokens_of(train_tiny.corpus())[: 20 * train_tiny.PASSAGE])


def train(text, steps, seed=0):
    training, held_out = text
    return train_tiny.train(
        TOY,
        training,
        held_out[:48],
        steps=steps,
        batch=2,
        length=16,
        seed=seed,
        evaluate_every=4,
    )


def test_it_learns_and_keeps_what_predicts_best(text):
    model, history = train(text, steps=12)
    assert [row["step"] for row in history] == [4, 8, 12]
    held_out_losses = [row["held_out_loss"] for row in history]
    assert held_out_losses[0] > held_out_losses[1] > held_out_losses[2]
    held_out = text[1][:48].to(kernels.device())
    assert round(train_tiny.evaluate(model, held_out, 2, 16), 4) == held_out_losses[2]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_same_seed_gives_the_same_weights(text, deterministic):
    weights = [train(text, steps=2, seed=seed)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_every_twentieth_passage_is_held_out():
    size = train_tiny.PASSAGE
    training, held_out = train_tiny.split(torch.arange(41 * size))
    assert held_out.tolist() == [*range(19 * size, 20 * size), *range(39 * size, 40 * size)]
    assert len(training) == 39 * size


def test_files_are_ended(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("é", "utf-8")
    assert train_tiny.tokens_of(paths).tolist() == [0xC3, 0xA9, tokenizer.END] * 2


def test_the_weights_of_the_served_model_are_small(tmp_path):
    with torch.device("meta"):
        model = train_tiny.Model(train_tiny.CONFIG)
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 8e6
    save(model.to_empty(device="cpu"), tmp_path, torch.bfloat16)
    assert load(tmp_path).config == train_tiny.CONFIG


def test_the_weights_that_are_there_are_what_their_record_says():
    if not (train_tiny.WEIGHTS / "training.json").exists():
        pytest.skip("the small GPT has not been trained yet")
    facts = json.loads((train_tiny.WEIGHTS / "training.json").read_text("utf-8"))
    weights = train_tiny.WEIGHTS / "model.safetensors"
    assert train_tiny.digest([weights]) == facts["weights_sha256"]
    assert weights.stat().st_size < 8e6
    assert facts["environment"]["gpu"] != "cpu"
    # Chance is ln 257 = 5.5, the frequencies of the bytes alone about 3.2.
    assert facts["kept"]["held_out_loss"] < 2
