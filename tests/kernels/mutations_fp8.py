"""Bugs planted in quantization and rotation, in the form of :mod:`tests.kernels.mutations`."""

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
