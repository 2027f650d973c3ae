"""The model computes what GPT-2 does, and reads and writes its files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
from serving.model import Config, Model, load, rotate, save

PLAIN = Config(layers=2, width=32, heads=2, vocabulary=11, positions=24)
ROTARY = Config(
    layers=1,
    width=64,
    heads=4,
    kv_heads=2,
    vocabulary=11,
    positions=24,
    hidden=48,
    rotary_base=100.0,
)


def random_model(config: Config) -> Model:
    torch.manual_seed(0)
    model = Model(config).to(kernels.device())
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, and scores about 1
            parameter.normal_(std=0.3)
    return model


def gpt2(state: dict, config: Config, tokens: torch.Tensor) -> torch.Tensor:
    """GPT-2 (with our two options) written out in float64, from the file's names and layout."""
    state = {name: tensor.double() for name, tensor in state.items()}
    seq, dim = len(tokens), config.head_dim

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.norm_epsilon).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def product(x, name):
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def turn(x):  # (heads, seq, dim): pairs as complex numbers, turned by position times frequency
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :])
        frequency = config.rotary_base ** -(torch.arange(dim // 2).double() / (dim // 2))
        angles = torch.arange(seq)[:, None] * frequency
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    x = state["wte.weight"][tokens]
    if config.rotary_base is None:
        x = x + state["wpe.weight"][:seq]
    for layer in range(config.layers):
        block = f"h.{layer}"
        packed = product(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        heads = packed.view(seq, -1, dim).transpose(0, 1)
        query, key, value = heads.split([config.heads, config.kv_heads, config.kv_heads])
        if config.rotary_base is not None:
            query, key = turn(query), turn(key)
        group = config.heads // config.kv_heads
        key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        scores = query @ key.mT / dim**0.5
        scores.masked_fill_(torch.ones(seq, seq).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(seq, -1)
        x = x + product(mixed, f"{block}.attn.c_proj")
        inner = product(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        cubic = (2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)
        x = x + product(0.5 * inner * (1 + cubic.tanh()), f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ state["wte.weight"].T


@pytest.mark.parametrize("config", [PLAIN, ROTARY], ids=["gpt2", "rotary-gqa"])
def test_the_model_is_gpt2(config, tmp_path):
    model = random_model(config)
    tokens = torch.randint(11, (2, 9), device=kernels.device())
    logits = model(tokens).cpu()
    save(model, tmp_path, torch.float32)
    state = load_file(tmp_path / "model.safetensors")
    expected = torch.stack([gpt2(state, config, row) for row in tokens.cpu()])
    # Float32's unit roundoff, through sums of fewer than 1000 terms.
    error = (logits.double() - expected).abs().max() / expected.abs().max()
    assert error < 1000 * 2.0**-24


@pytest.mark.parametrize("config", [PLAIN, ROTARY], ids=["gpt2", "rotary-gqa"])
def test_a_saved_model_is_read_back(config, tmp_path):
    model = random_model(config)
    save(model, tmp_path, torch.float32)
    again = load(tmp_path)
    assert again.config == config
    for (name, tensor), (other, read) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, read)
    assert {p.dtype for p in load(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_file_as_hugging_face_has_it_is_read(tmp_path):
    """With a prefix, with GPT-2's buffers, in two files, and without our options in config.json."""
    model = random_model(PLAIN)
    save(model, tmp_path, torch.float32)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    state = {f"transformer.{name}": tensor for name, tensor in state.items()}
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    names = sorted(state)
    for part in (0, 1):
        save_file({name: state[name] for name in names[part::2]}, tmp_path / f"{part}.safetensors")
    published = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 24,
        "vocab_size": 11,
        "n_inner": None,
        "resid_pdrop": 0.1,
    }
    (tmp_path / "config.json").write_text(json.dumps(published), "utf-8")
    again = load(tmp_path)
    assert again.config == PLAIN
    tokens = torch.tensor([[1, 2, 3]], device=kernels.device())
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; accepted: 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"vocab_size": 12}, r"weight wte.weight has shape \(11, 32\)"),
        ({"n_layer": 3}, "no weight h.2.ln_1.weight"),
        ({"n_head": 5}, "width 32 is not a multiple of heads, 5"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path):
    save(random_model(PLAIN), tmp_path, torch.float32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must have a config.json and"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "layers must be a whole number, at least 1; got 0"),
        ({"heads": 3}, "width 32 is not a multiple of heads, 3"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads, 3"),
        ({"width": 6, "heads": 2, "rotary_base": 10.0}, "head_dim 3 is odd"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    good = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 4, "positions": 4}
    with pytest.raises(ValueError, match=message):
        Config(**good | sizes)


def test_rotation_keeps_lengths_and_sees_only_distances():
    query, key = torch.randn(2, 1, 1, 16)

    def turned(x, position):
        angles = position * 10.0 ** -(torch.arange(8) / 8)
        return rotate(x, angles.cos(), angles.sin())

    near = (turned(query, 3) * turned(key, 1)).sum()
    far = (turned(query, 13) * turned(key, 11)).sum()
    assert near == pytest.approx(far.item(), abs=2.0**-18)
    assert turned(query, 5).norm() == pytest.approx(query.norm().item(), rel=2.0**-20)
