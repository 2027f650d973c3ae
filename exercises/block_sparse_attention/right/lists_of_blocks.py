"""The mask becomes a list of visible blocks for each block of queries, which its program goes along."""

import torch
import triton
import triton.language as tl


@triton.jit
def pointers(matrix_ptr, row, strides, HEAD_DIM: tl.constexpr):
    column = tl.arange(0, HEAD_DIM).to(tl.int64)
    return matrix_ptr + row[:, None].to(tl.int64) * strides[0] + column[None, :] * strides[1]


@triton.jit
def block_sparse_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    counts_ptr,
    lists_ptr,
    output_ptr,
    query_strides,
    key_strides,
    value_strides,
    longest_list,
    scale_log2,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
):
    block = tl.program_id(0)
    row = block * 32 + tl.arange(0, 32)
    in_queries = row[:, None] < seq_query
    query = tl.load(pointers(query_ptr, row, query_strides, HEAD_DIM), mask=in_queries, other=0.0)
    running_max = tl.full([32], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([32], dtype=tl.float32)
    accumulator = tl.zeros([32, HEAD_DIM], dtype=tl.float32)

    for position in range(0, tl.load(counts_ptr + block)):
        key_row = tl.load(lists_ptr + block * longest_list + position) * 32 + tl.arange(0, 32)
        in_keys = key_row < seq_key
        key = tl.load(
            pointers(key_ptr, key_row, key_strides, HEAD_DIM), mask=in_keys[:, None], other=0.0
        )
        value = tl.load(
            pointers(value_ptr, key_row, value_strides, HEAD_DIM), mask=in_keys[:, None], other=0.0
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        scores = tl.where(in_keys[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        rescale = tl.exp2(running_max - new_max)
        exponentials = tl.exp2(scores - new_max[:, None])
        running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
        accumulator = accumulator * rescale[:, None] + tl.dot(
            exponentials.to(value.dtype), value, input_precision="ieee"
        )
        running_max = new_max

    # The largest exponential of a row that sees a key is 1, so its sum is at least 1.
    output = accumulator / tl.maximum(running_sum, 1.0)[:, None]
    tl.store(
        pointers(output_ptr, row, (HEAD_DIM, 1), HEAD_DIM),
        output.to(output_ptr.dtype.element_ty),
        mask=in_queries,
    )


def block_sparse_attention(query, key, value, block_mask, scale):
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    output = torch.empty((seq_query, head_dim), dtype=query.dtype, device=query.device)
    # Visible blocks first, in their order.
    lists = block_mask.to(torch.int32).argsort(dim=1, descending=True, stable=True)
    counts = block_mask.sum(dim=1)
    block_sparse_kernel[(lists.shape[0],)](
        query,
        key,
        value,
        counts.to(torch.int32),
        lists.to(torch.int32).contiguous(),
        output,
        query.stride(),
        key.stride(),
        value.stride(),
        lists.shape[1],
        scale * 1.4426950408889634,
        seq_query,
        seq_key,
        HEAD_DIM=head_dim,
    )
    return output
