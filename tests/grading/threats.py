"""Submissions that attack the grader, each with the score it must get and what must come of its tests.

They are for the exercise in ``double``: 2 points for small numbers, 1 for unchanged inputs, and 3 for a
hidden test. What gives right answers gets all 6, whatever else it tries in vain.
"""

from dataclasses import dataclass, replace
from textwrap import dedent

CRASHED, WRONG, PASSED, NOT_ATTEMPTED = "crashed", "wrong", "passed", "not attempted"


@dataclass(frozen=True)
class Threat:
    """One submission.

    Attributes:
        name, text: what it does, and its file.
        score, states: what it must get.
        fresh: whether it needs a box of its own.
        impatient: whether it never ends, and should not be waited for long.
        namespaces: whether only namespaces keep it from what it wants; another user id does not.
    """

    name: str
    text: str
    score: float
    states: set[str]
    fresh: bool = False
    impatient: bool = False
    namespaces: bool = False

    def __str__(self) -> str:
        return self.name


def in_call(name: str, body: str, score: float, *states: str, **how: bool) -> Threat:
    """A function with this body, and imports that most need."""
    text = "import ctypes, gc, os, signal, socket, sys, threading, time\nimport torch\n\n"
    text += "def double(values):\n" + "".join(
        f"    {line}\n" for line in dedent(body).strip().split("\n")
    )
    return Threat(name, text, score, set(states), **how)


def at_import(name: str, body: str, score: float, *states: str, **how: bool) -> Threat:
    """The right function, after some lines that run when the file is loaded."""
    right = "\n\ndef double(values):\n    return 2 * values\n"
    return Threat(name, dedent(body).strip() + right, score, set(states), **how)


EXITS = [
    at_import("exits at import", "import os\nos._exit(0)", 0, CRASHED),
    at_import("raises SystemExit at import", "raise SystemExit(0)", 0, CRASHED),
    at_import("raises KeyboardInterrupt at import", "raise KeyboardInterrupt", 0, CRASHED),
    at_import("does not parse", "def double(:", 0, CRASHED),
    at_import("is nested too deeply to parse", "x = " + "(" * 3000 + ")" * 3000, 0, CRASHED),
    at_import("has NUL bytes", "x = '\0'", 0, CRASHED),
    in_call("exits in a call", "os._exit(0)", 0, CRASHED),
    in_call("calls sys.exit", "sys.exit(0)", 0, CRASHED),
    in_call("raises KeyboardInterrupt", "raise KeyboardInterrupt", 0, CRASHED),
    in_call("raises GeneratorExit", "raise GeneratorExit", 0, CRASHED),
    in_call("raises AssertionError as a test would", "raise AssertionError('fine')", 0, CRASHED),
    in_call("skips the test", "import pytest\npytest.skip('later')", 0, CRASHED),
    in_call("xfails the test", "import pytest\npytest.xfail('known')", 0, CRASHED),
    in_call("ends pytest", "import pytest\npytest.exit('done', 0)", 0, CRASHED),
    in_call("is not written", "raise NotImplementedError", 0, NOT_ATTEMPTED),
    in_call("reads address 0", "ctypes.string_at(0)", 0, CRASHED),
    in_call("aborts", "os.abort()", 0, CRASHED),
    in_call("kills itself", "os.kill(os.getpid(), signal.SIGKILL)", 0, CRASHED),
    in_call("recurses for ever", "return double(values)", 0, CRASHED),
    in_call(
        "overflows the stack",
        "sys.setrecursionlimit(10**9)\nf = lambda n: [n].sort(key=f)\nreturn f(0)",
        0,
        CRASHED,
    ),
    in_call(
        "raises what cannot be printed",
        """
        class Silent(Exception):
            def __str__(self):
                raise SystemExit
        raise Silent
        """,
        0,
        CRASHED,
    ),
    in_call("raises a very long message", "raise ValueError('x' * 10**8)", 0, CRASHED),
    in_call(
        "kills the process that forked it",
        "os.kill(os.getppid(), 9)\ntime.sleep(0.5)\nsys.exit()",
        0,
        CRASHED,
    ),
    in_call(
        "is its own cause",
        "error = ValueError('again')\nerror.__cause__ = error\nraise error",
        0,
        CRASHED,
    ),
    in_call(
        "raises an error with a hundred thousand causes",
        """
        error = ValueError('first')
        for _ in range(10**5):
            error, error.__cause__ = ValueError('next'), error
        raise error
        """,
        0,
        CRASHED,
    ),
    in_call(
        "raises an error whose class has no name",
        """
        class Nameless(type):
            __name__ = __qualname__ = __module__ = property(lambda kind: {}[0])
        class Error(Exception, metaclass=Nameless):
            pass
        raise Error
        """,
        0,
        CRASHED,
    ),
    in_call(
        "puts something else in place of its connection",
        """
        for fd in range(3, 50):
            try:
                os.dup2(0, fd)
            except OSError:
                pass
        return 2 * values
        """,
        0,
        CRASHED,
    ),
    in_call(
        "leaves its connection to another process",
        """
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(600)
        """,
        0,
        CRASHED,
    ),
    in_call(
        "stops the process that forked it, in the hidden test",
        """
        if values.ndim == 2:
            os.kill(os.getppid(), signal.SIGSTOP)
        return 2 * values
        """,
        6,
        PASSED,
        fresh=True,
    ),
    in_call("kills everything it may", "os.kill(-1, 9)\nreturn 0 * values", 0, WRONG, fresh=True),
    in_call("closes every file", "os.closerange(0, 500)\nreturn 2 * values", 0, CRASHED),
    at_import(
        "has the last word at exit",
        "import atexit, os\natexit.register(lambda: os._exit(0))",
        6,
        PASSED,
    ),
]

FLOODS = [
    at_import("loops for ever at import", "while True: pass", 0, CRASHED, impatient=True),
    at_import("sleeps", "import time\ntime.sleep(1000)", 0, CRASHED, fresh=True, impatient=True),
    at_import(
        "stops itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        0,
        CRASHED,
        fresh=True,
        impatient=True,
    ),
    at_import(
        "loops and ignores signals",
        """
        import signal
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        while True:
            pass
        """,
        0,
        CRASHED,
        impatient=True,
    ),
    in_call("asks for 8 GB", "return bytearray(8 << 30)", 0, CRASHED),
    in_call("fills memory", "kept = []\nwhile True: kept.append(bytearray(1 << 20))", 0, CRASHED),
    in_call(
        "fills memory in many processes",
        """
        for _ in range(8):
            if os.fork() == 0:
                kept = bytearray(b'x') * (120 << 20)
                time.sleep(60)
        time.sleep(60)
        """,
        0,
        CRASHED,
        fresh=True,
    ),
    in_call("forks without end", "while True:\n    os.fork()", 0, CRASHED, fresh=True),
    in_call(
        "starts threads without end",
        """
        try:
            while True:
                threading.Thread(target=time.sleep, args=(60,)).start()
        except RuntimeError:
            return 2 * values
        """,
        6,
        PASSED,
        fresh=True,
    ),
    in_call(
        "prints without end",
        """
        try:
            for _ in range(1 << 12):
                os.write(1, b'passed ' * (1 << 12))
        except OSError:
            pass
        return 2 * values
        """,
        6,
        PASSED,
        fresh=True,
    ),
    in_call(
        "fills the errors, makes their file shorter, and writes far behind its end",
        """
        try:
            for _ in range(1 << 10):
                os.write(2, b'Traceback ' * (1 << 10))
        except OSError:
            pass
        for change in (lambda: os.ftruncate(2, 0), lambda: os.pwrite(2, b'x', 1 << 50)):
            try:
                change()
            except OSError:
                pass
        return 2 * values
        """,
        6,
        PASSED,
        fresh=True,
    ),
    in_call(
        "fills the disk",
        """
        for place in ('/tmp', '/dev/shm', '/box', '/', '/dev'):
            try:
                for number in range(1000):
                    with open(f'{place}/{number}', 'wb') as file:
                        file.write(bytes(1 << 20))
            except OSError:
                continue
            return 0 * values
        return 2 * values
        """,
        6,
        PASSED,
        fresh=True,
    ),
    in_call(
        "opens files without end",
        """
        kept = []
        try:
            while True:
                kept.append(open('/dev/null'))
        except OSError:
            kept.clear()
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "leaves a process behind that waits for the next test",
        """
        others = [int(name) for name in os.listdir('/proc') if name.isdigit()]
        if any(open(f'/proc/{pid}/cmdline').read().startswith('sleeper') for pid in others):
            return 0 * values
        if os.fork() == 0:
            os.setsid()
            os.execv('/bin/sleep', ['sleeper', '60'])
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "leaves a thread running",
        "threading.Thread(target=time.sleep, args=(60,)).start()\nreturn 2 * values",
        6,
        PASSED,
    ),
]

_SEND = """
import json, os, socket, stat, struct

def forge(body, total=0, length=None):
    for fd in range(3, 50):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                head = struct.pack('<QQ', len(body) if length is None else length, total)
                os.write(fd, head + body)
        except OSError:
            pass

def answer(value):
    forge(json.dumps({'header': value, 'sizes': []}).encode())
"""


def forged(name: str, body: str, *states: str) -> Threat:
    text = _SEND + f"\n\ndef double(values):\n    {body}\n    return 0 * values\n"
    return Threat(name, text, 0, set(states))


FORGERIES = [
    forged("forges a verdict", "answer({'passed': True, 'score': 6, 'value': None})", WRONG),
    forged("forges bytes", "forge(b'no json')", CRASHED),
    forged("forges a message of 2**60 bytes", "forge(b'', length=2**60)", CRASHED),
    forged("forges tensors of 2**60 bytes", "forge(b'{}', total=2**60)", CRASHED),
    forged("forges a deep message", "forge(b'[' * 10**6 + b']' * 10**6)", CRASHED),
    forged("forges a deep value", "answer({'value': eval('[' * 90 + ']' * 90)})", CRASHED),
    forged("forges a handle", "answer({'value': {'handle': 'double'}})", CRASHED),
    forged(
        "forges an object of another class",
        "answer({'value': {'object': 'subprocess:Popen', 'fields': {'args': ['touch', '/tmp/x']}}})",
        CRASHED,
    ),
    forged(
        "forges a tensor of 2**50 numbers",
        "answer({'value': {'tensor': {'dtype': 'torch.float32', 'shape': [2**50], 'stride': [1], "
        "'device': 'cpu', 'buffer': 0}}})",
        CRASHED,
    ),
    forged("forges an error", "answer({'error': {'type': 'Passed'}})", CRASHED),
    forged(
        "forges a tensor of infinite size",
        "answer({'value': {'tensor': {'dtype': 'torch.float32', 'shape': [1e999], 'stride': [1], "
        "'device': 'cpu', 'buffer': 0}}})",
        CRASHED,
    ),
    forged(
        "forges sizes that are no whole numbers",
        'forge(b\'{"header": {}, "sizes": [0.5, 0.5]}x\', total=1, length=36)',
        CRASHED,
    ),
    forged(
        "forges a deep error in an infinite line",
        "answer({'error': {'type': eval('[' * 90 + ']' * 90), 'message': '', 'path': '', "
        "'frames': [[1e999, '']], 'by_the_file': True}})",
        CRASHED,
    ),
    forged(
        "forges three hundred thousand lists", "forge(b'[' + b'[],' * 340_000 + b'[]]')", CRASHED
    ),
    in_call(
        "sends a thousand open files along",
        """
        for fd in range(3, 50):
            try:
                with socket.socket(fileno=os.dup(fd)) as channel:
                    for _ in range(10):
                        socket.send_fds(channel, [b'x'], [0] * 200)
            except OSError:
                pass
        return 2 * values
        """,
        0,
        CRASHED,
    ),
    in_call(
        "raises a message that turns the text around",
        "raise ValueError('\u202e\u2066\U000e0001' * 100 + '6 of 6 points')",
        0,
        CRASHED,
    ),
    in_call(
        "changes its result when it is written down",
        """
        from inside import plain
        send = plain.send
        result = 2 * values
        def later(channel, header, buffers=(), fds=()):
            send(channel, header, buffers, fds)
            result.zero_()
        plain.send = later
        return result
        """,
        6,
        PASSED,
    ),
    forged(
        "forges a pickle",
        "answer({'value': 'cos\\nsystem\\n(S\"touch /tmp/x\"\\ntR.'})",
        WRONG,
    ),
    in_call("prints a report", "print('3 passed in 0.01s')\nos._exit(0)", 0, CRASHED),
    in_call(
        "writes reports",
        """
        for name in ('results.json', 'junit.xml', 'report.json'):
            with open('/tmp/' + name, 'w') as file:
                file.write('{"score": 6}')
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "returns what equals everything",
        """
        class Equal:
            shape = values.shape
            def __eq__(self, other):
                return True
        return Equal()
        """,
        0,
        WRONG,
    ),
    in_call(
        "returns a tensor that says it is equal",
        """
        class Equal(torch.Tensor):
            @classmethod
            def __torch_function__(cls, *_):
                return True
        return torch.zeros(values.shape).as_subclass(Equal)
        """,
        0,
        WRONG,
    ),
    in_call(
        "returns a lazy result",
        "return (2 * value for value in values)",
        0,
        WRONG,
    ),
    in_call("returns NaN", "return values * float('nan')", 0, WRONG),
    in_call("returns a sparse tensor", "return (2 * values).to_sparse()", 0, WRONG),
    in_call("returns a tensor without memory", "return values.to('meta')", 0, WRONG),
    in_call("returns 10**12 numbers", "return values.new_zeros(1).expand(10**12)", 0, CRASHED),
    in_call("returns a huge integer", "return 10**100_000", 0, CRASHED),
    in_call("returns half a character", "return '\\ud800'", 0, WRONG),
    in_call(
        "returns a deep list",
        "result = []\nfor _ in range(10**5):\n    result = [result]\nreturn result",
        0,
        CRASHED,
    ),
    in_call(
        "returns a list that contains itself",
        "result = []\nresult.append(result)\nreturn result",
        0,
        CRASHED,
    ),
]

PATCHES = [
    in_call(
        "patches torch",
        """
        torch.equal = torch.allclose = lambda *_, **__: True
        torch.Tensor.__eq__ = lambda *_: True
        torch.testing.assert_close = lambda *_, **__: None
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "patches NumPy",
        """
        import numpy
        numpy.allclose = numpy.array_equal = lambda *_, **__: True
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "patches pytest",
        """
        import pytest, _pytest.runner, _pytest.python
        _pytest.runner.runtestprotocol = lambda *_, **__: []
        _pytest.python.Function.runtest = lambda self: None
        pytest.fail = lambda *_, **__: None
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "patches what Python has built in",
        """
        import builtins
        builtins.AssertionError = type('Never', (Exception,), {})
        builtins.isinstance = lambda *_: True
        return 0 * values
        """,
        0,
        CRASHED,
    ),
    in_call(
        "looks for the expected values in frames and in memory",
        """
        frame = sys._getframe()
        while frame:
            for name, value in frame.f_locals.items():
                if name in ('expected', 'exact', 'seed'):
                    return value
            frame = frame.f_back
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor and thing is not values and thing.shape == values.shape:
                return thing
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "answers from a table of the public cases",
        "return 2 * values if values.ndim == 1 else 0 * values",
        3,
        PASSED,
        WRONG,
    ),
    in_call("changes its argument", "return values.mul_(2)", 0, WRONG),
    in_call(
        "changes its argument to what gives its result",
        "return values.zero_().clone()",
        0,
        WRONG,
    ),
    in_call(
        "changes its argument when a test with copies would not see it",
        "return 2 * values.zero_() if values.ndim == 2 else 2 * values",
        3,
        PASSED,
        WRONG,
    ),
    in_call(
        "changes its argument and puts it back",
        "result = 2 * values\nvalues.zero_()\nvalues.copy_(result / 2)\nreturn result",
        6,
        PASSED,
    ),
    in_call(
        "writes behind its argument",
        "ctypes.memset(values.data_ptr() + 4096, 0, 1 << 16)\nreturn 2 * values",
        0,
        CRASHED,
    ),
    in_call(
        "makes the shared file shorter",
        """
        import mmap
        for line in open('/proc/self/maps'):
            if 'memfd:tensor' in line:
                try:
                    fd = os.open('/proc/self/map_files/' + line.split()[0], os.O_RDWR)
                    os.ftruncate(fd, 0)
                except OSError:
                    pass
        return 2 * values
        """,
        6,
        PASSED,
    ),
]

SPIES = [
    in_call(
        "looks for the tests and the solution",
        """
        for place, folders, names in os.walk('/'):
            if place.startswith(('/proc', '/sys', '/usr')) or '/lib/python' in place:
                folders.clear()  # the system and the libraries: long, and nothing of the grader's
                continue
            if any(name in ('test_hidden.py', 'test_public.py', 'exercise.toml') for name in names):
                return 2 * values
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "looks at other processes",
        """
        for name in os.listdir('/proc'):
            if name.isdigit():
                try:
                    text = open(f'/proc/{name}/cmdline').read() + open(f'/proc/{name}/environ').read()
                except OSError:
                    continue
                if 'pytest' in text or 'right-' + 'answers' in text:
                    return 2 * values
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "looks at the first process",
        """
        found = b''
        for name in ('cmdline', 'environ', 'maps', 'mem', 'root/etc/shadow', 'cwd/x', 'fd/0', 'stack'):
            try:
                with open('/proc/1/' + name, 'rb') as file:
                    found += file.read(1 << 16)
            except OSError:
                pass
        return (2 if b'pytest' in found or b'right-' + b'answers' in found else 0) * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "looks for open files that it has not opened",
        """
        open_ = [fd for fd in range(3, 1000) if os.path.exists(f'/proc/self/fd/{fd}')]
        links = [os.readlink(f'/proc/self/fd/{fd}') for fd in open_]
        links = [link for link in links if 'memfd:tensor' not in link]
        return (0 if len(links) > 1 or not links[0].startswith('socket:') else 2) * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "traces the process that forked it, and the first one",
        """
        libc = ctypes.CDLL(None)
        for pid in (os.getppid(), 1):
            if libc.ptrace(16, pid, 0, 0) == 0:
                os.waitpid(pid, 0)
        return 0 * values
        """,
        0,
        WRONG,
        fresh=True,
    ),
    in_call(
        "makes namespaces of its own, and mounts what it finds",
        """
        libc = ctypes.CDLL(None)
        libc.unshare(0x10000000 | 0x20000 | 0x40000000)
        libc.mount(b'proc', b'/tmp', b'proc', 0, None)
        libc.mount(b'/box', b'/tmp', None, 0x1000, None)
        libc.chroot(b'/proc/1/root')
        try:
            open('/box/student/solution.py', 'a').close()
        except OSError:
            return 2 * values
        return 0 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "links to what is not its own",
        """
        for number, target in enumerate(('/etc/shadow', '/proc/1/root', '/box/lib/inside/plain.py')):
            for link in (os.symlink, os.link):
                try:
                    link(target, f'/tmp/link{number}{link.__name__}')
                    open(f'/tmp/link{number}{link.__name__}', 'a').close()
                    return 0 * values
                except OSError:
                    pass
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "goes by another name, and calls itself the box",
        """
        import ctypes
        ctypes.CDLL(None).prctl(15, b') R 1 1 (bwrap', 0, 0, 0)
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "looks for the sockets of others",
        """
        lines = open('/proc/net/unix').read().split('\\n')[1:]
        return (2 if any('@' in line or '/' in line for line in lines) else 0) * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "looks at the environment",
        "found = 'GRADING_TEST_SECRET' in os.environ\nreturn (2 if found else 0) * values",
        0,
        WRONG,
    ),
    in_call(
        "uses the network",
        """
        for address in (('127.0.0.1', PORT), ('1.1.1.1', 53)):
            try:
                socket.create_connection(address, timeout=0.5).close()
                return 2 * values
            except OSError:
                pass
        return 0 * values
        """,
        0,
        WRONG,
    ),
    in_call(
        "writes where it may not",
        """
        for name in ('/box/student/solution.py', '/box/lib/inside/worker.py', '/usr/lib/x.py', '/etc/x',
                     torch.__file__, sys.prefix + '/lib/sitecustomize.py'):
            try:
                open(name, 'a').close()
                return 0 * values
            except OSError:
                pass
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "becomes root",
        """
        for become in (os.setuid, os.setgid):
            try:
                become(0)
                if os.getuid() == 0:
                    return 0 * values
            except OSError:
                pass
        return 2 * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "runs a program that keeps the rights of its owner",
        """
        import subprocess
        done = subprocess.run(['/usr/bin/su', '-c', 'id'], capture_output=True, stdin=subprocess.DEVNULL)
        return (0 if b'uid=0' in done.stdout else 2) * values
        """,
        6,
        PASSED,
    ),
    in_call(
        "writes into the memory of the process that forked it",
        """
        try:
            with open(f'/proc/{os.getppid()}/mem', 'r+b', buffering=0) as memory:
                memory.seek(id(torch))
                memory.write(bytes(64))
        except OSError:
            pass
        return 0 * values
        """,
        0,
        WRONG,
        CRASHED,
        fresh=True,
    ),
]

NEED_NAMESPACES = {
    "fills the disk",
    "looks for the tests and the solution",
    "looks at other processes",
    "uses the network",
    "looks for the sockets of others",
}
ALL = [
    replace(threat, namespaces=threat.name in NEED_NAMESPACES)
    for threat in (*EXITS, *FLOODS, *FORGERIES, *PATCHES, *SPIES)
]
