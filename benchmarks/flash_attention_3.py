"""FlashAttention-3's own CUDA kernels as a peer, where their compiled library is at hand.

PyTorch does not ship FlashAttention-3, but vLLM does: its wheel for Linux has it as
``vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so``, built for one version of PyTorch (that of vLLM 0.20.0 for
2.11). ``pip download --no-deps vllm==0.20.0`` and ``unzip`` give the file; nothing has to be installed. Say
where it is in the variable FLASH_ATTENTION_3.
"""

import functools
import os
from pathlib import Path

import torch

VARIABLE = "FLASH_ATTENTION_3"


def attention(query, key, value, causal, scales=(None, None, None)):
    """As the other contestants; made for tensors in memory as ``(batch, seq, heads, head_dim)``.

    Args:
        scales: for tensors in e4m3: what each must be multiplied with, ``(batch, kv_heads)`` in float32.
            The output is bfloat16 then.

    Raises:
        FileNotFoundError: the library is not there.
    """
    batch, heads, seq, head_dim = query.shape
    # This build takes sequences one after the other, and where each begins.
    packed = [
        x.transpose(1, 2).reshape(batch * x.shape[2], x.shape[1], head_dim)
        for x in (query, key, value)
    ]
    lengths = (seq, key.shape[2])
    starts = torch.arange(batch + 1, device=query.device, dtype=torch.int32)
    output = _library().fwd(
        *packed,
        *[None] * 4,  # new keys and values, a second query, a place for the output
        *(starts * length for length in lengths),
        *[None] * 3,  # lengths, other than those from start to start
        *lengths,
        *[None] * 6,  # pages, rotary embedding
        *scales,
        head_dim**-0.5,
        causal,
        -1,  # no window
        -1,
        0.0,  # no soft cap
        True,  # how a rotary embedding would lie
        None,
        0,  # splits: as it likes
        None,
        0,  # SMs to leave alone
        None,
        1,  # ranks of a context that is not spread
        0,
        None,
    )[0]
    return output.view(batch, seq, heads, head_dim).transpose(1, 2)


def decoder(query, key, value, lengths, block_table=None):
    """A call of no arguments: one query a sequence, over keys and values in blocks or one after the other.

    Args:
        query: ``(batch, heads, head_dim)``.
        key, value: ``(num_blocks, block_size, kv_heads, head_dim)``; without a table
            ``(batch, seq, kv_heads, head_dim)``, where every sequence has ``seq`` tokens.
        lengths: ``(batch,)`` int32.
        block_table: ``(batch, max_blocks)`` int32.

    Raises:
        FileNotFoundError: the library is not there.
    """
    starts = torch.arange(len(query) + 1, device=query.device, dtype=torch.int32)
    if block_table is None:
        seq, key_starts, lengths = key.shape[1], starts * key.shape[1], None
        key, value = key.flatten(0, 1), value.flatten(0, 1)
    else:
        seq, key_starts = block_table.shape[1] * key.shape[1], None
    arguments = (
        query,
        key,
        value,
        *[None] * 4,  # new keys and values, a second query, a place for the output
        starts,
        key_starts,
        *[None] * 2,  # where new keys start, lengths of the queries
        lengths,
        1,
        seq,
        block_table,
        *[None] * 8,  # a part of the cache, rotary embedding, scales of FP8
        query.shape[-1] ** -0.5,
        True,
        -1,  # no window
        -1,
        0.0,  # no soft cap
        True,  # how a rotary embedding would lie
        None,
        0,  # splits: as it likes
        None,
        0,  # SMs to leave alone
        None,
        1,  # ranks of a context that is not spread
        0,
        None,
    )
    library = _library()
    return lambda: library.fwd(*arguments)[0]


def at_hand() -> bool:
    """Whether the library is there."""
    return Path(os.environ.get(VARIABLE, "")).is_file()


@functools.cache
def _library():
    path = os.environ.get(VARIABLE, "")
    if not at_hand():
        raise FileNotFoundError(
            f"the peer fa3 needs {VARIABLE} to name vLLM's _vllm_fa3_C.abi3.so, got {path!r}; "
            "benchmarks/flash_attention_3.py says where it comes from"
        )
    torch.ops.load_library(path)
    return torch.ops._vllm_fa3_C
