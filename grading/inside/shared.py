"""The memory of a tensor that goes into the box: shared with the grader, between pages nobody may touch.

It ends where a forbidden page begins, so that a kernel without a mask does not read or write what
happens to lie behind, but dies.
"""

import ctypes
import fcntl
import mmap
import os

import torch

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_NOTHING, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FIXED = 0x10


def offset(size: int) -> tuple[int, int]:
    """Of a storage of so many bytes: the size of its file, and where in it the storage begins."""
    pages = -(-size // _PAGE) * _PAGE
    return pages, (pages - size) & ~15


def lend(storage: torch.Tensor) -> tuple[int, mmap.mmap]:
    """An open file that holds a storage, given as bytes, and the memory in which its owner sees it."""
    pages, start = offset(len(storage))
    fd = os.memfd_create("tensor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages)
    # Whoever made it shorter would kill the other side with its next look at it.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    memory = mmap.mmap(fd, pages)
    torch.frombuffer(memory, dtype=torch.uint8)[start : start + len(storage)] = storage
    return fd, memory


def seen(memory: mmap.mmap, size: int) -> torch.Tensor:
    """What the storage holds now, as bytes."""
    _, start = offset(size)
    return torch.frombuffer(memory, dtype=torch.uint8)[start : start + size]


def borrow(fd: int, size: int) -> torch.Tensor:
    """The storage in that file, as bytes, in memory of its own."""
    pages, start = offset(size)
    if os.fstat(fd).st_size < pages:
        raise ValueError("the file is shorter than the storage")
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = _libc.mmap(None, pages + 2 * _PAGE, _NOTHING, anonymous, -1, 0)
    if base == ctypes.c_void_p(-1).value:
        raise MemoryError("no room for the arguments")
    place = _libc.mmap(base + _PAGE, pages, _READ_WRITE, mmap.MAP_SHARED | _FIXED, fd, 0)
    if place != base + _PAGE:
        raise MemoryError("no room for the arguments")
    os.close(fd)
    # Never unmapped: the student may keep a tensor for as long as the process lives.
    block = (ctypes.c_uint8 * size).from_address(place + start)
    return torch.frombuffer(block, dtype=torch.uint8)
