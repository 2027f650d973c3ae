"""No branch: the loads of a hidden block are masked, and its scores are minus infinity."""

import triton
import triton.language as tl


@triton.jit
def load_tile(matrix_ptr, row, row_stride, column_stride, inside, HEAD_DIM: tl.constexpr):
    column = tl.arange(0, HEAD_DIM).to(tl.int64)
    addresses = row[:, None].to(tl.int64) * row_stride + column[None, :] * column_stride
    return tl.load(matrix_ptr + addresses, mask=inside[:, None], other=0.0)


@triton.jit
def block_sparse_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    output_ptr,
    query_row_stride,
    query_column_stride,
    key_row_stride,
    key_column_stride,
    value_row_stride,
    value_column_stride,
    mask_row_stride,
    mask_column_stride,
    scale,
    seq_query,
    seq_key,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    query = load_tile(
        query_ptr, row, query_row_stride, query_column_stride, row < seq_query, HEAD_DIM
    )
    running_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([ROWS], dtype=tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)

    for start in range(0, seq_key, 32):
        address = first_row // 32 * mask_row_stride + start // 32 * mask_column_stride
        key_row = start + tl.arange(0, 32)
        # A hidden block has no keys.
        counts = key_row < tl.where(tl.load(mask_ptr + address), seq_key, 0)
        key = load_tile(key_ptr, key_row, key_row_stride, key_column_stride, counts, HEAD_DIM)
        value = load_tile(
            value_ptr, key_row, value_row_stride, value_column_stride, counts, HEAD_DIM
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(counts[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp(running_max - shift)
        exponentials = tl.exp(scores - shift[:, None])
        running_sum = running_sum * rescale + tl.sum(exponentials, axis=1)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(
            exponentials.to(value.dtype), value, accumulator, input_precision="ieee"
        )
        running_max = new_max

    output = tl.where(running_sum[:, None] > 0.0, accumulator / running_sum[:, None], 0.0)
    column = tl.arange(0, HEAD_DIM)
    tl.store(
        output_ptr + row[:, None].to(tl.int64) * HEAD_DIM + column[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=row[:, None] < seq_query,
    )


def block_sparse_attention(query, key, value, block_mask, scale):
    (seq_query, head_dim), seq_key = query.shape, key.shape[0]
    output = query.new_zeros(seq_query, head_dim)
    # Two programs share a block of queries.
    block_sparse_kernel[(triton.cdiv(seq_query, 16),)](
        query,
        key,
        value,
        block_mask,
        output,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *block_mask.stride(),
        scale,
        seq_query,
        seq_key,
        HEAD_DIM=head_dim,
        ROWS=16,
    )
    return output
