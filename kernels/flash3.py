"""FlashAttention-3, forward, for Hopper: one warp moves tiles, the others multiply and exponentiate.

The arithmetic is FlashAttention-2's. What changes is who does it, and when. Hopper's units work without
being waited for: the tensor memory accelerator (TMA) copies whole tiles between HBM and shared memory, and
a warpgroup (four warps) starts a matrix product and goes on. So the kernel is written as programs that run
side by side on one SM and talk through barriers in shared memory:

* the producer, in a few registers, keeps rings of K and V tiles full;
* each consumer, a warpgroup with the registers that the producer gave up, owns 64 queries.

Five ideas, each of them a switch or a number of a :class:`Design`, so that each can be measured alone:

* ``specialized``: there is a producer. Without, the warps that compute also start the loads.
* ``stages``: slots of the ring of K and V, and so how far the loads run ahead.
* ``overlap``: how much of a tile's softmax runs under a product of the same warps, of the weights of the
  tile before with their V.
* ``pingpong``: consumers take turns at the tensor cores, so that the softmax of one runs under the
  products of another.
* ``persistent``: one program an SM, which takes one tile of queries after the other, so that the next
  tile's loads run under the end of this one's.

Written in Gluon, Triton's language for those who place the data themselves. It needs compute capability
9.0; on other GPUs :mod:`kernels.flash2` runs. Here is how it is launched; the kernel itself is in
:mod:`kernels.flash3_kernel`, and the rings in :mod:`kernels.flash3_pipeline`.

Source: Shah et al., *FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision*
(2024).
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.checks import check_attention_tensors, check_device, launch_device
from kernels.configurations import POINTER_TYPES, Configuration
from kernels.flash3_kernel import flash3_kernel
from kernels.online_softmax import LOG2_E

DTYPES = (torch.float16, torch.bfloat16)
OVERLAPS = ("none", "maximum", "softmax")


@dataclass(frozen=True)
class Design:
    """One way to run the kernel.

    Attributes:
        block_n: keys a tile.
        warpgroups: how many compute, 2 or 3, on 64 queries each. Without ``specialized`` they are 2 and
            work in step, as one consumer of 128 queries that loads for itself.
        stages: slots, for a tile of K and a tile of V each.
        specialized, pingpong, persistent: see the module.
        overlap: what runs under the product with V: ``"none"``, the ``"maximum"`` of each row, or the whole
            ``"softmax"``, as in the paper. Exponentials after that product can be mixed by the assembler
            with what has to follow it, the rounding of weights, and so fill the gaps of one another.
        output_apart: give the output a place of its own in shared memory. The queries of the next tile
            then load under the last products of this one; otherwise the output leaves through their slot.
    """

    block_n: int
    warpgroups: int = 2
    stages: int = 2
    specialized: bool = True
    overlap: str = "maximum"
    pingpong: bool = False
    persistent: bool = True
    output_apart: bool = True

    def __post_init__(self):
        if self.overlap not in OVERLAPS:
            raise ValueError(f"overlap must be one of {OVERLAPS}; got {self.overlap!r}")
        accepted = (2, 3) if self.specialized else (2,)
        if self.warpgroups not in accepted:
            raise ValueError(
                f"warpgroups must be 2 or 3, and 2 without specialized; got {self.warpgroups} "
                f"with specialized={self.specialized}"
            )
        if self.pingpong and not self.specialized:
            raise ValueError(
                "pingpong needs specialized: one consumer has nobody to take turns with"
            )

    @property
    def consumers(self) -> int:
        """Consumers of a program."""
        return self.warpgroups if self.specialized else 1

    @property
    def rows(self) -> int:
        """Queries of a consumer."""
        return 64 if self.specialized else 64 * self.warpgroups

    @property
    def registers(self) -> int:
        """Registers that a thread of a consumer gets beside a producer.

        An SM has 512 for each of the 128 threads of a warpgroup. They are given out in steps of 8: two
        consumers of 240 leave the producer 24 of them (and 8 to nobody), three of 160 leave it 32.
        """
        return {2: 240, 3: 160}[self.warpgroups]

    @property
    def warps(self) -> int:
        """Warps of the launch: the producer's, or all; Triton adds the consumers'."""
        return 4 if self.specialized else 4 * self.warpgroups


@functools.cache
def shipped_design(head_dim: int) -> Design:
    """The design that :func:`attention` uses for a head dimension."""
    block_d = padded_head_dim(head_dim)
    if block_d == 64:
        return Design(block_n=128, warpgroups=3, overlap="none", pingpong=True)
    if block_d == 128:
        return Design(block_n=128)
    return Design(block_n=64, output_apart=False)


@functools.cache
def padded_head_dim(head_dim: int) -> int:
    """Columns of a tile: a power of two, of at least the 128 bytes in which a tile is swizzled."""
    return max(64, triton.next_power_of_2(head_dim))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    design: Design | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention-3 forward, on a Hopper GPU.

    The TMA wants a contiguous last dimension, other strides of whole multiples of 16 bytes, and tensors
    that start at one; an input that is laid out otherwise is copied once.

    Args:
        query: ``(batch, heads, seq_query, head_dim)``; float16 or bfloat16; any strides.
        key, value: ``(batch, kv_heads, seq_key, head_dim)``; ``heads`` is a multiple of ``kv_heads``.
            ``head_dim`` is a multiple of 8 from 16 to 256; the lengths are any, 0 included.
        causal: hide later keys; aligned at the bottom right when the lengths differ.
        scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        design: how to run; ``None`` means :func:`shipped_design`.

    Returns:
        ``(batch, heads, seq_query, head_dim)`` in the inputs' dtype, contiguous; with
        ``return_logsumexp`` also ``(batch, heads, seq_query)`` in float32. A query that sees no key gets
        zeros and minus infinity.

    Raises:
        TypeError, ValueError: as :func:`kernels.checks.check_attention_inputs` says, or if ``head_dim`` is
            no multiple of 8; before any launch.
        RuntimeError: the GPU is not of compute capability 9.0.
    """
    scale = check_inputs(query, key, value, scale)
    check_device("query", query)
    _check_hopper(query)
    design = design or shipped_design(query.shape[-1])
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if key.shape[2] == 0 or output.numel() == 0:
        output.zero_(), logsumexp.fill_(float("-inf"))
        return (output, logsumexp) if return_logsumexp else output
    programs = torch.cuda.get_device_properties(query.device).multi_processor_count
    grid, arguments, constants = launch(
        query, key, value, output, logsumexp, causal, scale, design, programs
    )
    with launch_device(query):
        flash3_kernel[grid](*arguments, **constants, num_warps=design.warps)
    return (output, logsumexp) if return_logsumexp else output


def check_inputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> float:
    """The scale to use, if the inputs are what :func:`attention` accepts, on whatever device they are."""
    scale = check_attention_tensors(query, key, value, scale, DTYPES)
    if query.shape[-1] % 8:
        raise ValueError(
            f"query has head_dim {query.shape[-1]}; accepted: multiples of 8, since the TMA copies "
            "rows of whole multiples of 16 bytes"
        )
    return scale


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    causal: bool,
    scale: float,
    design: Design,
    programs: int,
) -> tuple[tuple[int], tuple, dict]:
    """Grid, arguments and constants of :func:`flash3_kernel` for tensors that are not empty.

    Args:
        output, logsumexp: contiguous; the kernel writes every element.
        programs: how many a persistent grid has; one an SM.
    """
    batch, heads, seq_query, head_dim = query.shape
    blocks = triton.cdiv(seq_query, design.consumers * design.rows)
    rows = [design.rows, padded_head_dim(head_dim)]
    columns = [design.block_n, rows[1]]
    arguments = (
        _descriptor(_readable(query), [1, 1, *rows]),
        _descriptor(_readable(key), [1, 1, *columns]),
        _descriptor(_readable(value), [1, 1, *columns]),
        _descriptor(output.view(batch * heads, seq_query, head_dim), [1, *rows]),
        logsumexp,
        scale * LOG2_E,
        _heads_together(query, key, blocks, programs if design.persistent else 0) if causal else 1,
    )
    tiles = batch * heads * blocks
    constants = {
        "CAUSAL": causal,
        "CONSUMERS": design.consumers,
        "STAGES": design.stages,
        "OVERLAP": design.overlap,
        "PINGPONG": design.pingpong,
        "APART": design.output_apart,
        "REGISTERS": design.registers,
    }
    return (min(tiles, programs) if design.persistent else tiles,), arguments, constants


def _heads_together(query, key, blocks: int, programs: int) -> int:
    """Of how many heads the long tiles start together, under a causal mask.

    Programs of a persistent launch go back and forth over the tiles of these heads, so each gets as much
    to do as the others if there and back takes them all, and starts level with the next heads. Without,
    the hardware gives the next tile to whoever is free; then few heads, with K and V in 32 MiB of the L2
    cache.
    """
    if programs:
        return math.lcm(2 * programs, blocks) // blocks
    seq_key, head_dim = key.shape[2:]
    return query.shape[1] // key.shape[1] * max(1, 2**25 // (4 * seq_key * head_dim))


def _descriptor(tensor: torch.Tensor, tile: list[int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, tile, _layout(tuple(tile), tensor.dtype))


@functools.cache  # it takes the host longer than the rest of a descriptor
def _layout(tile: tuple[int, ...], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(list(tile), getattr(gl, str(dtype)[6:]))


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a contiguous copy if the TMA cannot read it where it lies."""
    *strides, last = tensor.stride()
    aligned = all(stride > 0 and stride * tensor.itemsize % 16 == 0 for stride in strides)
    if last == 1 and aligned and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_hopper(query: torch.Tensor) -> None:
    if query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0):
        return
    came = "the CPU"
    if query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        came = f"{torch.cuda.get_device_name(query.device)}, of compute capability {major}.{minor}"
    raise RuntimeError(
        f"kernels.flash3 runs on a GPU of compute capability 9.0 (Hopper), but query is on {came}: "
        "kernels.flash2 computes the same there"
    )


def configurations() -> Iterator[Configuration]:
    """Every form that :func:`attention` launches at head dimensions 64, 128 and 256."""
    for head_dim in (64, 128, 256):
        for causal in (False, True):
            label = f"float16, head_dim {head_dim}" + (", causal" if causal else "")
            yield configuration(label, torch.float16, head_dim, causal, shipped_design(head_dim))


def configuration(
    label: str, dtype: torch.dtype, head_dim: int, causal: bool, design: Design
) -> Configuration:
    """The compiled form that a design gives."""
    tensor = torch.empty(1, 1, 1, head_dim, dtype=dtype)
    logsumexp = torch.empty(1, 1, 1)
    _, arguments, constants = launch(
        tensor, tensor, tensor, tensor.clone(), logsumexp, causal, 1.0, design, 1
    )
    types = [_descriptor_type(descriptor) for descriptor in arguments[:4]]
    return Configuration(
        label,
        flash3_kernel,
        dict(zip(flash3_kernel.arg_names, [*types, "*fp32", "fp32", "i32"], strict=False)),
        constants,
        {"num_warps": design.warps},
        (90,),
    )


def _descriptor_type(descriptor: TensorDescriptor) -> str:
    dtype = POINTER_TYPES[descriptor.base.dtype].removeprefix("*")
    return f"tensordesc<{dtype}{list(descriptor.block_shape)},{descriptor.layout!r}>"
