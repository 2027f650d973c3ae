"""Values as plain data: JSON for their structure, raw bytes for tensors, and never a pickle.

Both sides of a box speak it. What comes out of a box may be anything at all, so decoding makes
nothing but numbers, strings, containers, tensors, and objects of dataclasses that the exercise
lists by name. A value of another kind crosses as an :class:`Opaque`, which tells its kind and has
nothing inside.

A tensor that goes in brings all of its storage, in memory that both sides share, so that strides
and what lies around a view mean the same in the box, and what the student changes is seen outside.
One that comes out brings its numbers and its strides.
"""

import dataclasses
import importlib
import json
import math
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch

HEADER_LIMIT = 1 << 20
TENSOR_LIMIT = 256 << 20
DEPTH_LIMIT = 50
_HEAD = struct.Struct("<QQ")
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class Malformed(Exception):
    """What came is no message: too large, cut off, or not of the form."""


class Opaque:
    """A value of a kind that does not cross; each has a class named like the kind."""


class Handle:
    """Something by its name in the student's file."""

    def __init__(self, name: str) -> None:
        self.name = name


def opaque(kind: str) -> Opaque:
    name = "".join(c for c in kind[:60] if c.isalnum() or c == "_") or "object"
    return type(name, (Opaque,), {})()


def named(path: str) -> Any:
    """What ``module:name`` stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def encode(value: Any, tensor: Callable, other: Callable) -> Any:
    """A value as JSON data; ``tensor`` says what stands for a tensor, and ``other`` for the rest."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(item, tensor, other) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, tensor, other) for item in value]}
    if isinstance(value, Mapping):
        pairs = ((encode(k, tensor, other), encode(v, tensor, other)) for k, v in value.items())
        return {"dict": list(pairs)}
    if kind is Handle:
        return {"handle": value.name}
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if kind in (torch.dtype, torch.device):
        return {kind.__name__: str(value)}
    if dataclasses.is_dataclass(kind):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            "object": path_of(kind),
            "fields": {name: encode(item, tensor, other) for name, item in fields.items()},
        }
    return other(value)


def decode(
    data: Any, tensor: Callable, handle: Callable, allowed: Callable[[str], type], depth: int = 0
) -> Any:
    """The value that JSON data stand for. ``allowed`` gives the class of a name, or raises."""
    if depth > DEPTH_LIMIT:
        raise Malformed("it is nested too deeply")

    def inner(item):
        return decode(item, tensor, handle, allowed, depth + 1)

    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [inner(item) for item in data]
    try:
        match data:
            case {"tuple": list(items)}:
                return tuple(inner(item) for item in items)
            case {"dict": list(pairs)}:
                return {inner(key): inner(value) for key, value in pairs}
            case {"opaque": str(kind)}:
                return opaque(kind)
            case {"handle": str(name)}:
                return handle(name)
            case {"tensor": dict(description)}:
                return tensor(description)
            case {"dtype": str(name)}:
                return _DTYPES[name]
            case {"device": str(name)}:
                return torch.device(name)
            case {"object": str(name), "fields": dict(fields)}:
                kind = allowed(name)
                made = object.__new__(kind)
                for field in dataclasses.fields(kind):
                    object.__setattr__(made, field.name, inner(fields[field.name]))
                return made
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Malformed(f"it is not of the form: {str(error)[:200]}") from error
    raise Malformed("it is not of the form")


def describe(tensor: torch.Tensor) -> dict:
    return {
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "device": str(tensor.device),
    }


class Outgoing:
    """Tensors that leave the box with a message."""

    def __init__(self) -> None:
        self.buffers: list[bytes] = []

    def __call__(self, tensor: torch.Tensor) -> dict:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return {"opaque": type(tensor).__name__}
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            return {"opaque": f"{tensor.layout}".removeprefix("torch.") + "_Tensor"}
        description = describe(tensor)
        if tensor.device.type == "cpu":
            if tensor.numel() * tensor.element_size() > TENSOR_LIMIT:
                raise ValueError(
                    f"a tensor of shape {tuple(tensor.shape)} is too large to hand back"
                )
            numbers = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self.buffers.append(bytes(numbers.view(torch.uint8).numpy()))
            description["buffer"] = len(self.buffers) - 1
        return {"tensor": description}


def arrived(description: dict, buffers: list[memoryview]) -> torch.Tensor:
    """A tensor that left the box."""
    dtype = _DTYPES[description["dtype"]]
    shape, stride = ([int(n) for n in description[name]] for name in ("shape", "stride"))
    if len(shape) != len(stride) or len(shape) > 64 or min([*shape, *stride], default=0) < 0:
        raise Malformed("a tensor has an impossible shape")
    device = torch.device(description["device"])
    if "buffer" not in description:
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    data = buffers[description["buffer"]]
    if device.type != "cpu" or len(data) != math.prod(shape) * dtype.itemsize:
        raise Malformed("a tensor has not as many bytes as its shape says")
    if not data:
        return torch.empty(shape, dtype=dtype)
    numbers = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
    span = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if numbers.stride() == tuple(stride) or span * dtype.itemsize > TENSOR_LIMIT:
        return numbers
    # A dimension that was expanded has one number behind all.
    for dimension, step in enumerate(stride):
        if step == 0:
            numbers = numbers.narrow(dimension, 0, 1)
    strided = numbers.new_empty(span).as_strided(numbers.shape, stride)
    return strided.copy_(numbers).expand(shape)


def send(
    channel: socket.socket, header: Any, buffers: list[bytes] = (), fds: list[int] = ()
) -> None:
    """Send a message; ``fds`` go along as open files."""
    body = json.dumps({"header": header, "sizes": [len(b) for b in buffers]}).encode()
    head = _HEAD.pack(len(body), sum(map(len, buffers)))
    if fds:
        socket.send_fds(channel, [head], fds)
    else:
        channel.sendall(head)
    channel.sendall(body)
    for buffer in buffers:
        channel.sendall(buffer)


def receive(channel: socket.socket, *, files: int = 0) -> tuple[Any, list[memoryview], list[int]]:
    """A message: its header, its buffers and the open files that came along, ``files`` at most.

    Raises:
        Malformed: it is none.
        EOFError: the other side is gone.
    """
    head, fds = b"", []
    while len(head) < _HEAD.size:
        more, new, _, _ = socket.recv_fds(channel, _HEAD.size - len(head), files)
        fds += new
        if not more:
            for fd in fds:
                os.close(fd)
            raise EOFError
        head += more
    length, total = _HEAD.unpack(head)
    if length > HEADER_LIMIT or total > 2 * TENSOR_LIMIT:
        raise Malformed("it is too large")
    body = _receive_exactly(channel, length)
    data = memoryview(_receive_exactly(channel, total))
    try:
        message = json.loads(bytes(body))
        header, sizes = message["header"], message["sizes"]
        buffers, start = [], 0
        for size in sizes:
            buffers.append(data[start : start + size])
            start += size
    except Exception as error:  # there is no end to what may be wrong with it
        raise Malformed("it is not of the form") from error
    if start != total or min(sizes, default=0) < 0:
        raise Malformed("its parts are not as long as it says")
    return header, buffers, fds


def _receive_exactly(channel: socket.socket, length: int) -> bytearray:
    data = bytearray()
    while len(data) < length:
        more = channel.recv(min(length - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data
