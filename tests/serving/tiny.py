"""A tiny random model, and what it generates without a cache: what the engine is held equal to."""

import torch
from torch.nn.functional import scaled_dot_product_attention

import kernels
from serving import sampler
from serving.engine import Completion
from serving.model import Config, Model
from serving.sampler import SamplingParams

CONFIG = Config(
    layers=2, width=32, heads=2, kv_heads=1, vocabulary=23, positions=64, rotary_base=100.0
)


def tiny_model(config: Config = CONFIG, dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    model = Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scores of a few units, so that what comes next depends on all that came before.
            parameter.normal_(std=0.6 if "query_key_value" in name else 0.2)
            if "norm.weight" in name:
                parameter.fill_(1.0)
    return model.to(kernels.device(), dtype).requires_grad_(False)


def through_kernels(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """The plain model as it is."""
    return model(tokens)


def through_pytorch(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """The plain model with PyTorch's attention: as good, and faster than interpreted kernels."""
    batch, seq = tokens.shape

    def attend(_, *packed):
        query, key, value = (x.unflatten(0, (batch, seq)).transpose(1, 2) for x in packed)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(0, 1)

    positions = torch.arange(seq, device=tokens.device).repeat(batch)
    return model.logits(model.hidden(tokens.flatten(), positions, attend)).unflatten(
        0, (batch, seq)
    )


def plain_logits(model: Model, rows: list[list[int]], plain=through_pytorch) -> list[torch.Tensor]:
    """The logits after each token of each row. Later tokens change nothing before them."""
    length = max(len(row) for row in rows)
    padded = [[*row, *[0] * (length - len(row))] for row in rows]
    logits = plain(model, torch.tensor(padded, device=kernels.device()))
    return [own[: len(row)] for own, row in zip(logits, rows, strict=True)]


def finish_reason(params: SamplingParams, tokens: list[int], end_token: int | None) -> str | None:
    if tokens[-1] == end_token or params.stops(tokens):
        return "stop"
    return "length" if len(tokens) == params.max_new_tokens else None


def check_plain(
    model: Model,
    served: list[tuple[list[int], SamplingParams, list[Completion]]],
    end_token: int | None = None,
    plain=through_pytorch,
) -> None:
    """Every token of these (prompt, params, completions) is the one that the plain model gives.

    The plain model computes each whole sequence once: if all tokens before are its own, so is the next.
    """
    sequences = [
        (prompt, params, index, completion)
        for prompt, params, completions in served
        for index, completion in enumerate(completions)
    ]
    rows = [[*prompt, *completion.tokens[:-1]] for prompt, _, _, completion in sequences]
    if not rows:
        return
    for (prompt, params, index, completion), logits in zip(
        sequences, plain_logits(model, rows, plain), strict=True
    ):
        own = logits[len(prompt) - 1 :]
        count = len(own)
        if params.temperature == 0:
            expected = sampler.greedy(own).tolist()
        else:
            options = [params.temperature, params.top_k or own.shape[-1], params.top_p]
            columns = [
                torch.full((count,), option, dtype=torch.float64, device=own.device)
                for option in options
            ]
            numbers = sampler.draw(params.seed, index, params.max_new_tokens)[:count]
            uniform = torch.from_numpy(numbers).to(own.device)
            expected = sampler.sample(own, *columns, uniform).tolist()
        assert completion.tokens == expected, (prompt, params, index)
        ends = [finish_reason(params, expected[: i + 1], end_token) for i in range(count)]
        assert ends == [None] * (count - 1) + [completion.finish_reason]


def plain_beams(
    model: Model, prompt: list[int], params: SamplingParams, end_token: int | None = None
) -> list[Completion]:
    """Beam search with the plain model, every beam computed anew at every step."""
    beams, found = [(0.0, [])], []
    while True:
        logits = plain_logits(model, [[*prompt, *tokens] for _, tokens in beams])
        longer = []
        for (score, tokens), own in zip(beams, logits, strict=True):
            after = own[-1].double().log_softmax(-1).tolist()
            longer += [(score + after[token], [*tokens, token]) for token in range(len(after))]
        longer.sort(key=lambda beam: -beam[0])
        beams = []
        for rank, (score, tokens) in enumerate(longer[: 2 * params.n]):
            reason = finish_reason(params, tokens, end_token)
            if reason is None and len(beams) < params.n:
                beams.append((score, tokens))
            elif reason is not None and rank < params.n:
                final = score / len(tokens) ** params.length_penalty
                found.append((final, Completion(tokens, reason)))
        found = sorted(found, key=lambda each: -each[0])[: params.n]
        hopes = [score / params.max_new_tokens**params.length_penalty for score, _ in beams]
        if not hopes or (len(found) == params.n and max(hopes) <= found[-1][0]):
            return [completion for _, completion in found]
