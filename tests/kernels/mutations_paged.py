"""Bugs planted in the paged kernels, in the form of :mod:`tests.kernels.mutations`."""

from tests.kernels.mutations import Mutation

PAGED = (
    "kernels.paged_attention",
    "kernels.paged_decode",
    "kernels.paged_prefill",
    "kernels.paged_memory",
    "kernels.paged",
)
ATTENTION = "kernels.paged_attention"
SHARED_MUTATIONS = [
    Mutation(
        "the next tile gets the blocks of this one",
        ATTENTION,
        "block_numbers(pages.table_ptr, start_n + BLOCK_N, in_n, end, BLOCK_SIZE)",
        "block_numbers(pages.table_ptr, start_n, in_n, end, BLOCK_SIZE)",
    ),
    Mutation(
        "a block's number is looked up by the token's",
        ATTENTION,
        "(start + offsets) // BLOCK_SIZE, mask",
        "(start + offsets) // 16, mask",
    ),
    Mutation(
        "place in the block from the start of the tile",
        ATTENTION,
        "(columns % BLOCK_SIZE)",
        "(in_n % BLOCK_SIZE)",
    ),
    Mutation(
        "slots after the last token are loaded",
        ATTENTION,
        "there = in_n < (end - start_n if HIDE else BLOCK_N)",
        "there = in_n < BLOCK_N",
    ),
    Mutation(
        "the last token is left out",
        ATTENTION,
        "there = in_n < (end - start_n if HIDE else BLOCK_N)",
        "there = in_n < (end - start_n - 1 if HIDE else BLOCK_N)",
    ),
    Mutation(
        "empty slots count as scores of 0",
        ATTENTION,
        "tl.where(columns[None, :] <= positions[:, None], scores,",
        "tl.where(columns[None, :] >= 0, scores,",
    ),
    Mutation(
        "a query does not see its own token",
        ATTENTION,
        "columns[None, :] <= positions[:, None]",
        "columns[None, :] < positions[:, None]",
    ),
    Mutation(
        "hidden scores are large and negative, not minus infinity",
        ATTENTION,
        'scores, float("-inf"))',
        "scores, -1e5)",
    ),
    Mutation(
        "the accumulator is not rescaled",
        ATTENTION,
        "accumulator = accumulator * rescale[:, None]",
        "accumulator = accumulator * 1.0",
    ),
    Mutation(
        "divided by a sum of 0",
        ATTENTION,
        "tl.where(row_sum == 0.0, 1.0, row_sum)",
        "row_sum",
    ),
    Mutation(
        "the values' scale is forgotten",
        ATTENTION,
        "(value_scale / divisor)",
        "(1.0 / divisor)",
    ),
    Mutation(
        "the first KV head's scale for all",
        ATTENTION,
        "tl.load(scale_ptr + kv_head * stride)",
        "tl.load(scale_ptr)",
    ),
]
DECODE = "kernels.paged_decode"
DECODE_MUTATIONS = [
    Mutation(
        "the heads of a group in turn, not together",
        DECODE,
        "heads = kv_head * group + in_group",
        "heads = in_group * kv_heads + kv_head",
    ),
    Mutation(
        "splits of a number of tokens that divides no tile",
        DECODE,
        "tl.cdiv(tl.cdiv(context, BLOCK_N), splits) * BLOCK_N",
        "tl.cdiv(context, splits)",
    ),
    Mutation(
        "what is left over by the splits is nobody's",
        DECODE,
        "tl.cdiv(tl.cdiv(context, BLOCK_N), splits) * BLOCK_N",
        "tl.cdiv(context, BLOCK_N) // splits * BLOCK_N",
    ),
    Mutation(
        "every split begins at the first token",
        DECODE,
        "start = split * tokens_a_split",
        "start = 0 * tokens_a_split",
    ),
    Mutation(
        "a split goes on to the end",
        DECODE,
        "tl.minimum(start + tokens_a_split, context)",
        "tl.maximum(start + tokens_a_split, context)",
    ),
    Mutation(
        "the keys' scale is forgotten",
        DECODE,
        "scale * head_scale(key_scale_ptr, scale_strides[0], kv_head) * LOG2_E_CONSTANT",
        "scale * LOG2_E_CONSTANT",
        times=2,
    ),
    Mutation(
        "parts are merged without regard to their maxima",
        DECODE,
        "accumulators * shares[:, None]",
        "accumulators",
    ),
    Mutation(
        "sums are merged without regard to their maxima",
        DECODE,
        "_, part_sum, _, shares = merge_statistics",
        "_, _, _, shares = merge_statistics",
    ),
    Mutation(
        "a part that is not there counts",
        DECODE,
        'mask=there, other=float("-inf"))',
        "mask=there, other=0.0)",
    ),
    Mutation(
        "the first sequence's table for all",
        DECODE,
        "table_ptr + sequence * table_stride",
        "table_ptr",
    ),
    Mutation(
        "the first sequence's length for all",
        DECODE,
        "tl.load(context_ptr + sequence)",
        "tl.load(context_ptr)",
    ),
    Mutation(
        "tables as wide as they are contiguous",
        DECODE,
        "block_tables.stride(0),",
        "block_tables.shape[1],",
    ),
]
PREFILL = "kernels.paged_prefill"
PREFILL_MUTATIONS = [
    Mutation(
        "causal from the top left",
        PREFILL,
        "positions = query + (context - queries)",
        "positions = query",
    ),
    Mutation(
        "a tile too many is taken for whole",
        PREFILL,
        "start_m // group + (context - queries) + 1",
        "start_m // group + (context - queries) + BLOCK_N",
    ),
    Mutation(
        "the last query sees a token too few",
        PREFILL,
        "end = last_query + (context - queries) + 1",
        "end = last_query + (context - queries)",
    ),
    Mutation(
        "rows of the next sequence are written too",
        PREFILL,
        "there = query < queries",
        "there = query >= 0",
    ),
    Mutation(
        "a sequence's queries begin where the first's do",
        PREFILL,
        "tokens = first_query + query",
        "tokens = query",
    ),
    Mutation(
        "rows are heads first, then queries",
        PREFILL,
        "heads = kv_head * group + in_m % group",
        "heads = kv_head * group + (in_m // group) % group",
    ),
    Mutation(
        "the last tile of rows is left out",
        PREFILL,
        "if start_m >= queries * group:",
        "if start_m + BLOCK_M > queries * group:",
    ),
    Mutation(
        "tokens of no sequence are not written",
        PREFILL,
        "query.new_zeros(",
        "query.new_empty(",
    ),
]
MEMORY = "kernels.paged_memory"
MEMORY_MUTATIONS = [
    Mutation(
        "a token to leave out is written to slot 0",
        MEMORY,
        "within(slots >= 0, dims, HEAD_DIM)",
        "within(rows < tokens, dims, HEAD_DIM)",
    ),
    Mutation(
        "slots as if a block had 16",
        MEMORY,
        "slots // BLOCK_SIZE * cache_strides[0] + slots % BLOCK_SIZE * cache_strides[1]",
        "slots // 16 * cache_strides[0] + slots % 16 * cache_strides[1]",
    ),
    Mutation(
        "values as far apart as keys",
        MEMORY,
        "value_head + rows[:, None] * value_strides[0]",
        "value_head + rows[:, None] * 96",
    ),
    Mutation(
        "multiplied with the scale",
        MEMORY,
        "tl.div_rn(tile.to(tl.float32), divisor)",
        "(tile.to(tl.float32) * divisor)",
    ),
    Mutation(
        "values are divided by the keys' scale",
        MEMORY,
        "in_cache_dtype(value_tile, value_scale, value_cache_ptr)",
        "in_cache_dtype(value_tile, key_scale, value_cache_ptr)",
    ),
    Mutation(
        "only the keys are copied",
        MEMORY,
        "tl.program_id(1) // 2, tl.program_id(1) % 2",
        "tl.program_id(1) // 2, 0",
    ),
    Mutation(
        "only the first layer is copied",
        MEMORY,
        "tl.program_id(1) // 2, tl.program_id(1) % 2",
        "0, tl.program_id(1) % 2",
    ),
    Mutation(
        "only as much of a block is copied as one program can",
        MEMORY,
        "triton.cdiv(block_numbers, COPIED_AT_ONCE))]",
        "1)]",
    ),
    Mutation(
        "source and target mixed up",
        MEMORY,
        "base + source * cache_strides[2]",
        "base + target * cache_strides[2]",
    ),
    Mutation(
        "a run goes on where only its sources do",
        MEMORY,
        "if following != [source + 1, target + 1]:",
        "if following[0] != source + 1:",
    ),
]
