"""PagedAttention: attention over keys and values that lie in blocks, wherever a block was free.

A cache holds the keys, or the values, of one layer: ``(num_blocks, block_size, kv_heads, head_dim)``.
Token ``p`` of a sequence is in block ``block_table[p // block_size]``, at ``p % block_size`` in it. The
caches of a model are one tensor, ``(layers, 2, num_blocks, block_size, kv_heads, head_dim)``; those of a
layer are ``kv_cache[layer, 0]`` for keys and ``kv_cache[layer, 1]`` for values.

* :func:`append` writes new keys and values into their slots.
* :func:`decode` attends with one query a sequence, :func:`prefill` with any number.
* :func:`copy_blocks` and :func:`swap_blocks` move whole blocks, within a cache and between GPU and CPU.

A cache may also be FP8 (e4m3), on GPUs from compute capability 8.9 on: half the bytes of float16, and so
nearly half of decoding's time. What is stored is then a number divided by its scale, one a tensor or one a
KV head, fixed in advance because a token's neighbours are written at other times.

What stands in tensors on the GPU (numbers of blocks, lengths, slots) cannot be checked without waiting for
it. So it is checked on the CPU only, where kernels are interpreted; on a GPU a number that is out of range
reads or writes something else. What lies beyond a sequence's length, in its table or in a block, is never
read.

Source: Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*
(2023).
"""

import math
from collections.abc import Iterator
from numbers import Real

import torch

from kernels.checks import DTYPES, MAX_HEAD_DIM, MIN_HEAD_DIM, check_device
from kernels.configurations import ARCHITECTURES, POINTER_TYPES, Configuration, strides
from kernels.flash2_forward import architecture
from kernels.paged_decode import MAX_SPLITS, decode_blocks, decode_kernel, merge_kernel
from kernels.paged_decode import decode as launch_decode
from kernels.paged_memory import BLOCK_TOKENS, COPIED_AT_ONCE, append_kernel, copy_kernel
from kernels.paged_memory import append as launch_append
from kernels.paged_memory import copy_blocks as launch_copies
from kernels.paged_memory import swap_blocks as copy_runs
from kernels.paged_prefill import prefill as launch_prefill
from kernels.paged_prefill import prefill_blocks, prefill_kernel

Tensor = torch.Tensor
FP8 = torch.float8_e4m3fn
FP8_ARCHITECTURES = tuple(each for each in ARCHITECTURES if each >= 89)


def append(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """Write keys and values of new tokens into their slots of the caches.

    Args:
        key, value: ``(tokens, kv_heads, head_dim)``; float16, bfloat16 or float32; any strides.
        key_cache, value_cache: ``(num_blocks, block_size, kv_heads, head_dim)`` in the same dtype or FP8,
            with the same strides, the last dimension contiguous.
        slot_mapping: ``(tokens,)`` int64, ``block * block_size + place in the block``, none twice; -1
            leaves a token out.
        key_scale, value_scale: for an FP8 cache, ``()`` or ``(kv_heads,)`` float32; what is stored is the
            number divided by its scale, rounded to nearest, saturated at 448.

    Raises:
        TypeError, ValueError: for what cannot be right, before any launch.
    """
    _check_caches(key_cache, value_cache)
    for name, tensor in (("key", key), ("value", value)):
        _check(name, tensor, ("tokens", "kv_heads", "head_dim"), DTYPES, key_cache)
        expected = (tensor.shape[0], *key_cache.shape[2:])
        if tensor.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with these caches it must be "
                f"(tokens, {expected[1]}, {expected[2]})"
            )
    if value.shape != key.shape or value.dtype != key.dtype:
        raise ValueError(
            f"value has shape {tuple(value.shape)} and dtype {value.dtype}; they must be key's, "
            f"{tuple(key.shape)} and {key.dtype}"
        )
    scales = _check_scales("key", key, key_cache, key_scale, value_scale)
    _check("slot_mapping", slot_mapping, ("tokens",), (torch.int64,), key_cache)
    if len(slot_mapping) != len(key):
        raise ValueError(f"slot_mapping has {len(slot_mapping)} slots for {len(key)} tokens")
    slots = key_cache.shape[0] * key_cache.shape[1]
    _check_numbers("slot_mapping", slot_mapping, -1, slots - 1)
    launch_append(key, value, key_cache, value_cache, slot_mapping, scales)


def decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lengths: Tensor,
    *,
    softmax_scale: float | None = None,
    num_splits: int | None = None,
    return_logsumexp: bool = False,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one query a sequence over all tokens of the sequence.

    Args:
        query: ``(batch, heads, head_dim)``; float16, bfloat16 or float32; any strides; ``heads`` is a
            multiple of ``kv_heads``, ``head_dim`` 16 to 256.
        key_cache, value_cache: as :func:`append` takes them.
        block_tables: ``(batch, max_blocks)`` int32, the numbers of each sequence's blocks in order. What
            is known to be unused can be cut off: the number of splits is chosen from ``max_blocks``.
        context_lengths: ``(batch,)`` int32, how many tokens each sequence has, with the query's own.
        softmax_scale: multiplies the scores; ``None`` means ``1 / sqrt(head_dim)``.
        num_splits: between how many programs to divide the tokens of a sequence, 1 to 128; ``None`` means
            as many as fill the GPU.
        key_scale, value_scale: for an FP8 cache, as it was written with.

    Returns:
        ``(batch, heads, head_dim)`` in query's dtype, contiguous; with ``return_logsumexp`` also
        ``(batch, heads)`` in float32. A sequence without tokens gets zeros and minus infinity.

    The host never waits for the GPU, and the grid depends on shapes only: a CUDA graph can hold a call.

    Raises:
        TypeError, ValueError: for what cannot be right, before any launch.
    """
    scales = _check_attention(
        query, ("batch", "heads", "head_dim"), key_cache, value_cache, key_scale, value_scale
    )
    scale = _softmax_scale(softmax_scale, query.shape[-1])
    if num_splits is not None and (
        isinstance(num_splits, bool)
        or not isinstance(num_splits, int)
        or not 1 <= num_splits <= MAX_SPLITS
    ):
        raise ValueError(
            f"num_splits must be an integer from 1 to {MAX_SPLITS}, or None, got {num_splits!r}"
        )
    _check_sequences(block_tables, context_lengths, len(query), key_cache)
    output, logsumexp = launch_decode(
        query, key_cache, value_cache, block_tables, context_lengths, scales, scale, num_splits
    )
    return (output, logsumexp) if return_logsumexp else output


def prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    *,
    max_query_length: int,
    softmax_scale: float | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last tokens of each sequence over all of its tokens.

    Args:
        query: ``(tokens, heads, head_dim)``, the sequences one after the other; otherwise as for
            :func:`decode`.
        key_cache, value_cache, block_tables: as for :func:`decode`. The new tokens' keys and values are in
            the caches already.
        query_starts: ``(batch + 1,)`` int32, where each sequence's queries begin; those of sequence ``i``
            end where those of ``i + 1`` begin.
        context_lengths: ``(batch,)`` int32, how many tokens each sequence has, earlier ones and new. A
            query's own token is the last it sees.
        max_query_length: at least the number of queries of any sequence.
        softmax_scale, key_scale, value_scale: as for :func:`decode`.

    Returns:
        ``(tokens, heads, head_dim)`` in query's dtype, contiguous; zeros for tokens of no sequence.

    Raises:
        TypeError, ValueError: for what cannot be right, before any launch.
    """
    scales = _check_attention(
        query, ("tokens", "heads", "head_dim"), key_cache, value_cache, key_scale, value_scale
    )
    scale = _softmax_scale(softmax_scale, query.shape[-1])
    if isinstance(max_query_length, bool) or not isinstance(max_query_length, int):
        raise TypeError(
            f"max_query_length must be an integer, got {type(max_query_length).__name__}"
        )
    if max_query_length < 0:
        raise ValueError(f"max_query_length must be at least 0, got {max_query_length}")
    _check("query_starts", query_starts, ("batch + 1",), (torch.int32,), key_cache)
    if len(query_starts) == 0:
        raise ValueError("query_starts has no number; it needs one more than there are sequences")
    _check_sequences(block_tables, context_lengths, len(query_starts) - 1, key_cache)
    if not query_starts.is_cuda:
        lengths = query_starts.diff()
        _check_numbers("query_starts", query_starts, 0, len(query))
        _check_numbers("the difference of query_starts", lengths, 0, max_query_length)
        _check_numbers("context_lengths less the queries", context_lengths - lengths, 0, 2**31)
    return launch_prefill(
        query,
        key_cache,
        value_cache,
        block_tables,
        query_starts,
        context_lengths,
        max_query_length,
        scales,
        scale,
    )


def copy_blocks(kv_cache: Tensor, copies: Tensor) -> None:
    """Copy blocks within a cache, keys and values of all layers, in one launch.

    Args:
        kv_cache: ``(layers, 2, num_blocks, block_size, kv_heads, head_dim)``, each block contiguous.
        copies: ``(n, 2)`` int64 on the same device, of source and target. They happen at the same time: no
            block may be a target twice, or a target and a source.

    Raises:
        TypeError, ValueError: for what cannot be right, before any launch.
    """
    _check_kv_cache("kv_cache", kv_cache)
    check_device("kv_cache", kv_cache)
    _check("copies", copies, ("n", "2"), (torch.int64,), kv_cache)
    if copies.shape[1] != 2:
        raise ValueError(f"copies must be (n, 2), of source and target, got {tuple(copies.shape)}")
    _check_numbers("copies", copies, 0, kv_cache.shape[2] - 1)
    if not copies.is_cuda:
        _check_targets("copies", copies.tolist(), sources_too=True)
    launch_copies(kv_cache, copies)


def swap_blocks(source_cache: Tensor, target_cache: Tensor, moves: Tensor) -> None:
    """Copy blocks from one cache to another, such as from the GPU to pinned memory of the CPU, or back.

    Args:
        source_cache, target_cache: ``(layers, 2, num_blocks, block_size, kv_heads, head_dim)``, alike but
            for ``num_blocks`` and the device, each block contiguous.
        moves: ``(n, 2)`` int64, of source and target, on the CPU: on the GPU the call waits for it. Moves
            whose sources and targets both follow each other become one copy.

    With pinned memory on the CPU's side the host does not wait: what it does with that memory before the
    current stream has come so far is its own risk.

    Raises:
        TypeError, ValueError: for what cannot be right, before any copy.
    """
    for name, cache in (("source_cache", source_cache), ("target_cache", target_cache)):
        _check_kv_cache(name, cache)
    alike = [
        (*cache.shape[:2], *cache.shape[3:], cache.dtype) for cache in (source_cache, target_cache)
    ]
    if alike[0] != alike[1]:
        raise ValueError(
            f"target_cache is {target_cache.dtype} {tuple(target_cache.shape)}; but for num_blocks it must "
            f"be source_cache's, {source_cache.dtype} {tuple(source_cache.shape)}"
        )
    _check("moves", moves, ("n", "2"), (torch.int64,), None)
    if moves.shape[1] != 2:
        raise ValueError(f"moves must be (n, 2), of source and target, got {tuple(moves.shape)}")
    listed = moves.tolist()
    for column, cache in enumerate((source_cache, target_cache)):
        _check_numbers("moves", torch.tensor(listed).view(-1, 2)[:, column], 0, cache.shape[2] - 1)
    _check_targets("moves", listed, sources_too=source_cache is target_cache)
    copy_runs(source_cache, target_cache, listed)


def _check(name, tensor, dimensions, dtypes, beside: Tensor | None) -> None:
    """A tensor with these dimensions, one of these dtypes, on the device of another."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.ndim != len(dimensions):
        raise ValueError(
            f"{name} must have {len(dimensions)} dimensions ({', '.join(dimensions)}), "
            f"got shape {tuple(tensor.shape)}"
        )
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {tensor.dtype}; accepted: {', '.join(map(str, dtypes))}")
    if beside is not None and tensor.device != beside.device:
        raise ValueError(f"{name} is on {tensor.device}, but the cache is on {beside.device}")


def _check_caches(key_cache, value_cache) -> None:
    dimensions = ("num_blocks", "block_size", "kv_heads", "head_dim")
    _check("key_cache", key_cache, dimensions, (*DTYPES, FP8), None)
    _check("value_cache", value_cache, dimensions, (key_cache.dtype,), key_cache)
    check_device("key_cache", key_cache)
    if value_cache.shape != key_cache.shape or value_cache.stride() != key_cache.stride():
        raise ValueError(
            f"value_cache has shape {tuple(value_cache.shape)} and strides {value_cache.stride()}; they "
            f"must be key_cache's, {tuple(key_cache.shape)} and {key_cache.stride()}"
        )
    block_size, _, head_dim = key_cache.shape[1:]
    if block_size == 0:
        raise ValueError("key_cache has block_size 0; accepted: 1 and more")
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"key_cache has head_dim {head_dim}; accepted: {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    if key_cache.stride(3) != 1:
        raise ValueError(
            f"key_cache must be contiguous in its last dimension, got strides {key_cache.stride()}"
        )
    if key_cache.dtype == FP8 and architecture(key_cache) < 89:
        raise ValueError(
            "key_cache is FP8, which needs a GPU of compute capability 8.9 or newer, got "
            f"{architecture(key_cache) / 10}: use a cache in float16 or bfloat16"
        )


def _check_attention(query, dimensions, key_cache, value_cache, key_scale, value_scale):
    """Checks that decode and prefill share; returns the scales of an FP8 cache."""
    _check_caches(key_cache, value_cache)
    _check("query", query, dimensions, DTYPES, key_cache)
    heads, head_dim = query.shape[1:]
    kv_heads = key_cache.shape[2]
    if head_dim != key_cache.shape[3]:
        raise ValueError(f"query has head_dim {head_dim}, but key_cache has {key_cache.shape[3]}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"query has {heads} heads, which is not a multiple of key_cache's {kv_heads} heads"
        )
    return _check_scales("query", query, key_cache, key_scale, value_scale)


def _check_scales(name, tensor, key_cache, key_scale, value_scale):
    """The scales, one for each KV head, if the cache is FP8; if not, it has the tensor's dtype."""
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    if key_cache.dtype != FP8:
        if key_cache.dtype != tensor.dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}, but key_cache has {key_cache.dtype}: they must be the "
                f"same, or the cache {FP8}"
            )
        for which, scale in scales.items():
            if scale is not None:
                raise ValueError(f"{which} is for an FP8 cache, but it is {key_cache.dtype}")
        return None
    kv_heads = key_cache.shape[2]
    for which, scale in scales.items():
        if scale is None:
            raise ValueError(f"an FP8 cache needs {which}: a float32 tensor () or ({kv_heads},)")
        _check(
            which, scale, ("kv_heads",)[: getattr(scale, "ndim", 1)], (torch.float32,), key_cache
        )
        if scale.shape not in ((), (kv_heads,)):
            raise ValueError(
                f"{which} has shape {tuple(scale.shape)}; accepted: () or ({kv_heads},)"
            )
    return tuple(scale.expand(kv_heads) for scale in scales.values())


def _softmax_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return head_dim**-0.5
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"softmax_scale must be a number or None, got {type(scale).__name__}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"softmax_scale must be finite and greater than 0, got {scale}")
    return float(scale)


def _check_sequences(block_tables, context_lengths, batch: int, key_cache) -> None:
    """The tables and lengths of a batch; what they say too, if they are not on a GPU."""
    _check("block_tables", block_tables, ("batch", "max_blocks"), (torch.int32,), key_cache)
    _check("context_lengths", context_lengths, ("batch",), (torch.int32,), key_cache)
    for name, tensor in (("block_tables", block_tables), ("context_lengths", context_lengths)):
        if len(tensor) != batch:
            raise ValueError(f"{name} is for {len(tensor)} sequences, but there are {batch}")
        if tensor.numel() and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}"
            )
    if context_lengths.is_cuda:
        return
    num_blocks, block_size = key_cache.shape[:2]
    places = block_tables.shape[1] * block_size
    _check_numbers("context_lengths", context_lengths, 0, places)
    firsts = torch.arange(block_tables.shape[1]) * block_size
    used = block_tables[firsts < context_lengths[:, None]]
    _check_numbers("block_tables", used, 0, num_blocks - 1)


def _check_numbers(name: str, numbers: Tensor, least: int, most: int) -> None:
    """The numbers in a tensor that the host can read; one on a GPU is not looked at."""
    if numbers.is_cuda or numbers.numel() == 0:
        return
    smallest, largest = int(numbers.min()), int(numbers.max())
    if smallest < least or largest > most:
        came = smallest if smallest < least else largest
        raise ValueError(f"{name} must be from {least} to {most}, got {came}")


def _check_kv_cache(name: str, cache) -> None:
    dimensions = ("layers", "2", "num_blocks", "block_size", "kv_heads", "head_dim")
    _check(name, cache, dimensions, (*DTYPES, FP8), None)
    if cache.shape[1] != 2:
        raise ValueError(f"{name} must be (layers, 2, ...), got shape {tuple(cache.shape)}")
    if cache.numel() and not cache[0, 0, 0].is_contiguous():
        raise ValueError(f"the blocks of {name} must be contiguous, got strides {cache.stride()}")


def _check_targets(name: str, pairs: list[list[int]], sources_too: bool) -> None:
    """What happens at the same time must not depend on an order."""
    targets = [target for _, target in pairs]
    if len(set(targets)) < len(targets):
        raise ValueError(f"{name} has a block that is a target twice")
    if sources_too and set(targets) & {source for source, _ in pairs}:
        raise ValueError(f"{name} has a block that is both a source and a target")


def configurations() -> Iterator[Configuration]:
    """The kernels as launched, for blocks of 16 tokens; bfloat16 is left out: it compiles as float16 does.

    Decoding with 4 query heads a KV head in one split, and with 64 in several; prefill with large and small
    tiles.
    """
    for cache_dtype in (torch.float16, FP8, torch.float32):
        for head_dim in (64, 128, 256):
            for arch in FP8_ARCHITECTURES if cache_dtype == FP8 else ARCHITECTURES:
                yield from _forms(cache_dtype, head_dim, arch)


def _forms(cache_dtype: torch.dtype, head_dim: int, arch: int) -> Iterator[Configuration]:
    query_dtype = torch.float16 if cache_dtype == FP8 else cache_dtype
    label = f"{str(cache_dtype).removeprefix('torch.')}, head_dim {head_dim}"
    types = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), POINTER_TYPES[query_dtype])
    cache_type = "*fp8e4nv" if cache_dtype == FP8 else POINTER_TYPES[cache_dtype]
    types |= dict.fromkeys(("cache_ptr", "key_cache_ptr", "value_cache_ptr"), cache_type)
    whole = dict.fromkeys(("max_ptr", "sum_ptr")), {"output_ptr": POINTER_TYPES[query_dtype]}
    part = {"logsumexp_ptr": None}, {"output_ptr": "*fp32"}
    scales = dict.fromkeys(("key_scale_ptr", "value_scale_ptr"))
    block_d = max(64, head_dim)
    for name, kernel, (absent, present), (constants, options) in (
        *(
            (
                f"{group} heads, {stages} stages",
                decode_kernel,
                result,
                decode_blocks(cache_dtype, head_dim, group, arch, stages),
            )
            for group, stages, result in ((4, 3, whole), (4, 4, whole), (64, 3, part))
        ),
        *(
            (
                f"{rows} rows",
                prefill_kernel,
                whole,
                prefill_blocks(cache_dtype, head_dim, rows, arch),
            )
            for rows in (16, 1024)
        ),
        (
            "merged",
            merge_kernel,
            ({}, whole[1]),
            ({"BLOCK_S": 32, "BLOCK_D": block_d}, {}),
        ),
        (
            "append",
            append_kernel,
            whole,
            ({"BLOCK_TOKENS": BLOCK_TOKENS, "BLOCK_D": block_d}, {}),
        ),
        ("copy", copy_kernel, whole, ({"BLOCK": COPIED_AT_ONCE}, {})),
    ):
        constants = constants | {"HEAD_DIM": head_dim, "BLOCK_SIZE": 16} | absent
        if cache_dtype != FP8:
            constants |= scales
        names = kernel.arg_names
        constants = {each: constants[each] for each in constants if each in names}
        arguments = {each: _type(each, types | present) for each in names if each not in constants}
        yield Configuration(f"{label}, {name}", kernel, arguments, constants, options, (arch,))


def _type(name: str, pointers: dict[str, str]) -> str | tuple[str, ...]:
    """The type of a kernel's argument, which goes by its name."""
    if name in pointers:
        return pointers[name]
    if name in ("slot_ptr", "copies_ptr"):
        return "*i64"
    if name.endswith("_ptr"):
        float32 = ("part_ptr", "max_ptr", "sum_ptr", "logsumexp_ptr")
        return "*fp32" if name in float32 or "scale" in name else "*i32"
    if name.endswith("_strides"):
        rank = {"cache_strides": 4, "scale_strides": 2, "copies_strides": 2}.get(name, 3)
        return ("i32",) * 2 if name == "scale_strides" else strides(rank)
    return "fp32" if name == "scale" else "i32"
