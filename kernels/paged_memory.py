"""Writing into a paged cache, and moving its blocks.

:func:`append_kernel` puts new keys and values where the allocator said: token by token into slots, which
lie together only by chance. :func:`copy_kernel` carries out the copies of copy-on-write, of all layers at
once: one launch, where a copy a layer and tensor would be launched many times for a few kilobytes each.

Source: Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*
(2023), section 5.1.
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.paged_attention import head_scale, within

BLOCK_TOKENS = 16
# Numbers of a block that one program copies.
COPIED_AT_ONCE = 2048


@triton.jit
def in_cache_dtype(tile, scale, cache_ptr):
    """A tile as the cache stores it: unchanged, or divided by its scale and rounded to FP8."""
    DTYPE: tl.constexpr = cache_ptr.dtype.element_ty
    if tile.dtype == DTYPE:
        return tile
    # Rounded once, saturating.
    divisor = tl.zeros_like(tile).to(tl.float32) + scale
    return tl.div_rn(tile.to(tl.float32), divisor).to(DTYPE)


@triton.jit(do_not_specialize=("tokens",))
def append_kernel(
    key_ptr,
    value_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_ptr,
    key_scale_ptr,
    value_scale_ptr,
    key_strides,
    value_strides,
    cache_strides,
    scale_strides,
    slot_stride,
    tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_TOKENS tokens of one KV head; those whose slot is negative are left out."""
    kv_head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    rows = rows.to(tl.int64)  # [BLOCK_TOKENS]
    dims = tl.arange(0, BLOCK_D)
    slots = tl.load(slot_ptr + rows * slot_stride, mask=rows < tokens, other=-1)
    there = within(slots >= 0, dims, HEAD_DIM)
    slots = tl.maximum(slots, 0)
    # [BLOCK_TOKENS, BLOCK_D], of keys and values alike
    places = (
        (slots // BLOCK_SIZE * cache_strides[0] + slots % BLOCK_SIZE * cache_strides[1])[:, None]
        + tl.cast(kv_head, tl.int64) * cache_strides[2]
        + dims[None, :]
    )
    key_head = key_ptr + tl.cast(kv_head, tl.int64) * key_strides[1]
    value_head = value_ptr + tl.cast(kv_head, tl.int64) * value_strides[1]
    key_tile = tl.load(
        key_head + rows[:, None] * key_strides[0] + dims[None, :] * key_strides[2],
        mask=there,
        other=0.0,
    )
    value_tile = tl.load(
        value_head + rows[:, None] * value_strides[0] + dims[None, :] * value_strides[2],
        mask=there,
        other=0.0,
    )
    key_scale = head_scale(key_scale_ptr, scale_strides[0], kv_head)
    value_scale = head_scale(value_scale_ptr, scale_strides[1], kv_head)
    tl.store(key_cache_ptr + places, in_cache_dtype(key_tile, key_scale, key_cache_ptr), mask=there)
    tl.store(
        value_cache_ptr + places,
        in_cache_dtype(value_tile, value_scale, value_cache_ptr),
        mask=there,
    )


@triton.jit
def copy_kernel(
    cache_ptr,
    copies_ptr,
    copies_strides,
    cache_strides,
    block_numbers,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers of one block, of the keys or the values of one layer."""
    copy = tl.program_id(0).to(tl.int64)
    layer, tensor = tl.program_id(1) // 2, tl.program_id(1) % 2
    offsets = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    there = offsets < block_numbers
    base = cache_ptr + tl.cast(layer, tl.int64) * cache_strides[0]
    base += tl.cast(tensor, tl.int64) * cache_strides[1]
    source = tl.load(copies_ptr + copy * copies_strides[0])
    target = tl.load(copies_ptr + copy * copies_strides[0] + copies_strides[1])
    numbers = tl.load(base + source * cache_strides[2] + offsets, mask=there)
    tl.store(base + target * cache_strides[2] + offsets, numbers, mask=there)


def append(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Launch :func:`append_kernel`; arguments as :func:`kernels.paged.append` has checked them."""
    tokens, kv_heads, head_dim = key.shape
    if key.numel() == 0:
        return
    key_scale, value_scale = scales or (None, None)
    with launch_device(key):
        append_kernel[(triton.cdiv(tokens, BLOCK_TOKENS), kv_heads)](
            key,
            value,
            key_cache,
            value_cache,
            slot_mapping,
            key_scale,
            value_scale,
            key.stride(),
            value.stride(),
            key_cache.stride(),
            tuple(x.stride(0) for x in scales) if scales else (0, 0),
            slot_mapping.stride(0),
            tokens,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=key_cache.shape[1],
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=4,
        )


def copy_blocks(kv_cache: torch.Tensor, copies: torch.Tensor) -> None:
    """Launch :func:`copy_kernel`; arguments as :func:`kernels.paged.copy_blocks` has checked them."""
    layers = kv_cache.shape[0]
    block_numbers = kv_cache.shape[3:].numel()
    if len(copies) == 0 or kv_cache.numel() == 0:
        return
    with launch_device(kv_cache):
        copy_kernel[(len(copies), 2 * layers, triton.cdiv(block_numbers, COPIED_AT_ONCE))](
            kv_cache,
            copies,
            copies.stride(),
            kv_cache.stride()[:3],
            block_numbers,
            BLOCK=COPIED_AT_ONCE,
        )


def swap_blocks(
    source_cache: torch.Tensor, target_cache: torch.Tensor, moves: list[list[int]]
) -> None:
    """Copy runs of neighbouring blocks, a layer's keys or values at a time; does not wait for the GPU.

    Each is one copy by the GPU's copy engine, which needs pinned memory on the CPU's side.
    """
    for source, target, count in runs(moves):
        for layer in range(source_cache.shape[0]):
            for which in range(2):
                blocks = source_cache[layer, which, source : source + count]
                target_cache[layer, which, target : target + count].copy_(blocks, non_blocking=True)


def runs(moves: list[list[int]]) -> list[tuple[int, int, int]]:
    """Moves (source, target) as runs (source, target, count), in which both go on by one."""
    breaks = [0]
    for place, ((source, target), following) in enumerate(pairwise(moves), start=1):
        if following != [source + 1, target + 1]:
            breaks.append(place)
    return [(*moves[a], b - a) for a, b in pairwise([*breaks, len(moves)]) if b > a]
