"""The training benchmark: the models are what they are called, and every attention trains them alike."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kernels
from benchmarks import training
from benchmarks.gpt import Shape, Transformer
from instruments import records

DECODER = Shape(layers=1, width=32, heads=2, vocabulary=320)
ENCODER = Shape(layers=1, width=32, heads=2, vocabulary=320, causal=False, hidden=64)
SEQ, BATCH = 32, 2


def toy(shape=DECODER, dtype=torch.float32):
    torch.manual_seed(0)
    model = Transformer(shape, SEQ)
    # GPT-2's first weights times ten, so that the scores are about 1 and attention is not a mean.
    for name, parameter in model.named_parameters():
        if name.endswith("query_key_value.weight"):
            parameter.data.mul_(10)
    return model.to(kernels.device(), dtype)


def toy_batch(shape=DECODER):
    generator = torch.Generator().manual_seed(0)
    return training.draw_batch(training.book_bytes(), shape, BATCH, SEQ, generator)


def test_gpt2_small_has_its_parameters():
    with torch.device("meta"):
        as_published = Transformer(Shape(12, 768, 12, 50257), 1024)
        ours = Transformer(training.MODELS["gpt2-small"].shape, 1024)
    # A block: 4 w² + 4 w for attention, 8 w² + 5 w for the MLP, 4 w for its norms.
    layers, width = 12, 768
    blocks = layers * (12 * width**2 + 13 * width)
    assert as_published.parameter_count() == (50257 + 1024) * width + blocks + 2 * width
    assert as_published.parameter_count() == 124_439_808
    assert ours.parameter_count() - as_published.parameter_count() == (50304 - 50257) * width


@pytest.mark.parametrize(
    ("name", "length", "billions"),
    [("gpt-1.3b", 2048, 1.3), ("bert-large", 512, 0.335), ("lra", 4096, 0.00036)],
)
def test_the_other_models_have_their_size(name, length, billions):
    with torch.device("meta"):
        model = Transformer(training.MODELS[name].shape, length)
    assert 1e-9 * model.parameter_count() == pytest.approx(billions, rel=0.02)


def gradients(model, attention, shape, autocast):
    """Loss and every gradient, in float64, as one vector."""
    with torch.autocast(kernels.device().type, dtype=torch.bfloat16, enabled=autocast):
        loss = training.compute_loss(model, attention, toy_batch(shape))
    loss.backward()
    parts = [loss.reshape(1), *(parameter.grad.flatten() for parameter in model.parameters())]
    return torch.cat([part.double() for part in parts]).detach().cpu()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [DECODER, ENCODER], ids=["decoder", "encoder"])
@pytest.mark.parametrize("attention", training.ATTENTIONS)
def test_every_attention_gives_the_same_loss_and_gradients(attention, shape, autocast):
    exact = gradients(toy(shape, torch.float64), "eager", shape, autocast=False)
    error = (gradients(toy(shape), attention, shape, autocast) - exact).norm()
    standard = (gradients(toy(shape), "eager", shape, autocast) - exact).norm()
    # All round in the same linear layers; in attention standard attention rounds the most.
    assert error <= 2 * standard


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_a_wrong_mask_would_be_seen(shape, autocast):
    exact = gradients(toy(shape, torch.float64), "eager", shape, autocast=False)
    standard = (gradients(toy(shape), "eager", shape, autocast) - exact).norm()
    model = toy(shape)
    model.blocks[0].causal = not shape.causal
    assert (gradients(model, "eager", shape, autocast) - exact).norm() > 2 * standard


def test_gradients_reach_every_parameter():
    model = toy()
    training.compute_loss(model, "eager", toy_batch()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_model_sees_no_later_token():
    model = toy()
    tokens, _, _ = toy_batch()
    changed = tokens.clone()
    changed[:, -1] = 7
    logits, others = (
        model(these, training.ATTENTIONS["eager"]).view(BATCH, SEQ, -1)
        for these in (tokens, changed)
    )
    assert torch.equal(logits[:, :-1], others[:, :-1])
    assert not torch.equal(logits[:, -1], others[:, -1])


def test_flops_equal_a_hand_count():
    with torch.device("meta"):
        model = Transformer(training.MODELS["gpt2-small"].shape, 1024)
    # 6 x 124,475,904 for the weights and 12 x 12 x 768 x 1024 for attention, a token.
    assert training.model_flops(model, 16, 1024) == 16 * 1024 * (746_855_424 + 113_246_208)


@pytest.mark.parametrize("shape", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_flops_equal_those_of_the_products_that_run(shape):
    model = toy(shape)
    with FlopCounterMode(display=False) as counter:
        training.compute_loss(model, "eager", toy_batch(shape)).backward()
    # The formula also counts the parameters that are added and not multiplied.
    added = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 or name.startswith("positions")
    )
    claimed = training.model_flops(model, BATCH, SEQ) - 6 * BATCH * SEQ * added
    assert counter.get_total_flops() == claimed


def test_tokens_are_the_text_of_the_book():
    text = bytes(training.book_bytes().tolist())
    assert b"attention" in text
    assert (records.ROOT / "book/03_tiling.md").read_bytes() in text
    tokens, targets, predicted = toy_batch()
    assert predicted is None
    for row, following in zip(tokens.tolist(), targets.view(BATCH, SEQ).tolist(), strict=True):
        assert bytes(row) in text
        assert following[:-1] == row[1:]
        assert bytes(row + following[-1:]) in text


def test_an_encoder_fills_in_what_is_hidden():
    tokens, targets, predicted = (tensor.cpu() for tensor in toy_batch(ENCODER))
    hidden = tokens.flatten() == training.HIDDEN_TOKEN
    assert predicted.sort().values.tolist() == hidden.nonzero().flatten().tolist()
    assert (
        hidden.view(BATCH, SEQ).sum(1).tolist() == [training.hidden_tokens(SEQ)] * BATCH == [4, 4]
    )
    whole = tokens.flatten().index_copy(0, predicted, targets).view(BATCH, SEQ)
    text = bytes(training.book_bytes().tolist())
    assert all(bytes(row) in text for row in whole.tolist())
    assert training.hidden_tokens(512) == 76


def test_speeds_follow_from_the_milliseconds():
    ceilings = {"mfu": 1000, "of_gemm": 800, "unknown": None}
    assert training.speeds(50.0, tokens=10_000, flops=20e12, ceilings=ceilings) == {
        "ms": 50.0,
        "tokens_per_second": 200_000,
        "tflops": 400.0,
        "mfu": 0.4,
        "of_gemm": 0.5,
        "unknown": None,
    }
    nothing = training.speeds(None, 10_000, 20e12, ceilings)
    assert set(nothing.values()) == {None}
    assert nothing.keys() == training.speeds(50.0, 10_000, 20e12, ceilings).keys()


def test_no_job_starts_once_the_budget_is_spent(capsys):
    clock = iter([100, 100, 106, 112]).__next__
    assert list(training.within_budget("abcd", 10, clock)) == ["a", "b"]
    assert "10 s are spent: 2 of 4 jobs not started" in capsys.readouterr().out
    assert list(training.within_budget("abcd", float("inf"))) == list("abcd")


def test_every_model_comes_before_any_second_length():
    cases = training.in_order(list(training.MODELS), None)
    assert [name for name, _ in cases[: len(training.MODELS)]] == list(training.MODELS)
    assert sorted(cases) == sorted(
        (m, n) for m in training.MODELS for n in training.MODELS[m].batches
    )
    assert training.in_order(["lra", "gpt2-small"], [2048, 1024]) == [
        ("lra", 1024),
        ("gpt2-small", 1024),
        ("lra", 2048),
        ("gpt2-small", 2048),
    ]


def test_memory_that_runs_out_is_recorded_as_null(monkeypatch):
    monkeypatch.setitem(training.MODELS, "toy", training.Model(DECODER, {SEQ: BATCH}))
    # The CPU keeps no count of its peak.
    peaks = iter([None, 12345])
    monkeypatch.setattr(training, "peak_bytes", lambda step: next(peaks))
    eager, sdpa = training.time_case("toy", SEQ, ["eager", "sdpa"], 2, {"mfu": None, "of_gemm": 1})
    assert eager.keys() == sdpa.keys()
    measured = ("ms", "spread", "tokens_per_second", "tflops", "mfu", "of_gemm", "peak_bytes")
    assert [eager[name] for name in measured] == [None] * 7
    assert sdpa["peak_bytes"] == 12345 and sdpa["ms"] > 0 and sdpa["tokens_per_second"] > 0
    assert eager["speedup"] == {"sdpa": None} and sdpa["speedup"] == {"eager": None}
    json.dumps([eager, sdpa])


def test_a_step_leaves_no_gradient_and_changes_the_weights():
    model = toy()
    before = [parameter.clone() for parameter in model.parameters()]
    training.take_step(model, training.make_optimizer(model), "eager", toy_batch())
    assert all(parameter.grad is None for parameter in model.parameters())
    changed = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert all(changed)


def test_a_step_that_fails_leaves_no_gradient():
    model = toy()
    optimizer = training.make_optimizer(model)
    training.compute_loss(model, "eager", toy_batch()).backward()
    tokens, _, _ = toy_batch()
    with pytest.raises(ValueError):
        training.take_step(model, optimizer, "eager", (tokens, torch.zeros(3).long(), None))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_curve_falls_and_repeats():
    curve = training.loss_curve(DECODER, "eager", 0, steps=82, batch=BATCH, length=SEQ)
    again = training.loss_curve(DECODER, "eager", 0, steps=82, batch=BATCH, length=SEQ)
    other = training.loss_curve(DECODER, "eager", 1, steps=82, batch=BATCH, length=SEQ)
    assert curve == again
    assert curve["losses"] != other["losses"]
    assert len(curve["losses"]) == 16 and curve["losses"][-1] < curve["losses"][0]
    assert (curve["warm_up"], curve["clip"]) == (40, 1.0)


def test_the_rate_rises_to_what_the_optimizer_has_and_large_gradients_are_cut():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = training.tame(optimizer)
    moved = []
    for _ in range(50):
        # Of norm 10, which is cut to 1; a gradient of norm 0.5 is left alone.
        parameter.grad = torch.full((4,), 5.0 if len(moved) != 45 else 0.25)
        before = parameter.detach().clone()
        optimizer.step()
        moved.append((before - parameter.detach()).norm().item())
        schedule.step()
    expected = [2.0 * min(step, 40) / 40 for step in range(1, 51)]
    expected[45] /= 2
    assert moved == pytest.approx(expected, rel=1e-5)


def test_a_loss_curve_warms_up(monkeypatch):
    curve = training.loss_curve(DECODER, "eager", 0, steps=80, batch=BATCH, length=SEQ)
    monkeypatch.setattr(training, "WARM_UP_STEPS", 10**9)
    frozen = training.loss_curve(DECODER, "eager", 0, steps=80, batch=BATCH, length=SEQ)
    # Weights that stay as they are leave the spread of the passages.
    assert curve["losses"][-1] < frozen["losses"][-1] - (
        max(frozen["losses"]) - min(frozen["losses"])
    )


def test_agreement_is_the_difference_over_the_spread_of_the_seeds():
    curves = [
        {"attention": "flash2", "seed": 0, "losses": [5.0, 4.1]},
        {"attention": "sdpa", "seed": 0, "losses": [5.0, 4.0]},
        {"attention": "flash2", "seed": 1, "losses": [5.2, 4.4]},
        {"attention": "sdpa", "seed": 1, "losses": [5.25, 4.4]},
    ]
    assert training.agreement(curves) == {
        "attention": "flash2",
        "against": "sdpa",
        "difference": 0.1,
        "seed_spread": 0.4,
        "ratio": 0.25,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt9", "--experiment", "x"], "'gpt9' is not one of gpt2-small"),
        (["--attentions", "flash9", "--experiment", "x"], "'flash9' is not one of eager"),
        (["--models", "lra", "--lengths", "512", "--experiment", "x"], "[1024, 2048, 4096]"),
        (["--rounds", "0", "--experiment", "x"], "--rounds is at least 1, not 0"),
        (["--loss-steps", "3", "--experiment", "x"], "--loss-steps is 0 or at least 5, not 3"),
        ([], "the following arguments are required: --experiment"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    command = [sys.executable, "-m", "benchmarks.training", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
