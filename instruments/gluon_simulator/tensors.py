"""Values in registers: tensors and pointers, with Triton's rules for types and rounding."""

import math
import operator

import torch
import triton.experimental.gluon.language as gl

from instruments.gluon_simulator.clocks import EXPONENTIALS
from instruments.gluon_simulator.engine import (
    InFlight,
    NotSimulated,
    SimulationError,
    frames_of,
    place,
    running,
)

TORCH_DTYPES = {
    "int1": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
GLUON_DTYPES = {
    torch_dtype: next(
        dtype for dtype in vars(gl).values() if isinstance(dtype, gl.dtype) and dtype.name == name
    )
    for name, torch_dtype in TORCH_DTYPES.items()
}
HALF = (torch.float16, torch.bfloat16)


def poison(shape, dtype: torch.dtype) -> torch.Tensor:
    """What memory holds that nobody wrote: NaN, or the least integer."""
    if dtype.is_floating_point:
        return torch.full(shape, math.nan).to(dtype)
    return torch.full(shape, 0 if dtype == torch.bool else torch.iinfo(dtype).min, dtype=dtype)


def unwrap(value) -> torch.Tensor:
    """The PyTorch tensor of an operand."""
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, Accumulator):
        value.refuse()
    if isinstance(value, bool | int | float):
        return scalar(value).data
    raise NotSimulated(f"a {type(value).__name__} as an operand at {place(frames_of())}")


def scalar(value: bool | int | float) -> "Tensor":
    """A number as the kernel's arguments have it: int32 if it fits, float32."""
    if isinstance(value, bool):
        return Tensor(torch.tensor(value))
    if isinstance(value, int):
        fits = -(2**31) <= value < 2**31
        return Tensor(torch.tensor(value, dtype=torch.int32 if fits else torch.int64))
    return Tensor(torch.tensor(value, dtype=torch.float32))


def scalar_value(value) -> int | float | bool:
    """The number that a scalar holds, or the number itself."""
    return value.item() if isinstance(value, Tensor) else value


def charged(result: torch.Tensor) -> "Tensor":
    """The result of arithmetic on each of its elements."""
    running().compute(result.numel())
    return Tensor(result)


class Tensor:
    """A tensor in registers, or a scalar: the name and the methods of Gluon's ``tensor``."""

    __slots__ = ("data",)
    __hash__ = None

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @property
    def dtype(self):
        return GLUON_DTYPES[self.data.dtype]

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def numel(self) -> int:
        return self.data.numel()

    def to(self, dtype, fp_downcast_rounding=None, bitcast=False) -> "Tensor":
        if bitcast:
            return Tensor(self.data.view(TORCH_DTYPES[dtype.name]))
        return charged(convert(self.data, TORCH_DTYPES[dtype.name]))

    cast = to

    def reshape(self, *shape) -> "Tensor":
        return Tensor(self.data.reshape(_sizes(shape)))

    def permute(self, *order) -> "Tensor":
        return Tensor(self.data.permute(_sizes(order)))

    def trans(self, *order) -> "Tensor":
        return Tensor(self.data.permute(_sizes(order)) if order else self.data.mT)

    def item(self):
        if self.data.numel() != 1:
            raise SimulationError(
                f"a tensor of shape {self.shape} where a number is needed, at {place(frames_of())}"
            )
        return self.data.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.item())

    def __getitem__(self, index) -> "Tensor":
        return Tensor(self.data[index])

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotSimulated(f"tensor.{name} at {place(frames_of())}")

    def __repr__(self) -> str:
        return f"{self.dtype}{self.shape}"

    def __neg__(self) -> "Tensor":
        return charged(-self.data)

    def __invert__(self) -> "Tensor":
        return charged(~self.data)


class Pointer:
    """One address or many, in the memory of a tensor that the kernel was given."""

    def __init__(self, memory: torch.Tensor, offsets: torch.Tensor, name: str) -> None:
        self.memory, self.offsets, self.name = memory, offsets, name

    @classmethod
    def to(cls, tensor: torch.Tensor, name: str) -> "Pointer":
        """To the first element of a tensor."""
        flat = tensor.detach()
        length = 1 + sum((n - 1) * s for n, s in zip(flat.shape, flat.stride(), strict=True))
        memory = flat.as_strided((length if flat.numel() else 0,), (1,))
        return cls(memory, torch.tensor(0, dtype=torch.int64), name)

    @property
    def dtype(self):
        return gl.pointer_type(GLUON_DTYPES[self.memory.dtype])

    @property
    def shape(self) -> list[int]:
        return list(self.offsets.shape)

    def __add__(self, elements) -> "Pointer":
        return Pointer(self.memory, self.offsets + unwrap(elements), self.name)

    __radd__ = __add__

    def __sub__(self, elements) -> "Pointer":
        return Pointer(self.memory, self.offsets - unwrap(elements), self.name)

    def __getitem__(self, index) -> "Pointer":
        return Pointer(self.memory, self.offsets[index], self.name)

    def visible(self, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets and mask, of one shape.

        Raises:
            SimulationError: an address outside the tensor is not masked.
        """
        mask = torch.tensor(True) if mask is None else unwrap(mask)
        offsets, mask = torch.broadcast_tensors(self.offsets, mask)
        outside = offsets[mask & ((offsets < 0) | (offsets >= len(self.memory)))]
        if outside.numel():
            raise SimulationError(
                f"element {outside[0].item()} of {self.name}, which has {len(self.memory)}, is accessed "
                f"at {place(frames_of())}"
            )
        return offsets, mask


class Accumulator:
    """The result of an asynchronous wgmma, which no one may look at before the wait for it."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape
        self.value: torch.Tensor | None = None

    def refuse(self, *_):
        raise InFlight(
            f"{running().name} uses an accumulator at {place(frames_of())} whose wgmma is in flight: take "
            "what warpgroup_mma_wait returns for it"
        )

    __getattr__ = __getitem__ = __bool__ = __neg__ = refuse


def convert(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round to nearest, ties to even; float8 saturates."""
    if dtype.is_floating_point and dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        data = data.float().clamp(-largest, largest)
    return data.to(dtype)


def operands(left, right) -> tuple:
    """Two operands in the type they are computed in. A plain number takes the type of the tensor."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        a, b = left.data, right.data
        if a.dtype == b.dtype:
            return a, b
        dtype = torch.promote_types(a.dtype, b.dtype)
        return a.to(dtype), b.to(dtype)
    return tuple(x if isinstance(x, bool | int | float) else unwrap(x) for x in (left, right))


def tensor_operands(left, right) -> tuple[torch.Tensor, torch.Tensor]:
    """Two operands as tensors of one type."""
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        left, right = Tensor(unwrap(left)), Tensor(unwrap(right))
    a, b = operands(left, right)
    dtype = a.dtype if isinstance(a, torch.Tensor) else b.dtype
    if not dtype.is_floating_point and (isinstance(a, float) or isinstance(b, float)):
        dtype = torch.float32
    return torch.as_tensor(a, dtype=dtype), torch.as_tensor(b, dtype=dtype)


def _divide(a, b):
    # Division of two halves is done, and left, in float32.
    a, b = (x.float() if isinstance(x, torch.Tensor) and x.dtype in HALF else x for x in (a, b))
    return a / b


def _integer_divide(a, b):
    # As the hardware does: towards zero, where Python's // rounds down.
    if any(isinstance(x, float) or x.is_floating_point() for x in (a, b) if not isinstance(x, int)):
        raise SimulationError(f"// of floating-point numbers at {place(frames_of())}")
    if not isinstance(a, torch.Tensor):
        a = torch.tensor(a, dtype=b.dtype)
    return torch.div(a, b, rounding_mode="trunc")


def _install(name: str, function) -> None:
    def method(self, other):
        if isinstance(other, Pointer):
            return NotImplemented
        return _result(function(*operands(self, other)))

    def reflected(self, other):
        return _result(function(*operands(other, self)))

    def _result(data):
        if function is _divide and data.numel() > 1:
            running().compute(data.numel(), EXPONENTIALS, "division")
            return Tensor(data)
        return charged(data)

    setattr(Tensor, f"__{name}__", method)
    setattr(Tensor, f"__r{name}__", reflected)
    setattr(Accumulator, f"__{name}__", Accumulator.refuse)
    setattr(Accumulator, f"__r{name}__", Accumulator.refuse)


for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": _divide,
    "floordiv": _integer_divide,
    "mod": torch.fmod,  # as //: the remainder has the sign of the first operand
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}.items():
    _install(_name, _function)


def _sizes(given) -> tuple[int, ...]:
    """``(2, 3)`` and ``((2, 3),)`` alike."""
    return tuple(map(int, given[0] if len(given) == 1 and not isinstance(given[0], int) else given))
