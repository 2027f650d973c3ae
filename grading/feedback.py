"""Comparing tensors so that the difference teaches: what is wrong, in the order one would look.

Kind, dtype, shape, NaN and infinity, then the worst number with its place, what it should be, and
how many are wrong; and a guess at the reason, where the pattern of the wrong numbers suggests one.
"""

import torch

from grading.inside.plain import Opaque


def compare(
    got: object,
    expected: torch.Tensor,
    allowed: torch.Tensor | float,
    *,
    dtype: torch.dtype | None = None,
    name: str = "The result",
    hint: str = "",
) -> None:
    """Fail unless ``got`` is within ``allowed`` of ``expected``.

    Args:
        got: what the student's function returned.
        expected: the right numbers, in any dtype.
        allowed: how far each may be off.
        dtype: what the result must have; that of ``expected`` if not given.
        name: what the result is called in the message.
        hint: what to say when no pattern is found.
    """
    if not isinstance(got, torch.Tensor):
        kind = type(got).__name__
        what = f"a {kind}" if isinstance(got, Opaque) else f"{got!r:.60} ({kind})"
        raise AssertionError(f"{name} must be a tensor, and is {what}.")
    wanted = dtype or expected.dtype
    if got.dtype != wanted:
        raise AssertionError(f"{name} must be {wanted}, and is {got.dtype}.")
    if got.shape != expected.shape:
        raise AssertionError(
            f"{name} must have the shape {tuple(expected.shape)}, and has {tuple(got.shape)}."
        )
    if got.device != expected.device:
        raise AssertionError(f"{name} must be on {expected.device}, and is on {got.device}.")
    if not expected.numel():
        return
    exact, came = expected.double(), got.double()
    _check_finite(came, exact, name)
    error = torch.where(came == exact, 0.0, (came - exact).abs())
    both_nan = came.isnan() & exact.isnan()
    error = error.masked_fill(both_nan, 0.0)
    limit = torch.as_tensor(allowed, dtype=torch.float64).expand_as(error)
    wrong = ~(error <= limit)
    if not wrong.any():
        return
    worst = int(torch.where(wrong, error - limit, -torch.inf).argmax())
    place = _place(worst, error.shape)
    share = wrong.double().mean().item()
    reason = _pattern(came, exact, wrong, limit) or hint
    raise AssertionError(
        f"{name}{place} is {came.flatten()[worst]:.6g} and must be {exact.flatten()[worst]:.6g} "
        f"(off by {error.flatten()[worst]:.1e}, allowed {limit.flatten()[worst]:.1e}); {share:.0%} of the "
        f"numbers are wrong.{' ' if reason else ''}{reason}"
    )


def _check_finite(came: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    for what, found in (
        ("NaN", came.isnan() & ~exact.isnan()),
        ("infinite", came.isinf() & ~exact.isinf()),
    ):
        if found.any():
            place = _place(int(found.flatten().int().argmax()), came.shape)
            right = exact.flatten()[int(found.flatten().int().argmax())]
            raise AssertionError(
                f"{name}{place} is {what} and must be {right:.6g}; {found.double().mean():.0%} of the "
                f"numbers are {what}."
                + (
                    " Memory that was never written is filled with NaN here: does every element get "
                    "stored?"
                    if what == "NaN"
                    else ""
                )
            )


def _place(position: int, shape: torch.Size) -> str:
    indices = []
    for size in reversed(shape):
        indices.append(position % size)
        position //= size
    return f"[{', '.join(map(str, reversed(indices)))}]" if indices else ""


def _pattern(
    came: torch.Tensor, exact: torch.Tensor, wrong: torch.Tensor, limit: torch.Tensor
) -> str:
    """A likely reason, from which numbers are wrong and how."""
    if (came[wrong] == 0).all():
        return "All wrong numbers are 0: nothing was computed there, or nothing stored."
    if (
        came.ndim == 2
        and came.shape[0] == came.shape[1]
        and bool(((came.T - exact).abs() <= limit).all())
    ):
        return "It is the transpose of what it should be: rows and columns are mixed up."
    useful = wrong & (exact.abs() > limit) & exact.isfinite()
    if useful.sum() > 3:
        ratio = came[useful] / exact[useful]
        middle = ratio.median()
        if (
            middle.isfinite()
            and middle.abs() > 0
            and ((ratio - middle).abs() <= 0.01 * middle.abs()).all()
        ):
            return f"All wrong numbers are {middle:.4g} times too large: is a factor missing?"
    for dimension in range(came.ndim):
        size = came.shape[dimension]
        others = [d for d in range(came.ndim) if d != dimension]
        lines = wrong.any(dim=others) if others else wrong
        first = int(lines.int().argmax())
        if size > 2 and first > 0 and lines[first:].all() and not lines[:first].any():
            return (
                f"Only numbers from index {first} on are wrong in dimension {dimension}, which has {size}: "
                "is the last tile ragged, or does the grid end too early?"
            )
    return ""
