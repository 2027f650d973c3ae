"""Attention in FP8: twice the products a second, and what is done so that the result stays usable.

Q, K and V come in 16 bits and are rounded to e4m3, 3 bits of mantissa, and so are the weights. Four things
keep the error small, and each has a reason of its own:

* a scale for each block of rows, so that an outlier harms its block only;
* a random rotation of Q and K, which spreads an outlier over its row and leaves the scores as they are;
* weights of up to 2⁸ in place of 1, because small numbers are where e4m3 ends;
* sums in float32, where the tensor cores keep fewer bits.

Here are the checks and the choice of a kernel. What is done before the products is in
:mod:`kernels.fp8_preparation`; :mod:`kernels.fp8_hopper` has the kernel for Hopper, in Gluon, and
:mod:`kernels.fp8_forward` one in plain Triton for other GPUs with FP8, and for the interpreter.
:mod:`kernels.fp8_reference` computes the same in PyTorch on any device, with each of the four switchable.

Source: Shah et al., *FlashAttention-3* (2024), section 3.3.
"""

import functools

import torch

import kernels
from kernels import fp8_forward, fp8_hopper, hadamard
from kernels.checks import check_attention_tensors, check_device
from kernels.fp8_preparation import Prepared, prepare

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIM_STEP = 16
"""Head dimensions are multiples of 16: the hardware copies rows of whole multiples of 16 bytes."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    seed: int | None = 0,
    design: fp8_hopper.Design | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention with FP8 products; what it does to its inputs first is part of the call.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16 or bfloat16; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is a multiple of 16 from 16 to 256, and a power of two unless ``seed`` is None;
            the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        seed: of the signs of the rotation; ``None`` for no rotation.
        design: how to run on Hopper; ``None`` means :func:`kernels.fp8_hopper.shipped_design`.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or for a head
            dimension or seed that is not accepted; before any launch.
        RuntimeError: the GPU has no FP8 (compute capability below 8.9).
    """
    scale = check_inputs(query, key, value, scale)
    check_device("query", query)
    signs = rotation_signs(query, seed)
    check_fp8(query)
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
    elif runs_on_hopper(query):
        design = design or fp8_hopper.shipped_design(query.shape[-1])
        prepared = prepare_for_hopper(query, key, value, signs, design)
        fp8_hopper.forward(prepared, output, logsumexp, causal, scale, design)
    else:
        sizes, _ = fp8_forward.block_sizes(query.shape[-1])
        blocks = sizes["BLOCK_M"], sizes["BLOCK_N"]
        prepared = prepare(query, key, value, signs, *blocks, interleaved=False)
        fp8_forward.forward(prepared, output, logsumexp, causal, scale)
    return (output, logsumexp) if return_logsumexp else output


def check_inputs(query, key, value, scale: float | None) -> float:
    """The scale to use, if the tensors are what :func:`attention` accepts, on whatever device."""
    scale = check_attention_tensors(query, key, value, scale, DTYPES)
    head_dim = query.shape[-1]
    if head_dim % HEAD_DIM_STEP:
        raise ValueError(
            f"query has head_dim {head_dim}; accepted: multiples of {HEAD_DIM_STEP}, since the hardware "
            "copies rows of whole multiples of 16 bytes"
        )
    return scale


def rotation_signs(query: torch.Tensor, seed: int | None) -> torch.Tensor | None:
    """The signs of the rotation, on the tensors' device; None without."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer or None, got {type(seed).__name__}")
    head_dim = query.shape[-1]
    if head_dim & (head_dim - 1):
        raise ValueError(
            f"query has head_dim {head_dim}; accepted with a rotation: powers of two; without, which is "
            "seed=None, multiples of 16"
        )
    return _signs(head_dim, seed, query.device)


def prepare_for_hopper(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    signs: torch.Tensor | None,
    design: fp8_hopper.Design,
) -> Prepared:
    """What :func:`kernels.fp8_hopper.forward` takes."""
    blocks = fp8_hopper.ROWS, design.block_n
    return prepare(query, key, value, signs, *blocks, interleaved=True)


@functools.cache  # drawn on the CPU, and copied from there
def _signs(head_dim: int, seed: int, device: torch.device) -> torch.Tensor:
    return hadamard.random_signs(head_dim, seed).to(device)


def runs_on_hopper(query: torch.Tensor) -> bool:
    """Whether the kernel for Hopper is the one to run."""
    if kernels.INTERPRETED:
        return False
    return torch.cuda.get_device_capability(query.device) == (9, 0)


def check_fp8(query: torch.Tensor) -> None:
    """Check that a tensor's GPU multiplies in FP8; the interpreter always does.

    Raises:
        RuntimeError: its compute capability is below 8.9. The message names the emulation.
    """
    if kernels.INTERPRETED:
        return
    capability = torch.cuda.get_device_capability(query.device)
    if capability < (8, 9):
        raise RuntimeError(
            f"{torch.cuda.get_device_name(query.device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and FP8 needs at least 8.9: "
            "kernels.fp8_reference.attention computes the same in PyTorch"
        )
