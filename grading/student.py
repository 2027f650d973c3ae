"""A student's file as the tests see it: functions that are called in the box."""

import contextlib
import importlib
import mmap
import os
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import torch

from grading.box import Died, Session
from grading.inside import plain, shared


class StudentError(Exception):
    """What a student's code raised.

    Attributes:
        kind: the name of the exception's class.
        frames: line numbers and lines of the student's file on the way to it.
    """

    def __init__(self, kind: str, message: str, frames: list[tuple[int, str]]) -> None:
        super().__init__(message)
        self.kind = kind
        self.frames = frames

    @property
    def message(self) -> str:
        """One line for the learner."""
        place = f" (line {self.frames[-1][0]} of your code)" if self.frames else ""
        return f"{self.kind}: {self}{place}"


class NotWritten(StudentError):
    """The file has no such function, or it raises NotImplementedError: not attempted."""


def clean(text: str, limit: int = 500) -> str:
    """Text from the box, fit for a terminal, a page and a table: what shows, in the order it has."""
    return "".join(
        "?" if unicodedata.category(c)[0] == "C" and c != "\n" else c for c in text[:limit]
    )


class Student:
    """The ``student`` fixture: its attributes are the functions of the file."""

    def __init__(self, session: Session, results: tuple[str, ...], errors: tuple[str, ...]) -> None:
        self._calls = Calls(session, results, errors)

    def __getattr__(self, name: str) -> "Function":
        if name.startswith("_"):
            raise AttributeError(name)
        names = self._calls.load()
        if name not in names:
            raise NotWritten("NameError", f"the file has no function {name}", [])
        return Function(self._calls, name)


class Function(plain.Handle):
    """A function of the student's file, called in the box."""

    def __init__(self, calls: "Calls", name: str) -> None:
        super().__init__(name)
        self._calls = calls
        self.__name__ = name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._calls.call({"function": self.name}, args, keywords)


class Calls:
    """Requests to one process in a box.

    Attributes:
        without_kernels: whether kernels do nothing when they are launched.
        keep_arguments: whether the student's functions get copies, so that tests see no change of theirs.
        changed_arguments: whether the student's functions changed a tensor they were given.
        launched: kernels that tests handed to a function of the project, with what a compiler must know
            of their arguments.
        flags: for a person.
    """

    def __init__(self, session: Session, results: tuple[str, ...], errors: tuple[str, ...]) -> None:
        self.session = session
        self.without_kernels = False
        self.keep_arguments = False
        self.changed_arguments = False
        self.launched: list[tuple[str, list, dict]] = []
        self.flags: set[str] = set()
        self._results = results
        self._errors = errors
        self._names: list[str] | None = None
        self._lent: dict[int, tuple[int, torch.Tensor, mmap.mmap | None]] = {}

    def load(self) -> list[str]:
        """Load the student's file; the names of its functions."""
        if self._names is None:
            names = self._ask({"do": "load"})
            self._names = (
                [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
            )
        return self._names

    def call(self, what: dict, args: tuple, keywords: dict) -> Any:
        """Call a function in the box; tensors that it changes are changed here."""
        self.load()
        fds: list[int] = []
        if "remote" in what and len(args) > 1 and isinstance(args[0], Function):
            kernel, _, *given = args  # a kernel, its grid, and its arguments
            simple = {k: v for k, v in keywords.items() if isinstance(v, bool | int | float | str)}
            self.launched.append((kernel.name, [_described(value) for value in given], simple))

        def tensor(value: torch.Tensor) -> dict:
            return {"tensor": self._lend(value, fds)}

        def other(value: object):
            if isinstance(value, plain.Handle):
                return {"handle": value.name}
            raise TypeError(f"a {type(value).__name__} cannot be handed to the box")

        try:
            header = {
                "do": "call",
                "args": [plain.encode(value, tensor, other) for value in args],
                "keywords": {k: plain.encode(v, tensor, other) for k, v in keywords.items()},
                **what,
            }
            if self.without_kernels:
                header["without_kernels"] = True
            return self._ask(header, fds)
        finally:
            for fd in fds:
                os.close(fd)
            self._take_changes(by_the_student="function" in what)

    def launches(self) -> list:
        return self._ask({"do": "launches"})

    def compile(self, forms: list, architecture: int) -> list:
        encoded = plain.encode(forms, None, lambda _: None)
        return self._ask({"do": "compile", "forms": encoded, "architecture": architecture})

    def enter(self, remote: str) -> None:
        self.load()
        self._ask({"do": "enter", "remote": remote})

    def leave(self, remote: str) -> Any:
        return self._ask({"do": "exit", "remote": remote})

    def _ask(self, header: dict, fds: list[int] = ()) -> Any:
        answer, buffers = self.session.ask(header, fds)
        try:
            for shared_with in list(answer.get("alias", []))[:3]:
                self.flags.add(f"a result shares its memory with an {clean(str(shared_with), 40)}")
            value = raised = None
            if "error" in answer:
                raised = self._raised(answer["error"])
            else:
                value = plain.decode(
                    answer["value"],
                    lambda description: plain.arrived(description, buffers),
                    _no_handle,
                    self._allowed,
                )
        except Exception as error:  # there is no end to what may be wrong with it
            raise Died(f"what it answered cannot be read: {clean(str(error))}") from None
        if raised is not None:
            raise raised
        return value

    def _raised(self, error: dict) -> BaseException:
        kind, message = clean(str(error["type"]), 80), clean(str(error["message"]), 2000)
        if error["path"] in self._errors:
            made = plain.named(error["path"])(message)
            made.from_the_box = True
            return made
        frames = [(int(n), clean(str(line), 200)) for n, line in error["frames"][-8:]]
        # PyTorch raises it, too, of what it cannot do.
        unwritten = kind == "NotImplementedError" and error["by_the_file"] is True
        return (NotWritten if unwritten else StudentError)(kind, message, frames)

    def _allowed(self, path: str) -> type:
        if path not in self._results:
            raise plain.Malformed(f"a {path} is not among what may come back")
        return plain.named(path)

    def _lend(self, tensor: torch.Tensor, fds: list[int]) -> dict:
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size == 0:
            address = -1
        if address not in self._lent:
            bytes_ = torch.empty(0, dtype=torch.uint8).set_(storage)
            memory = None
            if size:
                fd, memory = shared.lend(bytes_)
                fds.append(fd)
            self._lent[address] = (len(self._lent), bytes_, memory)
        elif size:
            # The caller may have written to it since.
            _, bytes_, memory = self._lent[address]
            shared.seen(memory, size).copy_(bytes_)
        number = self._lent[address][0]
        return {
            **plain.describe(tensor),
            "storage": number,
            "bytes": size,
            "offset": tensor.storage_offset(),
        }

    def _take_changes(self, by_the_student: bool) -> None:
        for _, bytes_, memory in self._lent.values():
            if memory is not None:
                now = shared.seen(memory, len(bytes_))
                if not torch.equal(now, bytes_):
                    self.changed_arguments |= by_the_student
                    if not (by_the_student and self.keep_arguments):
                        bytes_.copy_(now)


def _described(value: object) -> object:
    """What a compiler must know of an argument."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if hasattr(value, "block_shape"):  # what the TMA is told of a tensor
        return {"dtype": value.base.dtype, "tile": list(value.block_shape), "layout": value.layout}
    return value


def _no_handle(name: str):
    raise plain.Malformed("a handle came back")


def remote_function(path: str, current: Callable[[], Calls]) -> Callable:
    """What takes the place of a function of the project that runs in the box."""

    def function(*args: Any, **keywords: Any) -> Any:
        return current().call({"remote": path}, args, keywords)

    return function


def remote_context(path: str, kind: type, current: Callable[[], Calls]) -> Callable:
    """The same of a context manager; what it gives is complete when it is left."""

    @contextlib.contextmanager
    def context() -> Iterator[Any]:
        value = kind()
        calls = current()
        calls.enter(path)
        yield value
        vars(value).update(vars(calls.leave(path)))

    return context


@contextlib.contextmanager
def replaced(places: dict[str, Any]) -> Iterator[None]:
    """Within it, ``module:name`` are other values."""
    before = {}
    for path, value in places.items():
        module_name, _, name = path.partition(":")
        module = importlib.import_module(module_name)
        before[path] = getattr(module, name)
        setattr(module, name, value)
    try:
        yield
    finally:
        for path, value in before.items():
            module_name, _, name = path.partition(":")
            setattr(importlib.import_module(module_name), name, value)
