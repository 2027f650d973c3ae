"""What the words of Gluon do here, and how a kernel's source comes to use them.

A kernel's functions run as the Python they are. Only the names they refer to are replaced: Gluon's
operations by the ones below, other jitted functions by their own runnable twins, compile-time constants
by their values. Layouts stay what they are, are checked by their own constructors, and mean nothing.
"""

import functools
import re
import types

import torch
import triton.experimental.gluon.language as gl
import triton.language as tl
from triton.experimental.gluon.language.nvidia import hopper
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from instruments.gluon_simulator import asynchronous, memory
from instruments.gluon_simulator.clocks import EXPONENTIALS, LATENCY
from instruments.gluon_simulator.engine import (
    MARK,
    NotSimulated,
    Partition,
    SimulationError,
    frames_of,
    place,
    running,
)
from instruments.gluon_simulator.tensors import (
    TORCH_DTYPES,
    Pointer,
    Tensor,
    charged,
    convert,
    poison,
    scalar,
    scalar_value,
    tensor_operands,
    unwrap,
)


def arange(start, end, layout=None):
    return Tensor(torch.arange(int(start), int(end), dtype=torch.int32))


def full(shape, value, dtype, layout=None):
    return Tensor(torch.full(tuple(map(int, shape)), scalar_value(value)).to(_torch(dtype)))


def cast(value, dtype, fp_downcast_rounding=None, bitcast=False):
    return Tensor(unwrap(value)).to(dtype, bitcast=bitcast)


def unchanged(value, *_args, **_keywords):
    return value


def nothing(*_args, **_keywords):
    return None


def where(condition, x, y):
    return charged(torch.where(unwrap(condition).bool(), *tensor_operands(x, y)))


def maximum(x, y):
    return charged(torch.fmax(*tensor_operands(x, y)))  # of a number and NaN, the number


def minimum(x, y):
    return charged(torch.fmin(*tensor_operands(x, y)))


def reduce_max(value, axis=None, keep_dims=False):
    return _extreme(torch.amax, float("-inf"), value, axis, keep_dims)


def reduce_min(value, axis=None, keep_dims=False):
    return _extreme(torch.amin, float("inf"), value, axis, keep_dims)


def _extreme(function, last, value, axis, keep_dims):
    data = unwrap(value)
    data = data.float() if data.dtype == torch.bfloat16 else data
    running().compute(data.numel(), name="reduction")
    if data.is_floating_point() and bool((missing := data.isnan()).any()):
        # As of two: a row is NaN only if all of it is.
        kept = _reduced(function, data.masked_fill(missing, last), axis, keep_dims)
        return Tensor(kept.masked_fill(_reduced(torch.all, missing, axis, keep_dims), float("nan")))
    return Tensor(_reduced(function, data, axis, keep_dims))


def reduce_sum(value, axis=None, keep_dims=False, dtype=None):
    data = unwrap(value)
    if dtype is not None:
        data = convert(data, _torch(dtype))
    elif not data.is_floating_point() and data.itemsize < 4:
        data = data.to(torch.int32)
    running().compute(data.numel(), name="reduction")
    return Tensor(_reduced(torch.sum, data, axis, keep_dims).to(data.dtype))


def _reduced(function, data, axis, keep_dims):
    axes = tuple(range(data.ndim)) if axis is None else int(axis)
    return function(data, axes, keepdim=keep_dims)


def on_exponential_unit(function, name):
    def operation(value):
        data = unwrap(value)
        running().compute(data.numel(), EXPONENTIALS, name)
        return Tensor(function(data))

    return operation


def elementwise(function):
    return lambda *values: charged(function(*map(unwrap, values)))


def fma(x, y, z):
    # The product of two float32 numbers is exact in float64, so only the sum rounds.
    x, y, z = map(unwrap, (x, y, z))
    return charged((x.double() * y.double() + z.double()).to(z.dtype))


def reshape(value, *shape):
    return value.reshape(*shape)


def permute(value, *order):
    return value.permute(*order)


def expand_dims(value, axis):
    return Tensor(unwrap(value).unsqueeze(int(axis)))


def broadcast(x, y):
    return tuple(map(Tensor, torch.broadcast_tensors(unwrap(x), unwrap(y))))


def join(x, y):
    return Tensor(torch.stack([unwrap(x), unwrap(y)], -1))


def split(value):
    return tuple(map(Tensor, unwrap(value).unbind(-1)))


def to_tensor(value):
    return value if isinstance(value, Tensor) else scalar(value)


def load(pointer, mask=None, other=None, **_cache):
    by = running()
    by.step()
    by.time += by.engine.clock.cycles(LATENCY, 1)
    offsets, mask = pointer.visible(mask)
    memory_ = pointer.memory
    result = poison(offsets.shape, memory_.dtype) if other is None else unwrap(other)
    result = result.to(memory_.dtype).expand(offsets.shape).clone()
    result[mask] = memory_[offsets[mask]]
    _count(pointer, "loaded", mask)
    return Tensor(result)


def store(pointer, value, mask=None, **_cache):
    running().step()
    offsets, mask = pointer.visible(mask)
    data = convert(unwrap(value), pointer.memory.dtype).expand(offsets.shape)
    pointer.memory[offsets[mask]] = data[mask]
    _count(pointer, "stored", mask)


def atomic_add(pointer, value, mask=None, sem=None, scope=None):
    by = running()
    by.step()
    offsets, mask = pointer.visible(mask)
    values = unwrap(value).to(pointer.memory.dtype).expand(offsets.shape)
    old = poison(offsets.shape, pointer.memory.dtype)
    for place_ in torch.cartesian_prod(*map(torch.arange, offsets.shape)) if offsets.ndim else [()]:
        one = tuple(place_) if offsets.ndim != 1 else (place_,)
        if mask[one]:
            old[one] = pointer.memory[offsets[one]]
            pointer.memory[offsets[one]] += values[one]
    by.time += by.engine.clock.cycles(LATENCY, 1)
    _count(pointer, "loaded", mask)
    _count(pointer, "stored", mask)
    return Tensor(old)


def _count(pointer, kind, mask):
    bytes_ = int(mask.sum()) * pointer.memory.itemsize
    running().engine.count(pointer.name, kind, bytes_)


def program_id(axis):
    return scalar(running().program.index[int(axis)])


def num_programs(axis):
    return scalar(running().program.grid[int(axis)])


def num_warps():
    return running().warps


def of_two(choose, operation):
    """Python's ``min`` or ``max``: of constants a constant."""
    return lambda x, y: (
        operation(x, y) if isinstance(x, Tensor) or isinstance(y, Tensor) else choose(x, y)
    )


def runtime_range(*bounds, **_hints):
    """``range``, whose numbers are run-time numbers: their ``//`` rounds towards zero."""
    return map(scalar, range(*map(int, bounds)))


def static_range(*bounds):
    return range(*map(int, bounds))


def static_assert(condition, message=""):
    if not condition:
        raise SimulationError(f"static_assert at {place(frames_of())}: {message}")


def device_assert(condition, message="", mask=None):
    if not bool(unwrap(condition).all()):
        raise SimulationError(f"device_assert at {place(frames_of())}: {message}")


def allocate_shared_memory(element_ty, shape, layout, value=None):
    if isinstance(layout, hopper.mbarrier.MBarrierLayout):
        return memory.Barriers(shape, layout)
    allocated = memory.SharedMemory.allocate(element_ty, shape, layout)
    if value is not None:
        allocated.store(value)
    return allocated


def allocate_mbarrier(batch=None, two_ctas=False):
    return memory.Barriers([1] if batch is None else [batch, 1], None)


def inline_asm(asm, constraints, args, dtype, is_pure, pack):
    """The few instructions that kernels write out: named barriers, moves, and rounding to e4m3."""
    values = {f"${number}": value for number, value in enumerate(args, 1)}
    values["$0"] = args[0] if args else None
    for instruction in filter(None, (part.strip(" {") for part in asm.split(";"))):
        if match := re.fullmatch(
            r"bar(?:rier)?\.(sync|arrive)(?:\.aligned)?\s+(\d+)\s*,\s*(\d+)", instruction
        ):
            kind, number, threads = match[1], int(match[2]), int(match[3])
            running().step()
            barriers = running().program.named_barriers
            barrier = barriers.setdefault(number, memory.NamedBarrier(number))
            getattr(barrier, kind)(threads)
        elif match := re.fullmatch(r"mov\.[bu]32 \$0, (\$1|\d+)", instruction):
            values["$0"] = values["$1"] if match[1] == "$1" else full([], int(match[1]), dtype)
        elif match := re.fullmatch(
            r"cvt\.rn\.satfinite\.e4m3x2\.f32 (\w+), (\$\d), (\$\d)", instruction
        ):
            high, low = (_e4m3_bits(values[name]) for name in match.groups()[1:])
            values[match[1]] = charged(low + 256 * high)
        elif match := re.fullmatch(r"mov\.b32 \$0, {(\w+), (\w+)}", instruction):
            low, high = (unwrap(values[name]) for name in match.groups())
            # Beyond 2³¹ it is a negative number, of the same bits.
            values["$0"] = Tensor((low.long() + 65536 * high.long()).to(torch.int32))
        elif not re.fullmatch(r"\.reg \.b16 \w+(, \w+)*|}", instruction):
            raise NotSimulated(f"inline assembly {instruction!r} at {place(frames_of())}")
    return values["$0"]


def _e4m3_bits(value: Tensor) -> torch.Tensor:
    """The bits of numbers rounded to e4m3, as int32 from 0 to 255."""
    return convert(unwrap(value), torch.float8_e4m3fn).view(torch.uint8).int()


def warp_specialize(functions_and_args, worker_num_warps, worker_num_regs=None):
    """Start a partition for each function but the first, and run the first."""
    parent = running()
    (function, args), *workers = functions_and_args
    names = _partition_names([one.__name__ for one, _ in functions_and_args])
    started = []
    for (worker, its_args), name, warps in zip(workers, names[1:], worker_num_warps, strict=True):
        body = functools.partial(_run_worker, worker, its_args)
        partition = Partition(parent.engine, parent.program, parent.sm, name, int(warps), body)
        partition.time, partition.seen = parent.time, parent.seen
        started.append(partition)
    for partition in started:
        parent.engine.start(partition)
    # Messages use the kernel's names, of which the partitions may have others.
    for allocation in parent.program.allocations:
        allocation.find_name()
    whole, parent.name, parent.entry = parent.name, names[0], function.__code__
    result = function(*args)
    parent.wait(
        lambda: max(w.time for w in started) if all(w.done for w in started) else None,
        lambda: "the other partitions to end",
    )
    parent.name, parent.entry = whole, None
    for partition in started:
        parent.seen |= partition.seen
    return result


def _run_worker(function, args):
    function(*args)
    asynchronous.check_finished()


def _partition_names(names: list[str]) -> list[str]:
    """``consumer``, or ``consumer 0`` and ``consumer 1`` where there are two."""
    return [
        f"{name} {names[:i].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _torch(dtype) -> torch.dtype:
    return TORCH_DTYPES[dtype.name]


# By module and name. What one of the two supported Triton versions lacks is left out.
_OPERATIONS = {
    gl: {
        "abs": elementwise(torch.abs),
        "allocate_shared_memory": allocate_shared_memory,
        "arange": arange,
        "assume": nothing,
        "atomic_add": atomic_add,
        "barrier": nothing,
        "broadcast": broadcast,
        "cast": cast,
        "ceil": elementwise(torch.ceil),
        "constexpr": unchanged,
        "convert_layout": unchanged,
        "device_assert": device_assert,
        "device_print": nothing,
        "exp": on_exponential_unit(torch.exp, "exp"),
        "exp2": on_exponential_unit(torch.exp2, "exp2"),
        "expand_dims": expand_dims,
        "floor": elementwise(torch.floor),
        "fma": fma,
        "full": full,
        "inline_asm_elementwise": inline_asm,
        "join": join,
        "load": load,
        "log": on_exponential_unit(torch.log, "log"),
        "log2": on_exponential_unit(torch.log2, "log2"),
        "max": reduce_max,
        "max_constancy": unchanged,
        "max_contiguous": unchanged,
        "maximum": maximum,
        "min": reduce_min,
        "minimum": minimum,
        "multiple_of": unchanged,
        "num_programs": num_programs,
        "num_warps": num_warps,
        "permute": permute,
        "program_id": program_id,
        "reshape": reshape,
        "rsqrt": on_exponential_unit(torch.rsqrt, "rsqrt"),
        "set_auto_layout": unchanged,
        "split": split,
        "sqrt": on_exponential_unit(torch.sqrt, "sqrt"),
        "static_assert": static_assert,
        "static_print": nothing,
        "static_range": static_range,
        "store": store,
        "sum": reduce_sum,
        "thread_barrier": nothing,
        "to_tensor": to_tensor,
        "warp_specialize": warp_specialize,
        "where": where,
    },
    tl: {"range": runtime_range},
    hopper: {
        "fence_async_shared": memory.fence,
        "warpgroup_mma": asynchronous.warpgroup_mma,
        "warpgroup_mma_wait": asynchronous.warpgroup_mma_wait,
    },
    hopper.tma: {
        "async_copy_global_to_shared": asynchronous.tma_load,
        "async_copy_shared_to_global": asynchronous.tma_store,
        "store_wait": asynchronous.store_wait,
    },
    hopper.mbarrier: {
        "allocate_mbarrier": allocate_mbarrier,
        "arrive": asynchronous.barrier_arrive,
        "expect": asynchronous.barrier_expect,
        "init": asynchronous.barrier_init,
        "invalidate": asynchronous.barrier_invalidate,
        "wait": asynchronous.barrier_wait,
    },
}
# Modules import each other's words, so a word is known by what it is, not by where it was found.
_TWINS = {
    id(getattr(module, name)): twin
    for source, words in _OPERATIONS.items()
    for module in ((gl, tl) if source is gl else (source,))
    for name, twin in words.items()
    if hasattr(module, name)
}
_BUILTINS = {
    "range": runtime_range,
    "min": of_two(min, minimum),
    "max": of_two(max, maximum),
}


class _Module:
    """A module whose members are runnable."""

    def __init__(self, module) -> None:
        self._module = module

    def __getattr__(self, name):
        member = runnable(getattr(self._module, name), f"{self._module.__name__}.{name}")
        setattr(self, name, member)
        return member


def runnable(value, name: str = ""):
    """What stands in for something that a kernel refers to by this name."""
    if id(value) in _TWINS:
        return _TWINS[id(value)]
    if isinstance(value, gl.constexpr):
        return value.value
    if isinstance(value, types.ModuleType):
        return _Module(value)
    if isinstance(value, JITFunction | InterpretedFunction):
        return _runnable_function(value.fn)
    if hasattr(value, "__triton_builtin__") or hasattr(value, "__triton_aggregate__"):

        def unknown(*_args, **_keywords):
            raise NotSimulated(f"{name} at {place(frames_of())}")

        return unknown
    return value


def runnable_kernel(kernel) -> types.FunctionType:
    """A kernel, with what its module's names mean now."""
    _runnable_function.cache_clear()
    return runnable(kernel)


@functools.cache
def _runnable_function(function: types.FunctionType) -> types.FunctionType:
    """The function, with runnable globals."""
    space = {"__name__": function.__module__, "__builtins__": __builtins__, MARK: True, **_BUILTINS}
    for name in _names(function.__code__):
        if name in function.__globals__:
            space[name] = runnable(function.__globals__[name], name)
    defaults = tuple(runnable(value) for value in function.__defaults__ or ())
    closure = tuple(
        types.CellType(runnable(cell.cell_contents, name))
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
    )
    twin = types.FunctionType(function.__code__, space, function.__name__, defaults, closure)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _names(code: types.CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def argument(value, name: str, constant: bool):
    """A kernel's argument as its code sees it."""
    if isinstance(value, gl.constexpr):
        return value.value
    if constant or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return Pointer.to(value, name)
    if isinstance(value, bool | int | float):
        return scalar(value)
    if hasattr(value, "block_shape"):
        return asynchronous.Descriptor(value, name)
    if isinstance(value, tuple):
        parts = [argument(part, f"{name}.{i}", False) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    raise NotSimulated(f"argument {name} of type {type(value).__name__}")
