"""What a student's Triton kernels do while they are interpreted: which they are, and where they reach.

Every address that a kernel loads or stores must lie in the storage of a tensor that it was launched
with. A GPU would read or overwrite whatever lies there; here it is an error that says so.
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime import interpreter

_LIMIT = 40
_DTYPE = "triton.language.dtype"
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


class OutOfBounds(Exception):
    """A kernel reaches beyond the memory of its arguments."""


@dataclasses.dataclass
class Launches:
    """Kernels that were launched, as ``(name, signature, constants)``, each form once."""

    forms: list[tuple[str, dict, dict]] = dataclasses.field(default_factory=list)

    def add(self, name: str, signature: dict, constants: dict) -> None:
        form = (name, signature, constants)
        if len(self.forms) < _LIMIT and form not in self.forms:
            self.forms.append(form)


def _triton_type(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return _POINTERS.get(value.dtype, "*fp32")
    if isinstance(value, tuple | list):
        return tuple(_triton_type(item) for item in value)
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def _constant(value: object) -> object:
    """A compile-time constant, as plain data: Triton's dtypes by their name."""
    value = getattr(value, "value", value)
    return (_DTYPE, value.name) if isinstance(value, tl.dtype) else value


def _as_it_was(constant: object) -> object:
    match constant:
        case (str(mark), str(name)) if mark == _DTYPE:
            return tl.dtype(name)
    return constant


class _Watch:
    def __init__(self) -> None:
        self.launches = Launches()
        self.spans: list[tuple[int, int]] = []
        self.kernel = ""

    def run(self, original):
        def run(function, *args, **kwargs):
            names = set(function.arg_names)
            given = {name: value for name, value in kwargs.items() if name in names}
            signature = inspect.signature(function.fn)
            bound = signature.bind_partial(*args, **given)
            bound.apply_defaults()
            self.kernel = function.fn.__name__
            constant = {
                name
                for name, parameter in signature.parameters.items()
                if "constexpr" in str(parameter.annotation)
            }
            constant |= {name for name, value in bound.arguments.items() if value is None}
            kinds = {n: _triton_type(v) for n, v in bound.arguments.items() if n not in constant}
            constants = {
                name: _constant(bound.arguments[name]) for name in bound.arguments.keys() & constant
            }
            self.launches.add(self.kernel, kinds, constants)
            self.spans = [_span(value) for value in _tensors(bound.arguments.values())]
            return original(function, *args, **kwargs)

        return run

    def access(self, original, verb: str):
        signature = inspect.signature(original)

        @functools.wraps(original)  # others look at its signature, too
        def method(builder, *args, **kwargs):
            given = signature.bind(builder, *args, **kwargs).arguments
            mask = given.get("mask")
            mask = True if mask is None else getattr(mask, "data", mask)
            self._check(given.get("ptrs", given.get("ptr")), mask, verb)
            return original(builder, *args, **kwargs)

        return method

    def _check(self, pointers, mask, verb: str) -> None:
        width = pointers.get_element_ty().primitive_bitwidth // 8
        addresses, visible = np.broadcast_arrays(pointers.data, mask)
        addresses = addresses[visible.astype(bool)].astype(np.int64)
        if not addresses.size or not self.spans:
            return
        inside = np.zeros(addresses.shape, bool)
        for start, end in self.spans:
            inside |= (addresses >= start) & (addresses + width <= end)
        wrong = int(np.count_nonzero(~inside))
        if wrong:
            raise OutOfBounds(
                f"{self.kernel} {verb} {wrong} of {addresses.size} elements outside the memory of its "
                "arguments: check the mask, and the strides."
            )


def _tensors(values) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(getattr(value, "base", None), torch.Tensor):
            yield value.base


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def watch() -> Launches:
    """Watch every launch of this process from now on."""
    watcher = _Watch()
    builder = interpreter.InterpreterBuilder
    function = interpreter.InterpretedFunction
    function.run = watcher.run(function.run)
    for name, verb in (
        ("create_masked_load", "loads"),
        ("create_masked_store", "stores"),
        ("create_atomic_rmw", "updates"),
        ("create_atomic_cas", "updates"),
    ):
        setattr(builder, name, watcher.access(getattr(builder, name), verb))
    return watcher.launches


@contextmanager
def nothing_done(kernels: list[str]) -> Iterator[None]:
    """Within it, the kernels of these names have no body. All else of a launch happens, as their grids."""
    function = interpreter.InterpretedFunction
    rewrite = function.rewrite

    def empty(self):
        if self.fn.__name__ not in kernels:
            return rewrite(self)

        @functools.wraps(self.fn)
        def nothing(*args, **kwargs) -> None:
            pass

        nothing.__signature__ = inspect.signature(self.fn)
        return nothing

    function.rewrite = empty
    try:
        yield
    finally:
        function.rewrite = rewrite


def kernel_named(module, name: str) -> triton.JITFunction | None:
    """The kernel of a file, without what it is decorated with."""
    kernel = getattr(module, name, None)
    while kernel is not None and not isinstance(kernel, triton.JITFunction):
        kernel = getattr(kernel, "fn", None)
    return kernel


def form_of(kernel: triton.JITFunction, args: list, keywords: dict) -> tuple[dict, dict]:
    """The signature and the constants of a launch with such arguments, as student.py describes them."""
    given = {name: value for name, value in keywords.items() if name in kernel.arg_names}
    bound = inspect.signature(kernel.fn).bind(*args, **given)
    bound.apply_defaults()
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    constants = {name: value for name, value in bound.arguments.items() if name in fixed}
    kinds = {name: _kind(value) for name, value in bound.arguments.items() if name not in fixed}
    return kinds, constants


def _kind(described: object) -> object:
    match described:
        case torch.dtype():
            return _POINTERS.get(described, "*fp32")
        case {"dtype": dtype, "tile": tile, "layout": layout}:
            return f"tensordesc<{_POINTERS[dtype].removeprefix('*')}{tile},{layout!r}>"
    return _triton_type(described)


def compile_forms(module, forms: list, architecture: int) -> list[str]:
    """Compile launches offline; for each that does not, what the compiler says."""
    problems = []
    for name, kinds, constants in forms:
        kernel = kernel_named(module, name)
        if kernel is None:
            problems.append(f"{name} is no kernel of the file.")
            continue
        if isinstance(kinds, list):  # arguments, as they were handed to the simulator
            kinds, constants = form_of(kernel, kinds, constants)
        signature, fixed = {}, {}
        for position, argument in enumerate(kernel.arg_names):
            if argument in constants:
                signature[argument] = "constexpr"
                fixed[(position,)] = _as_it_was(constants[argument])
            else:
                signature[argument] = kinds[argument]
        try:
            language = GluonASTSource if kernel.is_gluon() else ASTSource
            source = language(kernel, signature, fixed)
            compile_source(source, target=GPUTarget("cuda", architecture, 32))
        except Exception as error:
            # Where a kernel calls another, the innermost error says what is wrong.
            for _ in range(20):
                error = error.__cause__ or error
            lines = str(error).strip().splitlines() or [""]
            problems.append(f"{name}: {type(error).__name__}: {lines[-1].strip()}")
    return problems[:5]
