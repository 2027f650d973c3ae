"""The box: where a student's code runs, and what it may use there.

Three tiers. *bubblewrap* gives it namespaces of its own: no network, no other process, a file
system that it cannot write but for a small ``/tmp``; and as root another user as well. *second
uid*, where namespaces are refused and the grader is root, is another user with limits: it has the
network, and sees what every user sees. Both are official. *practice* is a process with limits and
nothing more.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from grading.inside import plain

BUBBLEWRAP, SECOND_UID, PRACTICE = TIERS = ("bubblewrap", "second uid", "practice")
OFFICIAL = (BUBBLEWRAP, SECOND_UID)
_FIRST_UID = 61000
_SLOTS = 1000
_INSIDE = Path(__file__).with_name("inside")
_PROGRAM = "import sys; sys.path.append(sys.argv[3]); from inside import worker; worker.main()"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "USER": "student",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class BoxError(Exception):
    """The box itself could not be used: the grader's fault, not the student's."""


class Died(BaseException):
    """The student's process ended before it answered. Not an Exception: no test should go on after it."""


@dataclass(frozen=True)
class Limits:
    """What one test may use.

    Attributes:
        seconds: of computing.
        wall: seconds on the clock, more than of computing, because the machine may be busy.
        total: seconds on the clock for all tests together.
        memory, file, disk: bytes: of memory, in one file, and in all of ``/tmp``.
        processes: that there may be at a time.
    """

    seconds: float = 20.0
    wall: float = 120.0
    total: float = 900.0
    memory: int = 2 << 30
    processes: int = 64
    file: int = 4 << 20
    disk: int = 64 << 20


@dataclass(frozen=True)
class Contents:
    """What a box holds beside Python and the libraries.

    Attributes:
        root: the project's folder.
        files: files and folders of the project, relative to it.
        preload: modules to import before a test.
        remote: ``module:function`` of the project that tests may call in the box.
        errors: ``module:class`` of exceptions that come back as they are.
        kernels: the kernels of the exercise.
        watch: whether to watch where kernels reach.
        compile: whether Triton compiles, instead of interpreting.
    """

    root: Path
    files: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    watch: bool = False
    compile: bool = False


@functools.cache
def best_tier() -> str:
    """The strongest tier that this machine has."""
    python = [sys.executable, "-I", "-c", ""]
    attempts = {}
    if shutil.which("bwrap"):
        attempts[BUBBLEWRAP] = ["bwrap", *_namespaces(), "--ro-bind", "/", "/", "--proc", "/proc"]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        attempts[SECOND_UID] = _as_user(_FIRST_UID + _SLOTS)
    for tier, command in attempts.items():
        if subprocess.run([*command, *python], capture_output=True).returncode == 0:
            return tier
    return PRACTICE


def _as_user(uid: int) -> list[str]:
    """Before a command: run it as another user, with no way back."""
    return [
        *("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"),
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"),
    ]


def _namespaces() -> list[str]:
    kinds = ["pid", "net", "ipc", "uts", "cgroup-try"]
    if os.geteuid() != 0:
        kinds.append("user")
    return [f"--unshare-{kind}" for kind in kinds] + ["--die-with-parent", "--new-session"]


def _libraries() -> list[Path]:
    """Where Python and the installed libraries lie."""
    import torch

    places = {Path(sys.prefix), Path(sys.base_prefix), Path(torch.__file__).parents[1]}
    places = {place.resolve() for place in places} | {Path(sys.prefix)}
    return sorted(p for p in places if p.exists() and not p.is_relative_to("/usr"))


@contextlib.contextmanager
def _slot() -> Iterator[int]:
    """The number of a user that no other box has now."""
    folder = Path(tempfile.gettempdir(), f"grading-slots-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # the folder itself, and not what a link leads to
        raise BoxError(f"{folder} belongs to somebody else")
    for number in range(_SLOTS):
        with open(folder / str(number), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield _FIRST_UID + number
            return
    raise BoxError(f"all {_SLOTS} slots are in use")


@dataclass
class Box:
    """A box for one student's file. Use it as a context manager, and :meth:`test` for each test."""

    file: Path
    contents: Contents
    limits: Limits = Limits()
    tier: str = field(default_factory=best_tier)

    def __post_init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen | None = None
        self._sending = threading.Lock()
        self.log = ""
        self.spent = 0.0

    def __enter__(self) -> "Box":
        self._uid = self._stack.enter_context(_slot())
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="box-")))
        self._folder = folder
        self._copy()
        # Without a /tmp of its own a box needs another place to write: caches that one slot's user made
        # there would be closed to the next.
        self._home = Path("/tmp") if self.tier == BUBBLEWRAP else folder / "home"
        if self.tier != BUBBLEWRAP:
            self._home.mkdir(mode=0o700)
        if self.tier == SECOND_UID:
            os.chown(self._home, self._uid, self._uid)
            os.chown(folder, 0, self._uid)
            folder.chmod(0o750)
        else:
            folder.chmod(0o755)
        return self

    def __exit__(self, *_) -> None:
        self._stop()
        self._stack.close()

    def _copy(self) -> None:
        library, student = self._folder / "lib", self._folder / "student"
        student.mkdir()
        shutil.copyfile(self.file, student / "solution.py", follow_symlinks=False)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_INSIDE, library / "inside", ignore=ignore)
        for name in self.contents.files:
            source, target = self.contents.root / name, library / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copyfile(source, target)

    def _command(self, inside: Path, arguments: list[str]) -> list[str]:
        limits = self.limits
        program = [
            *("prlimit", f"--fsize={limits.file}", "--core=0", "--nofile=512"),
            *([f"--nproc={limits.processes}"] if self.tier != PRACTICE else []),
            *("--", sys.executable, "-I", "-u", "-X", "utf8", "-c", _PROGRAM, *arguments),
            str(inside / "lib"),
        ]
        other_user = _as_user(self._uid)
        if self.tier == PRACTICE:
            return program
        if self.tier == SECOND_UID:
            return [*other_user, *program]
        root = os.geteuid() == 0
        binds, made = [], {Path("/tmp")}
        for place in _libraries():
            for parent in reversed(list(place.parents)[:-1]):
                if parent not in made:  # bubblewrap would make it unreadable to another user
                    made.add(parent)
                    binds += ["--perms", "0755", "--dir", str(parent)]
            binds += ["--ro-bind", str(place), str(place)]
        capabilities = ["SETUID", "SETGID", "SETPCAP"] if root else []
        return [
            *("bwrap", *_namespaces(), "--cap-drop", "ALL"),
            *(word for name in capabilities for word in ("--cap-add", f"CAP_{name}")),
            *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
            *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--remount-ro", "/dev", "--perms", "1777", "--size", str(16 << 20)),
            *("--tmpfs", "/dev/shm", "--perms", "1777", "--size", str(limits.disk)),
            *("--tmpfs", "/tmp"),  # before the libraries, which may lie in there
            *binds,
            *("--perms", "0755", "--dir", "/box"),
            *("--ro-bind", str(self._folder / "lib"), "/box/lib"),
            *("--ro-bind", str(self._folder / "student"), "/box/student"),
            *("--remount-ro", "/", "--chdir", "/tmp", "--"),
            *(other_user if root else []),
            *program,
        ]

    def _start(self) -> None:
        inside = Path("/box") if self.tier == BUBBLEWRAP else self._folder
        contents = self.contents
        settings = {
            "file": str(inside / "student" / "solution.py"),
            "tier": self.tier,
            "grader": os.getuid(),
            "environment": {"TRITON_INTERPRET": str(int(not contents.compile))},
            "preload": contents.preload,
            "remote": contents.remote,
            "errors": contents.errors,
            "kernels": contents.kernels,
            "watch": contents.watch,
            "compile": contents.compile,
        }
        ours, theirs = socket.socketpair()
        self._output = self._stack.enter_context(tempfile.TemporaryFile())
        arguments = [json.dumps(settings), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                self._command(inside, arguments),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT | {name: str(self._home) for name in ("HOME", "TMPDIR")},
                start_new_session=True,
            )
        self._control = ours
        self._control.settimeout(120)
        try:
            plain.receive(self._control)
        except (OSError, EOFError, plain.Malformed) as error:
            self._stop()
            raise BoxError(f"the box did not start: {self.log[-500:].strip()}") from error
        self._idle = self.memory()

    def _stop(self) -> None:
        if self._process is None:
            return
        self._control.close()
        if self.tier == PRACTICE:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self.tier == SECOND_UID:
            self._kill_user()
        self._process.kill()
        self._process.wait()
        if self.tier == SECOND_UID:
            self._kill_user()
        self._read_log()
        self._process = None

    def _kill_user(self) -> None:
        """End every process of the slot's user, until none is left to start another."""
        for _ in range(100):
            alive = False
            for process in psutil.process_iter(["uids"]):
                if process.info["uids"] and process.info["uids"].real == self._uid:
                    alive = True
                    with contextlib.suppress(psutil.Error):
                        process.kill()
            if not alive:
                return

    def _read_log(self) -> None:
        size = os.fstat(self._output.fileno()).st_size
        self.log = os.pread(self._output.fileno(), 4000, max(0, size - 4000)).decode(
            "utf8", "replace"
        )

    @contextlib.contextmanager
    def test(self) -> Iterator["Session"]:
        """A process of its own for one test."""
        if self.spent > self.limits.total:
            raise Died(f"all tests together took more than {self.limits.total:.0f} s")
        if self._process is None:
            self._start()
        begun = os.fstat(self._output.fileno()).st_size
        ours, theirs = socket.socketpair()
        started = time.monotonic()
        session = Session(self, ours)
        header = {
            "test": True,
            "seconds": max(1, round(self.limits.seconds)),
            "bytes": self.limits.memory,
        }
        try:
            with theirs:
                plain.send(self._control, header, fds=[theirs.fileno()])
        except OSError:  # what an earlier test left has ended the box
            self._stop()
            self._start()
            ours.close()
            ours, theirs = socket.socketpair()
            session = Session(self, ours)
            with theirs:
                plain.send(self._control, header, fds=[theirs.fileno()])
        watcher = threading.Thread(target=session._watch, args=[self._idle], daemon=True)
        watcher.start()
        try:
            yield session
        finally:
            session._end()
            watcher.join()
            self.spent += time.monotonic() - started
            if self._process is not None:
                self._read_log()
                size = os.fstat(self._output.fileno()).st_size
                session.printed = self.log[-(size - begun) :] if size > begun else ""

    def memory(self) -> int:
        """Bytes that all processes of the box hold now, shared ones counted once or a little more."""
        total = 0
        with contextlib.suppress(psutil.Error):
            processes = [psutil.Process(self._process.pid)]
            processes += processes[0].children(recursive=True)
            for process in processes[1:] if self.tier != SECOND_UID else processes:
                with contextlib.suppress(psutil.Error):
                    information = process.memory_info()
                    total += max(0, information.rss - information.shared)
        return total


class Session:
    """One test's process, from outside: :meth:`ask` it."""

    def __init__(self, box: Box, channel: socket.socket) -> None:
        self._box = box
        self._channel = channel
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.reason: str | None = None
        self.printed = ""

    def ask(self, header: dict, fds: list[int] = ()) -> tuple[dict, list[memoryview]]:
        """Send a request; the answer's header and buffers.

        Raises:
            Died: there is no answer, and why.
        """
        try:
            plain.send(self._channel, header, fds=fds)
            answer, buffers, _ = plain.receive(self._channel)
            if not isinstance(answer, dict):
                raise plain.Malformed("it is not of the form")
            return answer, buffers
        except plain.Malformed as error:
            self.reason = self.reason or f"what it answered cannot be read: {error}"
        except (OSError, EOFError):
            pass
        self._end()
        raise Died(self.reason or "the process ended")

    def _watch(self, idle: int) -> None:
        """End the process when it has had its time, or its memory beyond what the idle box holds."""
        limits = self._box.limits
        deadline = time.monotonic() + limits.wall
        while not self._over.wait(0.1):
            if time.monotonic() > deadline:
                self._kill(f"it ran for more than {limits.wall:.0f} s")
            elif self._box.memory() > idle + limits.memory:
                self._kill(f"it took more than {limits.memory / 2**30:.1f} GB of memory")
            else:
                continue
            return

    def _kill(self, reason: str) -> None:
        self.reason = self.reason or f"stopped: {reason}"
        with contextlib.suppress(OSError), self._box._sending:
            plain.send(self._box._control, {"kill": True})
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        """Close the process and learn how it ended."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
            control = self._box._control
            control.settimeout(2.0)
            try:
                answer, _, _ = plain.receive(control)
                status = int(answer["exit"])
            except TimeoutError:
                status = self._end_by_force(control)
            except (OSError, EOFError, plain.Malformed, KeyError, TypeError, ValueError):
                self._box._stop()
                status = -signal.SIGKILL
            if self.reason is None and status != 0:
                self.reason = _ending(status)

    def _end_by_force(self, control: socket.socket) -> int:
        """The process does not end by itself: a thread, or a handler, keeps it."""
        try:
            with self._box._sending:
                plain.send(control, {"kill": True})
            control.settimeout(10.0)
            answer, _, _ = plain.receive(control)
            return int(answer["exit"])
        except (OSError, EOFError, plain.Malformed, KeyError, TypeError, ValueError):
            self._box._stop()
            return -signal.SIGKILL


def _ending(status: int) -> str:
    if status == -signal.SIGSEGV or status == -signal.SIGBUS:
        return "it reached outside its memory (segmentation fault): is a mask missing?"
    if status == -signal.SIGXCPU:
        return "it used up its time"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it left Python (exit status {status})"
