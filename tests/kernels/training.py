"""Comparing attention and its gradients with the oracle, on poisoned memory."""

import math
from collections.abc import Callable

import torch

import kernels
from kernels import reference_options
from kernels.reference import errors
from kernels.reference_options import Options
from kernels.score_options import dropout_mask
from tests.kernels.grid import call_on_poisoned_memory

SEED = 2**40 + 12345


def draw(query: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the output and of the logsumexp, N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    grad_output = torch.randn(query.shape, generator=generator).to(query)
    grad_logsumexp = torch.randn(query.shape[:-1], generator=generator).to(query.device)
    return grad_output, grad_logsumexp


def run(attention: Callable, query, key, value, grad_output, grad_logsumexp, **options):
    """Output, logsumexp and the three gradients; of a row that saw nothing the logsumexp has none."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    output, logsumexp = attention(*leaves, return_logsumexp=True, **options)
    seen = logsumexp > -math.inf
    objective = (output.float() * grad_output.float()).sum()
    objective = objective + (torch.where(seen, logsumexp, 0.0) * grad_logsumexp).sum()
    return output.detach(), logsumexp.detach(), *torch.autograd.grad(objective, leaves)


def assert_trains_like_the_oracle(attention: Callable, query, key, value, **options) -> None:
    """Output, logsumexp and gradients within their budgets, everything written, nothing changed."""
    dropout = options.get("dropout", 0.0)
    kept = None
    if dropout:
        options["seed"] = torch.tensor(SEED, device=kernels.device())
        kept = dropout_mask(options["seed"], dropout, *query.shape[:3], key.shape[2])
    grad_output, grad_logsumexp = draw(query)
    before = [x.clone() for x in (query, key, value)]
    results = call_on_poisoned_memory(
        run, attention, query, key, value, grad_output, grad_logsumexp, **options
    )
    for name, was, now in zip(("query", "key", "value"), before, (query, key, value), strict=True):
        assert torch.equal(was, now), f"the kernels changed {name}"

    oracle = Options(**{k: v for k, v in options.items() if k != "seed"}, kept=kept)
    output, logsumexp = reference_options.attention(query, key, value, oracle)
    budgets = reference_options.error_budget(query, key, value, oracle)
    given = (query, key, value, grad_output, oracle, grad_logsumexp)
    expected = (output, logsumexp, *reference_options.gradients(*given))
    budgets = (*budgets, *reference_options.gradient_budget(*given))
    names = ("output", "logsumexp", "grad_query", "grad_key", "grad_value")
    dtypes = (query.dtype, torch.float32, *[query.dtype] * 3)
    for name, result, truth, allowed, dtype in zip(
        names, results, expected, budgets, dtypes, strict=True
    ):
        assert result.dtype == dtype and result.shape == truth.shape, name
        error = errors(result, truth)
        assert error.within(allowed), f"{name}: error {error}; allowed {allowed}"
