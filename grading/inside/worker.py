"""The program in the box: it prepares once, and forks a process for each test.

Everything here runs beside code that may be hostile, so nothing depends on what it says but the
score of the student whose code it is: it knows no expected value, no test and no seed.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType

import numpy
import torch

from . import plain, shared

_MESSAGE = 2000
_FILES = 200  # of a call's arguments, one a storage
_CAUSES = 20


def nursery(control: socket.socket, settings: dict) -> None:
    """Serve the grader: "test" forks a process that gets the socket which comes along."""
    os.environ.update(settings["environment"])
    torch.set_num_threads(1)
    # Fills torch.empty with NaN. torch.use_deterministic_algorithms would import its compiler for a second.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    for name in settings["preload"]:
        importlib.import_module(name)
    for path in settings["remote"]:
        plain.named(path)
    if settings["kernels"]:
        from . import watch  # noqa: F401 - so that no test has to wait for Triton
    alone = _is_alone(settings)
    plain.send(control, {"ready": True})
    while True:
        try:
            header, _, fds = plain.receive(control, files=1)
        except EOFError:
            return
        if "test" not in header:  # the word to end a test that had ended by itself
            continue
        channel = socket.socket(fileno=fds[0])
        child = os.fork()
        if child == 0:
            control.close()
            status = 1
            with contextlib.suppress(BaseException):
                _limit(header["seconds"], header["bytes"])
                Session(channel, settings).serve()
                status = 0
            os._exit(status)
        channel.close()
        _wait(control, child, alone)


def _limit(seconds: int, size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _is_alone(settings: dict) -> bool:
    """Whether every process that this one may end belongs to the box."""
    if settings["tier"] == "second uid":
        return os.getuid() not in (0, settings["grader"])
    with contextlib.suppress(OSError):
        return settings["tier"] == "bubblewrap" and Path("/proc/1/comm").read_text() == "bwrap\n"
    return False


def _wait(control: socket.socket, child: int, alone: bool) -> None:
    """Wait for a test's process, or for the word to end it; then end all that it left behind."""
    pidfd = os.pidfd_open(child)
    ready, _, _ = select.select([pidfd, control], [], [])
    if pidfd not in ready:
        with contextlib.suppress(EOFError):  # the grader itself is gone
            plain.receive(control)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(pidfd)
    if alone:
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)  # all of this user in the box, save this process
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    plain.send(control, {"exit": os.waitstatus_to_exitcode(status)})


class Session:
    """One test's process."""

    def __init__(self, channel: socket.socket, settings: dict) -> None:
        self.channel = channel
        self.settings = settings
        self.file = Path(settings["file"])
        self.module: ModuleType | None = None
        self.storages: dict[int, torch.Tensor] = {}
        self.returned: list[torch.Tensor] = []
        self.fds: list[int] = []
        self.contexts: dict[str, tuple] = {}
        self.launches = None

    def serve(self) -> None:
        numpy.seterr(all="ignore")
        if self.settings["watch"]:
            from . import watch

            self.launches = watch.watch()
        while True:
            try:
                header, _, fds = plain.receive(self.channel, files=_FILES)
            except EOFError:
                return
            self.fds = list(fds)
            outgoing = plain.Outgoing()
            try:
                value = getattr(self, "do_" + header["do"])(header)
                reply = {"value": plain.encode(value, outgoing, _other)}
                reply["alias"] = self._aliases(value)
            except BaseException as error:  # whatever a student's code raises
                outgoing.buffers.clear()
                reply = {"error": self._described(error)}
            plain.send(self.channel, reply, outgoing.buffers)

    # What the grader may ask for.

    def do_load(self, header: dict) -> list[str]:
        """Load the file; the names of what it has."""
        if self.settings["compile"]:
            import triton

            triton.knobs.runtime.interpret = False
        module = ModuleType("solution")
        module.__file__ = str(self.file)
        sys.modules["solution"] = module
        source = self.file.read_text("utf-8")
        exec(compile(source, str(self.file), "exec"), module.__dict__)
        self.module = module
        return [name for name, value in vars(module).items() if callable(value)][:1000]

    def do_call(self, header: dict):
        """Call a function of the file, or one of the project on something of the file."""
        args = [self._decode(value) for value in header["args"]]
        keywords = {name: self._decode(value) for name, value in header["keywords"].items()}
        if "remote" in header:
            if header["remote"] not in self.settings["remote"]:
                raise LookupError(f"{header['remote']} is not for use in the box")
            function = plain.named(header["remote"])
        else:
            function = self._find(header["function"])
        if header.get("without_kernels"):
            from . import watch

            with watch.nothing_done(self.settings["kernels"]):
                return function(*args, **keywords)
        return function(*args, **keywords)

    def do_enter(self, header: dict) -> None:
        manager = plain.named(header["remote"])()
        self.contexts[header["remote"]] = (manager, manager.__enter__())

    def do_exit(self, header: dict):
        manager, value = self.contexts.pop(header["remote"])
        manager.__exit__(None, None, None)
        return value

    def do_launches(self, header: dict):
        return self.launches.forms if self.launches else []

    def do_compile(self, header: dict):
        from . import watch

        forms = self._decode(header["forms"])
        return watch.compile_forms(self.module, forms, header["architecture"])

    # How values come in.

    def _find(self, name: str):
        return getattr(self.module, name)

    def _decode(self, data):
        return plain.decode(data, self._tensor, self._find, plain.named)

    def _tensor(self, description: dict) -> torch.Tensor:
        number, size = description["storage"], description["bytes"]
        if number not in self.storages:
            empty = torch.empty(0, dtype=torch.uint8)
            self.storages[number] = shared.borrow(self.fds.pop(0), size) if size else empty
        dtype = plain._DTYPES[description["dtype"]]
        tensor = torch.empty(0, dtype=dtype)
        place = (description["offset"], description["shape"], description["stride"])
        return tensor.set_(self.storages[number].untyped_storage(), *place)

    def _aliases(self, value) -> list[str]:
        """Which memory a result shares: that of an argument, or of an earlier result."""
        found = set()
        tensors = [
            t
            for t in _flat(value)
            if type(t) is torch.Tensor and t.device.type == "cpu" and t.layout == torch.strided
        ]
        for tensor in tensors:
            if not tensor.numel():
                continue
            pointer = tensor.untyped_storage().data_ptr()
            if any(pointer == s.untyped_storage().data_ptr() for s in self.storages.values()):
                found.add("argument")
            elif any(pointer == t.untyped_storage().data_ptr() for t in self.returned):
                found.add("earlier result")
        self.returned = [*self.returned, *tensors][-20:]
        return sorted(found)

    def _described(self, error: BaseException) -> dict:
        """What was raised, as a learner needs it: one line, and their own lines of the way there."""
        for _ in range(_CAUSES):  # Triton wraps what a kernel raises
            error = error.__cause__ or error
        lines = _text(error).strip().splitlines() or [""]
        frames = traceback.extract_tb(error.__traceback__)
        own = [[f.lineno, (f.line or "")[:200]] for f in frames if f.filename == str(self.file)]
        message = lines[0]
        kind = type(error)
        if kind.__name__ == "CompilationError":
            message = lines[-1]
        if isinstance(error, SyntaxError) and error.filename == str(self.file):
            own = [[error.lineno or 0, (error.text or "").strip()[:200]]]
            message = str(error.msg)
        if plain.path_of(kind) in self.settings["errors"]:
            message = "\n".join(lines)
        return {
            "type": kind.__name__,
            "path": plain.path_of(kind),
            "message": message[:_MESSAGE],
            "frames": own[-8:],
            "by_the_file": bool(frames) and frames[-1].filename == str(self.file),
        }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def _flat(value):
    if isinstance(value, tuple | list):
        for item in value[:100]:
            yield from _flat(item)
    else:
        yield value


def _other(value) -> dict:
    return {"opaque": type(value).__name__}


def main() -> None:
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=int(sys.argv[2]))
    nursery(control, settings)
