"""Values cross as plain data: what goes in comes out, and nothing else is ever made."""

import socket
import struct
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from grading.inside import plain, shared


@dataclass(frozen=True)
class Point:
    """What may cross by its name."""

    x: float
    y: tuple


def crossed(value, allowed=(Point,)):
    """A value as it comes out of a box."""
    outgoing = plain.Outgoing()
    data = plain.encode(value, outgoing, lambda other: {"opaque": type(other).__name__})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        plain.send(ours, data, outgoing.buffers)
        header, buffers, _ = plain.receive(theirs)
    names = {plain.path_of(kind): kind for kind in allowed}
    return plain.decode(header, lambda d: plain.arrived(d, buffers), None, names.__getitem__)


numbers = (
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text()
)
values = some.recursive(
    numbers,
    lambda inner: (
        some.lists(inner) | some.tuples(inner, inner) | some.dictionaries(some.text(), inner)
    ),
    max_leaves=10,
)


@given(values)
def test_plain_values_come_out_as_they_go_in(value):
    out = crossed(value)
    assert out == value and type(out) is type(value)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_tensors_keep_every_bit(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    out = crossed(tensor)
    assert out.dtype == dtype and out.shape == tensor.shape
    assert out.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "view",
    [
        torch.randn(4, 5).T,
        torch.randn(8, 6)[::2, ::3],
        torch.randn(1, 5).expand(3, 5),
        torch.randn(3, 3, requires_grad=True),
        torch.nn.Parameter(torch.randn(2)),
        torch.randn(3, dtype=torch.complex64).conj(),
    ],
    ids=["transposed", "strided", "expanded", "gradient", "parameter", "conjugate"],
)
def test_tensors_keep_their_strides(view):
    out = crossed(view)
    assert out.equal(view.detach()) and out.stride() == view.stride()


def test_what_does_not_cross_tells_its_kind():
    class Odd:
        pass

    out = crossed((Odd(), {1, 2}, torch.zeros(2).to_sparse(), 3 + 4j))
    assert [type(one).__name__ for one in out] == ["Odd", "set", "sparse_coo_Tensor", "complex"]
    assert all(isinstance(one, plain.Opaque) for one in out)
    assert type(plain.opaque("<script>")).__name__ == "script"


def test_dataclasses_cross_by_name_only():
    point = Point(1.5, (torch.ones(2), "a"))
    assert crossed(point).y[0].equal(torch.ones(2))
    with pytest.raises(plain.Malformed):
        crossed(point, allowed=())


@pytest.mark.parametrize(
    "data",
    [
        {"unknown": 1},
        {"tuple": 3},
        {"dict": [[1]]},
        {"dict": [[[1], 2]]},
        {"dtype": "torch.load"},
        {"device": "nowhere"},
        {"object": "os:system", "fields": {}},
        {"tensor": {"dtype": "torch.float32", "shape": [-1], "stride": [1], "device": "cpu"}},
        {"tensor": {"dtype": "torch.float32", "shape": [2], "stride": [1, 1], "device": "cpu"}},
        {"tensor": {"dtype": "torch.float32", "shape": "ab", "stride": [1], "device": "cpu"}},
        {"tensor": {}},
    ],
    ids=str,
)
def test_what_is_not_of_the_form_is_refused(data):
    with pytest.raises((plain.Malformed, KeyError)):
        plain.decode(data, lambda d: plain.arrived(d, []), None, {}.__getitem__)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<QQ", 2**60, 0),
        struct.pack("<QQ", 2, 2**60),
        struct.pack("<QQ", 2, 0) + b"{}",
        struct.pack("<QQ", 2, 0) + b"x]",
        struct.pack("<QQ", 26, 0) + b'{"header":1,"sizes":[5000]}'[:26],
        struct.pack("<QQ", 27, 4) + b'{"header":1,"sizes":[-1,5]}' + b"1234",
    ],
    ids=["length", "total", "keys", "json", "cut", "sizes"],
)
def test_a_message_of_another_form_is_refused(message):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(message)
        with pytest.raises(plain.Malformed):
            plain.receive(theirs)


def test_the_end_of_the_other_side_is_told():
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            plain.receive(theirs)


@pytest.mark.parametrize("size", [1, 16, 4095, 4096, 4097, 100_000])
def test_lent_memory_is_the_same_on_both_sides(size):
    storage = torch.randint(0, 255, (size,), dtype=torch.uint8)
    fd, memory = shared.lend(storage)
    borrowed = shared.borrow(fd, size)
    assert borrowed.equal(storage)
    borrowed[-1] = 7
    assert shared.seen(memory, size)[-1] == 7 and len(shared.seen(memory, size)) == size
    pages, start = shared.offset(size)
    # Right before a page that nobody may touch, as near as 16 bytes allow.
    assert pages - start - size < 16 and start % 16 == 0
