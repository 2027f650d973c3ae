"""FlashAttention-2, backward: gradients from Q, K, V, O and the logsumexp, with S and P made again.

With S the scaled scores, P = exp(S - logsumexp), O = P V::

    dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - delta)      dQ = scale · dS K      dK = scale · dSᵀ Q

where delta = rowsum(dO ∘ O) stands for rowsum(P ∘ dP). Three kernels:

* :func:`prepare_kernel` computes delta.
* :func:`key_value_kernel`: a program owns a tile of keys, walks along the queries that see it, and keeps dK
  and dV in registers. Query heads that share a key head are walked along one after the other.
* :func:`query_kernel`: a program owns a tile of queries, walks along its keys and keeps dQ.

S and dP are computed in both passes, so that is seven matrix products where five would do. The paper walks
once and lets all programs add to dQ in memory with atomic additions, whose order, and so whose rounding,
differs from run to run. Here every number is added up by one program in one order: two runs agree in every
bit.

Source: Dao, *FlashAttention-2* (2023), Section 3.1 and Algorithm 2.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.checks import launch_device
from kernels.configurations import Configuration
from kernels.flash2_forward import (
    KeyHead,
    architecture,
    block_and_head,
    block_sizes,
    heads_together,
    shipped,
    switches,
)
from kernels.score_options import (
    LOG2_E_CONSTANT,
    Rules,
    cap_scores,
    is_kept,
    is_visible,
    tiles_seen,
)
from kernels.tiles import load_tile, store_tile


@triton.jit
def prepare_kernel(
    output_ptr,
    grad_output_ptr,
    logsumexp_ptr,
    grad_logsumexp_ptr,
    delta_ptr,
    shift_ptr,
    grad_output_strides,
    scale,
    heads,
    seq_query,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta of BLOCK_M rows of one head, and their logsumexp in the unit of unscaled scores."""
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    start_m = tl.program_id(0) * BLOCK_M
    in_m, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    first_row = batch_head * seq_query
    output_tile = load_tile(  # [BLOCK_M, BLOCK_D]
        output_ptr + first_row * HEAD_DIM,
        start_m,
        in_m,
        dims,
        (0, 0, HEAD_DIM, 1),
        seq_query,
        HEAD_DIM,
    )
    grad_output_head = (
        grad_output_ptr + batch * grad_output_strides[0] + head * grad_output_strides[1]
    )
    grad_output_tile = load_tile(
        grad_output_head, start_m, in_m, dims, grad_output_strides, seq_query, HEAD_DIM
    )
    rows = start_m + in_m
    places, in_rows = first_row + rows, rows < seq_query
    # A row's logsumexp is differentiable too. d logsumexp / dS = P, so it joins delta.
    delta = tl.sum(output_tile.to(tl.float32) * grad_output_tile.to(tl.float32), axis=1)
    delta -= tl.load(grad_logsumexp_ptr + places, mask=in_rows, other=0.0)
    tl.store(delta_ptr + places, delta, mask=in_rows)
    # Minus infinity for a row that saw no key. Its P is infinite then, and hidden in every tile.
    logsumexp = tl.load(logsumexp_ptr + places, mask=in_rows, other=0.0)
    tl.store(shift_ptr + places, logsumexp / scale, mask=in_rows)


@triton.jit
def score_gradients(
    left_score,
    right_score,
    left_weight,
    right_weight,
    shift,
    delta,
    rows,
    columns,
    rules,
    batch_head,
    HIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """The weights of a tile, as V was multiplied with them, and dS: the step that both passes share.

    Args:
        left_score, right_score: their product is the tile of unscaled scores, or its transpose.
        left_weight, right_weight: the same for dP.
        shift, delta, rows: of the tile's queries; columns: its keys; shaped so that they broadcast to it.

    A product starts from minus the shift, or minus delta, in place of zero. So these are needed before
    the product only, and take no registers from it: transposed, each thread would hold one of each for
    every other score.
    """
    nothing = tl.zeros([left_score.shape[0], right_score.shape[1]], dtype=tl.float32)
    if SOFTCAP:
        scores = tl.dot(left_score, right_score, input_precision="ieee")
        capped = cap_scores(scores, rules)
        probabilities = tl.exp2((capped - shift) * LOG2_E_CONSTANT)
    else:
        below = tl.dot(left_score, right_score, nothing - shift, input_precision="ieee")
        probabilities = tl.exp2(below * (rules.scale * LOG2_E_CONSTANT))
    if HIDE:
        visible = is_visible(rows, columns, rules)
        probabilities = tl.where(visible, probabilities, 0.0)
    if DROPOUT:
        grad_weights = tl.dot(left_weight, right_weight, input_precision="ieee")
        kept = is_kept(batch_head, rows, columns, rules)
        weights = tl.where(kept, probabilities, 0.0)
        grad_scores = probabilities * (
            tl.where(kept, grad_weights / (1.0 - rules.dropout), 0.0) - delta
        )
    else:
        above = tl.dot(left_weight, right_weight, nothing - delta, input_precision="ieee")
        weights = probabilities
        grad_scores = probabilities * above
    if SOFTCAP:
        # The derivative of tanh is 1 - tanh².
        grad_scores *= 1.0 - (capped / rules.softcap) * (capped / rules.softcap)
    return weights, grad_scores


class QueryGroup(NamedTuple):
    """In memory, what belongs to the query heads that share a key head; pointers are of the first one."""

    query_ptr: tl.tensor
    grad_output_ptr: tl.tensor
    shift_ptr: tl.tensor
    delta_ptr: tl.tensor
    query_strides: tl.tuple
    grad_output_strides: tl.tuple


@triton.jit
def gather_from_queries(
    first,
    last,
    key_tile,
    value_tile,
    grad_key,
    grad_value,
    group,
    rules,
    batch_head,
    heads_per_kv_head,
    columns,
    dims,
    HEAD_DIM: tl.constexpr,
    HIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add what the query tiles ``first`` to ``last`` of a group's heads give to dK and dV of BLOCK_N keys.

    ``group`` and ``batch_head`` are of the group's first head.
    """
    in_m = tl.arange(0, BLOCK_M)  # places within a tile
    tiles = last - first
    # The compiler takes a division as a promise that the divisor is not 0, and would drop the loop's bound.
    divisor = tl.maximum(tiles, 1)
    # One loop over heads and tiles: two nested ones need more registers than there are.
    for step in range(tiles * heads_per_kv_head):
        member, tile = step // divisor, first + step % divisor
        start_m = tile * BLOCK_M
        rows = start_m + in_m  # [BLOCK_M]
        # Whole tiles end before the last query does.
        end = rules.seq_query if HIDE else start_m + BLOCK_M
        head = tl.cast(member, tl.int64)
        query_head = group.query_ptr + head * group.query_strides[1]
        query_tile = load_tile(query_head, start_m, in_m, dims, group.query_strides, end, HEAD_DIM)
        grad_output_head = group.grad_output_ptr + head * group.grad_output_strides[1]
        grad_output_tile = load_tile(
            grad_output_head, start_m, in_m, dims, group.grad_output_strides, end, HEAD_DIM
        )
        # Past the last query Q and dO are 0, and so is what they add, whatever P is.
        places = member * rules.seq_query + rows
        shift = tl.load(group.shift_ptr + places, mask=rows < end, other=0.0)
        delta = tl.load(group.delta_ptr + places, mask=rows < end, other=0.0)

        # Transposed, [BLOCK_N, BLOCK_M]: so they are left operands below as they come.
        weights, grad_scores = score_gradients(
            key_tile,
            tl.trans(query_tile),
            value_tile,
            tl.trans(grad_output_tile),
            shift[None, :],
            delta[None, :],
            rows[None, :],
            columns[:, None],
            rules,
            batch_head + member,
            HIDE,
            SOFTCAP,
            DROPOUT,
        )
        grad_value = tl.dot(
            weights.to(value_tile.dtype), grad_output_tile, grad_value, input_precision="ieee"
        )
        grad_key = tl.dot(
            grad_scores.to(key_tile.dtype), query_tile, grad_key, input_precision="ieee"
        )
    return grad_key, grad_value


@triton.jit(do_not_specialize=("before", "after", "heads_together"))
def key_value_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_output_ptr,
    shift_ptr,
    delta_ptr,
    grad_key_ptr,
    grad_value_ptr,
    seed_ptr,
    query_strides,
    key_strides,
    value_strides,
    grad_output_strides,
    scale,
    softcap,
    dropout,
    before,
    after,
    heads_together,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    LEFT_EDGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dK and dV of BLOCK_N keys of one key head, from all the query heads that share it."""
    rules = Rules(seed_ptr, scale, softcap, dropout, before, after, seq_query, seq_key)
    blocks_n = tl.cdiv(seq_key, BLOCK_N)
    kv_heads = heads // heads_per_kv_head
    # Under a causal mask the first tile of keys is seen by the most queries.
    batch_kv_heads = tl.num_programs(0) // blocks_n
    block_n, batch_kv_head = block_and_head(blocks_n, batch_kv_heads, heads_together)
    batch, kv_head = batch_kv_head // kv_heads, batch_kv_head % kv_heads
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    start_n = block_n * BLOCK_N
    in_n = tl.arange(0, BLOCK_N)
    columns = start_n + in_n  # [BLOCK_N]
    key_head = key_ptr + batch * key_strides[0] + kv_head * key_strides[1]
    value_head = value_ptr + batch * value_strides[0] + kv_head * value_strides[1]
    key_tile = load_tile(key_head, start_n, in_n, dims, key_strides, seq_key, HEAD_DIM)
    value_tile = load_tile(value_head, start_n, in_n, dims, value_strides, seq_key, HEAD_DIM)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)

    # Seen from a key the roles are exchanged: it is seen by queries `after` before it, `before` after it.
    position = start_n - (seq_key - seq_query)
    stop = tl.minimum(start_n + BLOCK_N, seq_key) - (seq_key - seq_query)
    bounds = tiles_seen(position, stop, after, before, seq_query, BLOCK_M)
    head = kv_head * heads_per_kv_head  # the first of the group
    batch_head = batch * heads + head
    group = QueryGroup(
        query_ptr + batch * query_strides[0] + head * query_strides[1],
        grad_output_ptr + batch * grad_output_strides[0] + head * grad_output_strides[1],
        shift_ptr + batch_head * seq_query,
        delta_ptr + batch_head * seq_query,
        query_strides,
        grad_output_strides,
    )
    for PART in tl.static_range(3):
        if LEFT_EDGE or PART > 0:
            grad_key, grad_value = gather_from_queries(
                bounds[PART],
                bounds[PART + 1],
                key_tile,
                value_tile,
                grad_key,
                grad_value,
                group,
                rules,
                batch_head,
                heads_per_kv_head,
                columns,
                dims,
                HEAD_DIM,
                PART != 1,
                SOFTCAP,
                DROPOUT,
                BLOCK_M,
            )

    if DROPOUT:
        grad_value = grad_value / (1.0 - dropout)
    first = batch_kv_head * seq_key * HEAD_DIM
    store_tile(grad_key_ptr + first, columns, dims, grad_key * scale, seq_key, HEAD_DIM)
    store_tile(grad_value_ptr + first, columns, dims, grad_value, seq_key, HEAD_DIM)


@triton.jit
def gather_from_keys(
    first,
    last,
    query_tile,
    grad_output_tile,
    grad_query,
    shift,
    delta,
    key_head,
    rules,
    batch_head,
    rows,
    dims,
    HEAD_DIM: tl.constexpr,
    HIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what the key tiles ``first`` to ``last`` give to dQ of BLOCK_M queries."""
    in_n = tl.arange(0, BLOCK_N)  # places within a tile
    for start_n in range(first * BLOCK_N, last * BLOCK_N, BLOCK_N):
        end = rules.seq_key if HIDE else start_n + BLOCK_N
        columns = start_n + in_n  # [BLOCK_N]
        key_tile = load_tile(
            key_head.key_ptr, start_n, in_n, dims, key_head.key_strides, end, HEAD_DIM
        )
        value_tile = load_tile(
            key_head.value_ptr, start_n, in_n, dims, key_head.value_strides, end, HEAD_DIM
        )
        # [BLOCK_M, BLOCK_N]
        _, grad_scores = score_gradients(
            query_tile,
            tl.trans(key_tile),
            grad_output_tile,
            tl.trans(value_tile),
            shift[:, None],
            delta[:, None],
            rows[:, None],
            columns[None, :],
            rules,
            batch_head,
            HIDE,
            SOFTCAP,
            DROPOUT,
        )
        grad_query = tl.dot(
            grad_scores.to(key_tile.dtype), key_tile, grad_query, input_precision="ieee"
        )
    return grad_query


@triton.jit(do_not_specialize=("before", "after", "heads_together"))
def query_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_output_ptr,
    shift_ptr,
    delta_ptr,
    grad_query_ptr,
    seed_ptr,
    query_strides,
    key_strides,
    value_strides,
    grad_output_strides,
    scale,
    softcap,
    dropout,
    before,
    after,
    heads_together,
    heads,
    heads_per_kv_head,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    LEFT_EDGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ of BLOCK_M queries of one head. The program has the shape of the forward kernel's."""
    rules = Rules(seed_ptr, scale, softcap, dropout, before, after, seq_query, seq_key)
    blocks_m = tl.cdiv(seq_query, BLOCK_M)
    batch_heads = tl.num_programs(0) // blocks_m
    block, batch_head = block_and_head(blocks_m, batch_heads, heads_together)
    batch, head = batch_head // heads, batch_head % heads
    kv_head = head // heads_per_kv_head
    query_head = query_ptr + batch * query_strides[0] + head * query_strides[1]
    key_head = KeyHead(
        key_ptr + batch * key_strides[0] + kv_head * key_strides[1],
        value_ptr + batch * value_strides[0] + kv_head * value_strides[1],
        key_strides,
        value_strides,
    )
    grad_output_head = (
        grad_output_ptr + batch * grad_output_strides[0] + head * grad_output_strides[1]
    )
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    start_m = (blocks_m - 1 - block) * BLOCK_M
    in_m = tl.arange(0, BLOCK_M)
    rows = start_m + in_m  # [BLOCK_M]
    query_tile = load_tile(query_head, start_m, in_m, dims, query_strides, seq_query, HEAD_DIM)
    grad_output_tile = load_tile(
        grad_output_head, start_m, in_m, dims, grad_output_strides, seq_query, HEAD_DIM
    )
    places = batch_head * seq_query + rows
    shift = tl.load(shift_ptr + places, mask=rows < seq_query, other=0.0)
    delta = tl.load(delta_ptr + places, mask=rows < seq_query, other=0.0)
    grad_query = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)

    position = start_m + seq_key - seq_query
    stop = tl.minimum(start_m + BLOCK_M, seq_query) + seq_key - seq_query
    bounds = tiles_seen(position, stop, before, after, seq_key, BLOCK_N)
    for PART in tl.static_range(3):
        if LEFT_EDGE or PART > 0:
            grad_query = gather_from_keys(
                bounds[PART],
                bounds[PART + 1],
                query_tile,
                grad_output_tile,
                grad_query,
                shift,
                delta,
                key_head,
                rules,
                batch_head,
                rows,
                dims,
                HEAD_DIM,
                PART != 1,
                SOFTCAP,
                DROPOUT,
                BLOCK_N,
            )
    grad_query_head = grad_query_ptr + batch_head * seq_query * HEAD_DIM
    store_tile(grad_query_head, rows, dims, grad_query * scale, seq_query, HEAD_DIM)


def backward(
    grad_output: torch.Tensor,
    grad_logsumexp: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    seed: torch.Tensor | None,
    scale: float,
    before: int,
    after: int,
    softcap: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the three kernels; arguments as :func:`kernels.flash2_forward.forward` took and returned them.

    Args:
        grad_output: gradient of the output, any strides.
        grad_logsumexp: gradient of the logsumexp, contiguous, float32.

    Returns:
        Gradients of query, key and value, contiguous, in their dtype.
    """
    batch, heads, seq_query, head_dim = query.shape
    kv_heads, seq_key = key.shape[1:3]
    tensors = (query, key, value)
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in tensors)
    delta, shift = torch.empty_like(logsumexp), torch.empty_like(logsumexp)
    if query.numel() == 0 or key.numel() == 0:
        return tuple(x.zero_() for x in (grad_query, grad_key, grad_value))
    block_d = triton.next_power_of_2(head_dim)
    everything = seq_query + seq_key
    optional = softcap > 0.0 or dropout > 0.0
    arguments = (
        seed,
        query.stride(),
        key.stride(),
        value.stride(),
        grad_output.stride(),
        scale,
        softcap,
        dropout,
        before,
        after,
        heads_together(key, after),
        heads,
        heads // kv_heads,
        seq_query,
        seq_key,
    )
    with launch_device(query):
        prepare_kernel[(triton.cdiv(seq_query, 64), batch * heads)](
            output,
            grad_output,
            logsumexp,
            grad_logsumexp,
            delta,
            shift,
            grad_output.stride(),
            1.0 if softcap else scale,
            heads,
            seq_query,
            HEAD_DIM=head_dim,
            BLOCK_M=64,
            BLOCK_D=block_d,
        )
        sizes, options = key_value_blocks(query.dtype, head_dim, architecture(query), optional)
        grid = (triton.cdiv(seq_key, sizes["BLOCK_N"]) * batch * kv_heads,)
        key_value_kernel[grid](
            *tensors,
            grad_output,
            shift,
            delta,
            grad_key,
            grad_value,
            *arguments,
            **switches(head_dim, after, softcap, dropout, everything),
            **sizes,
            **options,
        )
        sizes, options = query_blocks(query.dtype, head_dim, architecture(query), optional)
        grid = (triton.cdiv(seq_query, sizes["BLOCK_M"]) * batch * heads,)
        query_kernel[grid](
            *tensors,
            grad_output,
            shift,
            delta,
            grad_query,
            *arguments,
            **switches(head_dim, before, softcap, dropout, everything),
            **sizes,
            **options,
        )
    return grad_query, grad_key, grad_value


def key_value_blocks(
    dtype: torch.dtype, head_dim: int, architecture: int, optional: bool = False
) -> tuple[dict, dict]:
    """Tile sizes, warps and stages of :func:`key_value_kernel`; arguments as ``forward_blocks``."""
    block_d = triton.next_power_of_2(head_dim)
    hopper = architecture == 90
    if dtype == torch.float32:
        if hopper:
            return block_sizes(16, 32, block_d, 8, 2)
        return block_sizes(16, 16, block_d, 8 if block_d == 256 else 4, 2)
    if optional or block_d == 256:
        return block_sizes(32, 64 if block_d <= 64 else 32, block_d, 8, 2)
    if block_d <= 64:
        return block_sizes(64, 64, block_d, 4, 3) if hopper else block_sizes(64, 128, block_d, 8, 2)
    return block_sizes(64, 128, block_d, 8, 3) if hopper else block_sizes(32, 64, block_d, 8, 2)


def query_blocks(
    dtype: torch.dtype, head_dim: int, architecture: int, optional: bool = False
) -> tuple[dict, dict]:
    """The same for :func:`query_kernel`."""
    block_d = triton.next_power_of_2(head_dim)
    hopper = architecture == 90
    if dtype == torch.float32:
        return block_sizes(32, 32 if block_d <= 64 else 16, block_d, 8, 2)
    if optional:
        return block_sizes(64 if block_d <= 64 else 32, 32, block_d, 8, 2)
    if block_d == 256:
        return block_sizes(*((64, 32, 256, 8) if hopper else (32, 32, 256, 4)), 2)
    if block_d <= 64:
        return block_sizes(64, 64, block_d, 4, 3)
    return block_sizes(128, 64, block_d, 8, 3) if hopper else block_sizes(64, 64, block_d, 8, 2)


def configurations() -> Iterator[Configuration]:
    """Both passes as shipped."""
    yield from shipped({key_value_kernel: key_value_blocks, query_kernel: query_blocks})
