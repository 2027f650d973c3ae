"""Corrections to Triton's CPU interpreter (3.6 and 3.7), applied once when it is in use.

The interpreter runs a kernel's Python on NumPy arrays. NumPy has no bfloat16 and no float8, so it keeps
them as bit patterns in unsigned integers, and several of its operations forget that:

* ``tl.dot`` of two bfloat16 tiles multiplies the bit patterns as integers;
* arithmetic between bfloat16 values, and sums of them, work on the bit patterns;
* ``tl.fma`` rounds twice, after the product and after the sum, where the GPU rounds once;
* casts to bfloat16 truncate, and casts to float8 round wrongly near overflow and zero, where the GPU
  rounds to nearest, ties to even, and saturates; of the two float8 NaNs, it gives the positive one;
* ``range`` over a run-time bound fails with Triton 3.6 and NumPy 2.4 or newer.

Each correction widens to float32, which holds every value of these types, and rounds with PyTorch.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

# The types NumPy lacks: how PyTorch calls them, and the integer that holds their bits.
_STORED_AS_BITS = {
    tl.bfloat16: (torch.bfloat16, np.uint16, torch.int16),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8, torch.int8),
    tl.float8e5: (torch.float8_e5m2, np.uint8, torch.int8),
}


def _widen(data: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """The values of an array as float32; types that NumPy has are left as they are."""
    if dtype not in _STORED_AS_BITS:
        return data
    torch_dtype, numpy_bits, torch_bits = _STORED_AS_BITS[dtype]
    bits = torch.from_numpy(np.array(data, dtype=numpy_bits).view(f"int{8 * data.itemsize}"))
    return bits.view(torch_bits).view(torch_dtype).float().numpy()


def _narrow(values: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """Values rounded to ``dtype``, in the form the interpreter stores it."""
    if dtype not in _STORED_AS_BITS:
        with np.errstate(over="ignore"):  # to infinity in float16, as on the GPU
            return values.astype(interpreter._get_np_dtype(dtype))
    torch_dtype, numpy_bits, torch_bits = _STORED_AS_BITS[dtype]
    rounded = torch.from_numpy(np.array(values, dtype=np.float32))
    if torch_dtype.itemsize == 1:
        # The GPU's conversion saturates at the largest finite value; NaN becomes the one without a sign.
        largest = torch.finfo(torch_dtype).max
        rounded = torch.where(rounded.isnan(), torch.nan, rounded.clamp(-largest, largest))
    return rounded.to(torch_dtype).view(torch_bits).numpy().view(numpy_bits)


def _cast(self, source, target_type, *_):
    target = target_type.scalar
    return TensorHandle(_narrow(_widen(source.data, source.dtype.scalar), target), target)


def _dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc):
    left, right = (_widen(tile.data, tile.dtype.scalar) for tile in (a, b))
    product = np.matmul(left, right, dtype=accumulator.data.dtype)
    return TensorHandle(product + accumulator.data, accumulator.dtype.scalar)


def _through_float32(original):
    """Wrap a builder method so that operands stored as bits are computed with as float32."""

    def method(self, *args):
        operands = [a for a in args if isinstance(a, TensorHandle)]
        dtype = operands[-1].dtype.scalar if operands else None
        if dtype not in _STORED_AS_BITS:
            return original(self, *args)
        widened = [
            TensorHandle(_widen(a.data, dtype), tl.float32)
            if isinstance(a, TensorHandle) and a.dtype.scalar == dtype
            else a
            for a in args
        ]
        result = original(self, *widened).data
        # Comparisons give booleans, which are not rounded.
        return TensorHandle(result if result.dtype == np.bool_ else _narrow(result, dtype), dtype)

    return method


def _reduce_in_float32(original):
    """Wrap a sum, or a running sum or product, so that operands stored as bits are widened first."""

    def method(self, operand):
        dtype = operand.dtype.scalar
        if dtype not in _STORED_AS_BITS:
            return original(self, operand)
        widened = TensorHandle(_widen(operand.handle.data, dtype), tl.float32)
        result = original(self, tl.tensor(widened, operand.type.with_element_ty(tl.float32)))
        # A reduction gives one tensor, a scan a list of one.
        (total,) = result if isinstance(result, list) else [result]
        narrowed = TensorHandle(_narrow(total.handle.data, dtype), dtype)
        total = tl.tensor(narrowed, total.type.with_element_ty(dtype))
        return [total] if isinstance(result, list) else total

    return method


def _bfloat16_constant(self, value):
    return TensorHandle(_narrow(np.array([value], dtype=np.float32), tl.bfloat16), tl.bfloat16)


def _fused_multiply_add(self, x, y, z):
    # The product of two float32 numbers is exact in float64, so only the sum rounds.
    dtype = z.dtype.scalar
    x, y, z = (_widen(a.data, dtype).astype(np.float64) for a in (x, y, z))
    return TensorHandle(_narrow((x * y + z).astype(np.float32), dtype), dtype)


def _index_by_item(original):
    """Let a one-element tensor be a loop bound: NumPy 2.4 no longer converts [n] to n."""

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch


def correct() -> None:
    """Apply the corrections to the interpreter of this process."""
    InterpreterBuilder.cast_impl = _cast
    InterpreterBuilder.create_fp_to_fp = _cast
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.create_fma = _fused_multiply_add
    InterpreterBuilder.get_bf16 = _bfloat16_constant
    for name in ("binary_op", "unary_op", "create_clampf"):
        setattr(InterpreterBuilder, name, _through_float32(getattr(InterpreterBuilder, name)))
    for owner, name in (
        (interpreter.ReduceOps, "sum"),
        (interpreter.ScanOps, "cumsum"),
        (interpreter.ScanOps, "cumprod"),
    ):
        setattr(owner, name, _reduce_in_float32(getattr(owner, name)))
    interpreter._patch_lang_tensor = _index_by_item(interpreter._patch_lang_tensor)
