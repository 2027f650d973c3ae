"""What kernels/paged.py computes, in plain PyTorch: fast enough on a CPU for long random runs.

tests/serving/test_engine.py holds it equal to the kernels.
"""

import torch


def append(key, value, key_cache, value_cache, slot_mapping):
    written = slot_mapping >= 0
    for new, cache in ((key, key_cache), (value, value_cache)):
        block, offset = (
            slot_mapping[written] // cache.shape[1],
            slot_mapping[written] % cache.shape[1],
        )
        cache[block, offset] = new[written].to(cache.dtype)


def _attend(query, key_cache, value_cache, table, length, scale):
    """``(tokens, heads, head_dim)``, the last tokens of one sequence."""
    seq, heads, dim = query.shape
    if length == 0:
        return torch.zeros_like(query)
    position = torch.arange(length, device=query.device)
    block, offset = table.long()[position // key_cache.shape[1]], position % key_cache.shape[1]
    group = heads // key_cache.shape[2]
    key, value = (
        cache[block, offset].float().repeat_interleave(group, 1).transpose(0, 1)
        for cache in (key_cache, value_cache)
    )
    scores = query.float().transpose(0, 1) @ key.mT * (scale or dim**-0.5)
    hidden = position > position[length - seq :, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ value).transpose(0, 1).to(query.dtype)


def decode(query, key_cache, value_cache, block_tables, context_lengths, *, softmax_scale=None):
    rows = zip(query, block_tables, context_lengths.tolist(), strict=True)
    return torch.cat(
        [
            _attend(one[None], key_cache, value_cache, table, length, softmax_scale)
            for one, table, length in rows
        ]
    )


def prefill(
    query,
    key_cache,
    value_cache,
    block_tables,
    query_starts,
    context_lengths,
    *,
    max_query_length,
    softmax_scale=None,
):
    lengths = query_starts.diff()
    assert lengths.max() <= max_query_length
    rows = zip(query.split(lengths.tolist()), block_tables, context_lengths.tolist(), strict=True)
    return torch.cat(
        [
            _attend(part, key_cache, value_cache, table, length, softmax_scale)
            for part, table, length in rows
        ]
    )


def copy_blocks(kv_cache, copies):
    kv_cache[:, :, copies[:, 1]] = kv_cache[:, :, copies[:, 0]]


def swap_blocks(source_cache, target_cache, moves):
    target_cache[:, :, moves[:, 1]] = source_cache[:, :, moves[:, 0]].to(target_cache.device)
