"""A decoder-only Transformer in GPT-2's layout, whose attention is an argument.

:meth:`Model.forward` is the plain model: it computes whole sequences with ``kernels.flash2.attention``
and keeps nothing. :meth:`Model.hidden` takes the tokens of many sequences, packed, with any attention;
serving/runner.py calls it with the one over paged memory, and must generate the same tokens.

Two options that GPT-2 does not have: rotary positions instead of learned ones (Su et al. 2021, *RoFormer*),
and fewer heads of keys and values than of queries (Ainslie et al. 2023, *GQA*).

:func:`load` reads a folder with ``config.json`` and ``*.safetensors`` as Hugging Face stores GPT-2. The two
options are in ``config.json`` under Llama's names, ``rope_theta`` and ``num_key_value_heads``.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

import kernels
from kernels import flash2

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(layer, query, key, value) -> output``, all packed: (tokens, heads, head_dim)."""


@dataclass(frozen=True)
class Config:
    """A model's sizes.

    Attributes:
        vocabulary: rows of the embedding.
        positions: the longest sequence.
        kv_heads: heads of keys and values; None means ``heads``.
        hidden: width inside the MLP; None means four times ``width``.
        rotary_base: the base of rotary positions' wavelengths; None means learned positions.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int
    kv_heads: int | None = None
    hidden: int | None = None
    rotary_base: float | None = None
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "vocabulary", "positions"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number, at least 1; got {number!r}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads, {self.heads}")
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads, {self.kv_heads}")
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        if self.rotary_base is not None and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs: head_dim {self.head_dim} is odd")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    """Attention, then an MLP, each added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.head_dim = config.width, config.head_dim
        self.widths = [width, *[config.kv_heads * config.head_dim] * 2]
        self.attention_norm = nn.LayerNorm(width, config.norm_epsilon)
        self.query_key_value = nn.Linear(width, sum(self.widths))
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, config.norm_epsilon)
        self.mlp_in = nn.Linear(width, config.hidden)
        self.mlp_out = nn.Linear(config.hidden, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, attend) -> Tensor:
        together = self.query_key_value(self.attention_norm(x)).split(self.widths, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in together)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        x = x + self.attention_out(attend(query, key, value).flatten(-2))
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of coordinates (i, i + head_dim/2) by its token's angle."""
    left, right = x.float().chunk(2, dim=-1)
    turned = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
    return turned.to(x.dtype)


class Model(nn.Module):
    """Tokens to logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        if config.rotary_base is None:
            self.positions = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """The plain model: ``(batch, seq)`` tokens to ``(batch, seq, vocabulary)`` logits."""
        batch, seq = tokens.shape

        def attend(_, *packed):
            query, key, value = (x.unflatten(0, (batch, seq)).transpose(1, 2) for x in packed)
            mixed = flash2.attention(query, key, value, causal=True)
            return mixed.transpose(1, 2).flatten(0, 1)

        positions = torch.arange(seq, device=tokens.device).repeat(batch)
        packed = self.hidden(tokens.flatten(), positions, attend)
        return self.logits(packed).unflatten(0, (batch, seq))

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """What the last block puts out, ``(tokens, width)``, for tokens of any sequences, packed.

        Args:
            tokens, positions: ``(tokens,)``: which token, and where in its own sequence.
            attend: the attention, which knows what belongs together.
        """
        x = self.embedding(tokens)
        rotation = None
        if self.config.rotary_base is None:
            x = x + self.positions(positions)
        else:
            rotation = self._rotation(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, lambda *packed, layer=layer: attend(layer, *packed))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """The last norm, and the embedding used again as a matrix."""
        return linear(self.norm(hidden), self.embedding.weight)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's angles, ``(tokens, 1, head_dim/2)``, in float32."""
        half = self.config.head_dim // 2
        exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
        angles = positions[:, None, None] * self.config.rotary_base**-exponents
        return angles.cos(), angles.sin()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal of 0.02; what adds to the residual stream less, by the number of such additions."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("_out.weight"):
                parameter.normal_(std=0.02 * (2 * self.config.layers) ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.02)


# Files.

WEIGHTS = Path(__file__).parent / "weights"
"""The small GPT that benchmarks/train_tiny.py trained on the book."""

CONFIG_NAMES = {
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "vocabulary": "vocab_size",
    "positions": "n_positions",
    "kv_heads": "num_key_value_heads",
    "hidden": "n_inner",
    "rotary_base": "rope_theta",
    "norm_epsilon": "layer_norm_epsilon",
}

# What the file must say, or leave out, for this model to be the one that was trained.
REQUIRED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}

WEIGHT_NAMES = {
    "embedding": "wte",
    "positions": "wpe",
    "blocks": "h",
    "attention_norm": "ln_1",
    "query_key_value": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
    "norm": "ln_f",
}


def load(folder: Path | str, dtype: torch.dtype | None = None) -> Model:
    """Read a model from a local folder onto the book's device, ready to serve.

    Args:
        dtype: of the weights; None means that of the file.

    Raises:
        FileNotFoundError: a file is lacking.
        ValueError: the files describe another model than this one.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").exists() or not files:
        raise FileNotFoundError(f"{folder} must have a config.json and *.safetensors files")
    config = read_config(json.loads((folder / "config.json").read_text("utf-8")), folder)
    device = kernels.device()
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= load_file(file, device=str(device))
    stored = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    with torch.device("meta"):
        model = Model(config)
    weights = {}
    for name, parameter in model.named_parameters():
        theirs = stored_name(name)
        if theirs not in stored:
            raise ValueError(f"{folder} has no weight {theirs}")
        tensor = stored[theirs].T if is_transposed(name) else stored[theirs]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{folder}: weight {theirs} has shape {tuple(stored[theirs].shape)}, which does not "
                f"fit {config}"
            )
        weights[name] = tensor.to(dtype or tensor.dtype).contiguous()
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def save(model: Model, folder: Path | str, dtype: torch.dtype) -> None:
    """Write a model as :func:`load` reads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {CONFIG_NAMES[name]: value for name, value in asdict(model.config).items()}
    text = json.dumps(REQUIRED | sizes, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    weights = {
        stored_name(name): (tensor.T if is_transposed(name) else tensor).to("cpu", dtype)
        for name, tensor in model.state_dict().items()
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def read_config(stored: dict, folder: Path) -> Config:
    """The sizes in a ``config.json``."""
    for name, accepted in REQUIRED.items():
        if stored.get(name, accepted) != accepted:
            raise ValueError(
                f"{folder}: {name} is {stored[name]!r}; accepted: {accepted!r}, as in GPT-2"
            )
    sizes = {ours: stored.get(theirs) for ours, theirs in CONFIG_NAMES.items()}
    return Config(**{name: value for name, value in sizes.items() if value is not None})


def stored_name(name: str) -> str:
    """A parameter's name in the file: ``blocks.0.mlp_in.bias`` is ``h.0.mlp.c_fc.bias``."""
    return ".".join(WEIGHT_NAMES.get(part, part) for part in name.split("."))


def is_transposed(name: str) -> bool:
    """Whether the file has a weight as (in, out): GPT-2's products do, its embeddings do not."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
