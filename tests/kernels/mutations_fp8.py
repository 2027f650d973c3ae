"""Bugs planted in FP8: quantization, rotation, attention, in the form of :mod:`tests.kernels.mutations`."""

from tests.kernels.mutations import Mutation

QUANTIZATION = ("kernels.quantization",)
QUANTIZATION_MUTATIONS = [
    Mutation(
        "an infinity decides the scale",
        "kernels.quantization",
        'tl.where(magnitudes < float("inf"), magnitudes, 0.0)',
        "magnitudes",
    ),
    Mutation(
        "amax of every second column",
        "kernels.quantization",
        "tl.maximum(left, right)",
        "left",
    ),
    Mutation(
        "amax without the sign taken off",
        "kernels.quantization",
        "magnitudes = tl.abs(tile)",
        "magnitudes = tile",
    ),
    Mutation(
        "the scale of zeros is not 1",
        "kernels.quantization",
        "tl.where(amax == 0.0, E4M3_MAX_CONSTANT, tl.maximum(amax, LEAST_AMAX_CONSTANT))",
        "tl.maximum(amax, LEAST_AMAX_CONSTANT)",
    ),
    Mutation(
        "the inverse of a small scale overflows",
        "kernels.quantization",
        "tl.maximum(amax, LEAST_AMAX_CONSTANT)",
        "amax",
    ),
    Mutation(
        "multiplied with a rounded reciprocal instead of divided",
        "kernels.quantization",
        "tl.div_rn(amax, tl.full([], E4M3_MAX_CONSTANT, tl.float32))",
        "amax * (1.0 / E4M3_MAX_CONSTANT)",
    ),
    Mutation(
        "divided by the rounded scale",
        "kernels.quantization",
        "(tile * inverse)",
        "(tile / scale)",
    ),
    Mutation(
        "the last block's amax for all",
        "kernels.quantization",
        'tl.atomic_max(amax_ptr + tl.program_id(0) // sharing, finite_amax(tile), sem="relaxed")',
        "tl.store(amax_ptr + tl.program_id(0) // sharing, finite_amax(tile))",
    ),
    Mutation(
        "the first group's amax and scale for all",
        "kernels.quantization",
        "group = tl.program_id(0) // sharing",
        "group = 0",
    ),
    Mutation(
        "only the first group's scale is written",
        "kernels.quantization",
        "mask=tl.program_id(0) % sharing == 0",
        "mask=tl.program_id(0) == 0",
    ),
    Mutation(
        "the zeros at the end are not written",
        "kernels.quantization",
        "(rows[None, :] < seq_padded)",
        "(rows[None, :] < tl.num_programs(0) * 0 + seq)",
    ),
    Mutation(
        "transposed heads lie as far apart as without padding",
        "kernels.quantization",
        "batch_head * HEAD_DIM * seq_padded",
        "batch_head * HEAD_DIM * seq",
    ),
    Mutation(
        "transposed in name only",
        "kernels.quantization",
        "dims, rows, seq_padded, 1",
        "dims, rows, 1, HEAD_DIM",
    ),
]

HADAMARD = ("kernels.quantization", "kernels.hadamard")
HADAMARD_MUTATIONS = [
    Mutation(
        "the difference with the other sign",
        "kernels.hadamard",
        "first - second",
        "second - first",
    ),
    Mutation(
        "sum and difference stay neighbours",
        "kernels.hadamard",
        "tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2))",
        "tl.join(first + second, first - second)",
    ),
    Mutation(
        "every step at the same distance",
        "kernels.hadamard",
        "butterfly(tile, 2**step)",
        "butterfly(tile, 1)",
    ),
    Mutation(
        "a step too few",
        "kernels.hadamard",
        "tl.static_range(STEPS)",
        "tl.static_range(STEPS - 1)",
    ),
    Mutation(
        "no signs",
        "kernels.hadamard",
        "tile = tile * signs[None, :]",
        "tile = tile",
    ),
    Mutation(
        "divided by d",
        "kernels.hadamard",
        "2.0 ** (-0.5 * STEPS)",
        "2.0 ** (-1.0 * STEPS)",
    ),
    Mutation(
        "rounded to the input's dtype before amax and FP8",
        "kernels.hadamard",
        "values, scale = quantize_tile(rotated, finite_amax(rotated))",
        "rotated = rotated.to(tensor_ptr.dtype.element_ty).to(tl.float32)\n"
        "    values, scale = quantize_tile(rotated, finite_amax(rotated))",
    ),
    Mutation(
        "amax of the tile before its rotation",
        "kernels.hadamard",
        "finite_amax(rotated)",
        "finite_amax(tile)",
    ),
    Mutation(
        "quantized without rotation",
        "kernels.hadamard",
        "quantize_tile(rotated,",
        "quantize_tile(tile,",
    ),
    Mutation(
        "the first block's scale is overwritten by all",
        "kernels.hadamard",
        "scale_ptr + tl.program_id(0)",
        "scale_ptr",
    ),
    Mutation(
        "composed by way of the input's dtype",
        "kernels.hadamard",
        "quantize(transform(tensor, signs, torch.float32), per, block)\n    values",
        "quantize(transform(tensor, signs), per, block)\n    values",
    ),
]


def _hopper(bug: str, old: str, new: str, times: int = 1) -> Mutation:
    return Mutation(bug, "kernels.fp8_hopper", old, new, times)


HOPPER = ("kernels.fp8_hopper",)
HOPPER_MUTATIONS = [
    _hopper(
        "keys in the order of the columns, V's in that of the threads",
        "left, right = gl.split(exponentials.reshape([ROWS, BLOCK_N // 16, 2, 4, 2]))",
        "left, right = gl.split(\n"
        "        exponentials.reshape([ROWS, BLOCK_N // 16, 4, 2, 2]).permute((0, 1, 3, 2, 4))\n"
        "    )",
    ),
    _hopper(
        "two of the four packed weights change places",
        "[first_left, first_right, second_left, second_right]",
        "[first_left, second_left, first_right, second_right]",
    ),
    _hopper(
        "the queries' scale is that of the program's first consumer",
        "work.start_m // ROWS + INDEX, blocks - 1",
        "work.start_m // ROWS, blocks - 1",
    ),
    _hopper(
        "scales of the first head's queries for all",
        "given.query_scale_ptr + work.head * blocks",
        "given.query_scale_ptr + 0 * work.head * blocks",
    ),
    _hopper(
        "scales of the tile after this one",
        "tile_scales(tile - 1, work, given, shared)",
        "tile_scales(tile, work, given, shared)",
    ),
    _hopper(
        "scales of a query head, not of its keys' head",
        "block = work.kv_head * gl.cdiv",
        "block = gl.minimum(work.head, given.key.shape[0] * given.key.shape[1] - 1) * gl.cdiv",
    ),
    _hopper(
        "the weights do not carry V's scale",
        "raised = (WEIGHT_BITS + value_exponent) - shift",
        "raised = WEIGHT_BITS - shift",
    ),
    _hopper(
        "the maximum is that of the weights alone, so that e4m3 overflows",
        "gl.fma(gl.max(scores, axis=1), scale_log2, value_exponent)",
        "gl.max(scores, axis=1) * scale_log2",
    ),
    _hopper(
        "the sum of the weights has V's scale in it",
        "gl.sum(exponentials, axis=1) * gl.exp2(-value_exponent)",
        "gl.sum(exponentials, axis=1)",
        times=2,
    ),
    _hopper(
        "weights are not raised, and the small ones vanish",
        "WEIGHT_BITS = gl.constexpr(8.0)",
        "WEIGHT_BITS = gl.constexpr(0.0)",
    ),
    _hopper(
        "the logsumexp is that of raised weights",
        "gl.log2(divisor) - WEIGHT_BITS",
        "gl.log2(divisor)",
    ),
    _hopper(
        "two levels, the second without the rescaling",
        "gl.fma(accumulator, before[:, None], product) if TWO_LEVEL else product\n    if OVERLAP",
        "accumulator + product if TWO_LEVEL else product\n    if OVERLAP",
    ),
    _hopper(
        "two levels, of which the first goes on from tile to tile",
        "product = warpgroup_mma(weights, value_tile, no_output, use_acc=False, is_async=True)\n"
        "    else",
        "product = warpgroup_mma(weights, value_tile, accumulator, is_async=True)\n    else",
    ),
    _hopper(
        "V's tile of this step, whose K is being scored",
        "0, start_n + BLOCK_N]",
        "0, start_n]",
    ),
    _hopper(
        "a slot is released before its products are done",
        "    product = warpgroup_mma_wait(0, deps=[product])\n    release(shared.pairs, use)\n",
        "    release(shared.pairs, use)\n    product = warpgroup_mma_wait(0, deps=[product])\n",
    ),
    _hopper(
        "the mask of a thread's columns is that of thread 0's",
        "last_in_tile[:, None] - own[None, :]",
        "last_in_tile[:, None]",
    ),
    _hopper(
        "a query sees the key after its own",
        "last_in_tile = last_seen - tile * BLOCK_N",
        "last_in_tile = last_seen - tile * BLOCK_N + 1",
    ),
]

FORWARD = ("kernels.fp8_forward",)
FORWARD_MUTATIONS = [
    Mutation(bug, "kernels.fp8_forward", old, new)
    for bug, old, new in (
        (
            "the weights do not carry V's scale",
            "raised = (WEIGHT_BITS + value_exponent) - shift",
            "raised = WEIGHT_BITS - shift",
        ),
        (
            "the sum of the weights has V's scale in it",
            " * tl.exp2(-value_exponent)",
            "",
        ),
        (
            "the first tile's scale of K for all",
            "tl.load(key_scale_ptr + tile)",
            "tl.load(key_scale_ptr)",
        ),
        (
            "the first block's scale of Q for all",
            "query_scale_ptr + head * blocks_m + block",
            "query_scale_ptr + head * blocks_m",
        ),
        (
            "the output is not rescaled",
            "tl.broadcast_to(rescale[:, None], accumulator.shape)",
            "tl.full(accumulator.shape, 1.0, tl.float32)",
        ),
        (
            "the logsumexp is that of raised weights",
            "tl.log2(divisor) - WEIGHT_BITS",
            "tl.log2(divisor)",
        ),
        (
            "whole tiles are counted to the end, also under a causal mask",
            "seen_by_all = tl.minimum(tl.maximum(position + 1, 0), seq_key)",
            "seen_by_all = seq_key",
        ),
    )
]

PREPARATION = ("kernels.fp8_preparation",)
PREPARATION_MUTATIONS = [
    Mutation(bug, "kernels.fp8_preparation", old, new)
    for bug, old, new in (
        (
            "halves and threads change places",
            "places // 16 * 16 + 8 * half + 2 * thread + which",
            "places // 16 * 16 + 8 * which + 2 * thread + half",
        ),
        ("in the order of the rows", "interleave(places) if INTERLEAVED", "places if INTERLEAVED"),
        (
            "a scale of 1 where all is zero",
            "tl.maximum(finite_amax(tile), LEAST_VALUE_AMAX)",
            "finite_amax(tile)",
        ),
        (
            "zeros at the end are not written",
            "(start + places)[None, :] < seq_padded",
            "(start + places)[None, :] < seq",
        ),
    )
]
