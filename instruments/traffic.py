"""How many bytes a kernel asks memory for, counted by running it through Triton's CPU interpreter.

    python -m instruments.traffic kernels.naive:attention 1,2,256,64 1,2,256,64 1,2,256,64
    python -m instruments.traffic kernels.online_softmax:two_pass_softmax 8,5000 --dtype float32

The interpreter executes a kernel's loads and stores one by one, so the bytes of every buffer can be
added up exactly, masks included. These are *requested* bytes: a tile that two programs read counts
twice. A GPU's caches serve part of such repeats, so the bytes that reach HBM can be fewer.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Bytes:
    """Bytes requested from one buffer."""

    loaded: int = 0
    stored: int = 0


@dataclass
class Traffic:
    """Bytes by ``(kernel, buffer)``. A buffer has its pointer argument's name, less ``_ptr``."""

    buffers: dict[tuple[str, str], Bytes] = field(default_factory=lambda: defaultdict(Bytes))

    @property
    def total(self) -> int:
        """All bytes, loaded and stored."""
        return sum(b.loaded + b.stored for b in self.buffers.values())

    def rows(self) -> list[dict]:
        """One row a buffer: ``kernel``, ``buffer``, ``loaded``, ``stored``."""
        return [{"kernel": k, "buffer": b, **asdict(n)} for (k, b), n in self.buffers.items()]


@contextlib.contextmanager
def counting() -> Iterator[Traffic]:
    """Count the traffic of every kernel launched inside the ``with`` block.

    Only where kernels are interpreted; elsewhere use :func:`count`, which starts such a process.

    Raises:
        RuntimeError: kernels are compiled in this process.
        ValueError: two tensors handed to one kernel overlap, so that bytes cannot be told apart.
    """
    counter = Counter(Traffic())
    with watching(counter):
        yield counter.traffic


@contextlib.contextmanager
def watching(counter: "Counter") -> Iterator[None]:
    """Show a counter every launch, load and store inside the ``with`` block."""
    import kernels

    if not kernels.INTERPRETED:
        raise RuntimeError(
            "bytes are counted through Triton's interpreter, but this process compiles kernels: "
            "use instruments.traffic.count(), or set TRITON_INTERPRET=1 before importing kernels"
        )
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    patches = {
        (InterpretedFunction, "run"): counter.watch_launch,
        (InterpreterBuilder, "create_masked_load"): counter.watch("loaded"),
        (InterpreterBuilder, "create_masked_store"): counter.watch("stored"),
        (InterpreterBuilder, "create_atomic_rmw"): counter.watch("loaded", "stored"),
    }
    originals = {place: getattr(*place) for place in patches}
    try:
        for (owner, name), wrap in patches.items():
            setattr(owner, name, wrap(originals[owner, name]))
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


class Counter:
    """Attributes each access of the running kernel to the tensor whose memory it touches."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.kernel = ""
        self.spans: list[tuple[int, int, str]] = []

    def launched(self, kernel: str, tensors: dict) -> None:
        """A launch begins: a kernel's name, and its tensors by argument."""
        self.kernel = kernel
        self.spans = sorted((*_span(tensor), name) for name, tensor in tensors.items())
        for (_, end, first), (start, _, second) in zip(self.spans, self.spans[1:], strict=False):
            if start < end:
                raise ValueError(
                    f"{first} and {second} of {kernel} overlap in memory, so their bytes "
                    "cannot be told apart; hand over separate tensors"
                )

    def watch_launch(self, original):
        def run(function, *args, **kwargs):
            names = set(function.arg_names)
            given = {name: value for name, value in kwargs.items() if name in names}
            bound = inspect.signature(function.fn).bind_partial(*args, **given).arguments
            tensors = {
                name.removesuffix("_ptr"): value
                for name, value in bound.items()
                if hasattr(value, "data_ptr") and value.numel()
            }
            self.launched(function.fn.__name__, tensors)
            return original(function, *args, **kwargs)

        return run

    def watch(self, *kinds: str):
        def wrap(original):
            # Atomics hand over (operation, pointers, value, mask); loads and stores begin with pointers.
            signature = inspect.signature(original)

            def method(builder, *args, **kwargs):
                given = signature.bind(builder, *args, **kwargs).arguments
                pointers = given.get("ptrs", given.get("ptr"))
                self.accessed(kinds, pointers, given["mask"])
                return original(builder, *args, **kwargs)

            return method

        return wrap

    def accessed(self, kinds, pointers, mask) -> None:
        """The running program loads or stores at these addresses."""
        width = pointers.get_element_ty().primitive_bitwidth // 8
        visible = mask if isinstance(mask, np.ndarray) else mask.data
        addresses, visible = np.broadcast_arrays(pointers.data, visible)
        # The interpreter may hold a mask as integers, which would pick elements by number.
        addresses = addresses[visible.astype(bool)].astype(np.int64)
        for start, end, name in self.spans:
            touched = width * int(np.count_nonzero((addresses >= start) & (addresses < end)))
            for kind in kinds if touched else ():
                entry = self.traffic.buffers[self.kernel, name]
                setattr(entry, kind, getattr(entry, kind) + touched)


def _span(tensor) -> tuple[int, int]:
    """First byte of a tensor, and the one after its last."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def count(
    function: str, *shapes: tuple[int, ...], dtype: str = "float16", **keywords: object
) -> Traffic:
    """Count the bytes a function's kernels request, in an interpreting process of its own.

    Works on a GPU machine too, where this process compiles its kernels. Keep the sizes small: the
    interpreter takes about a second for a few hundred queries and keys.

    Args:
        function: ``"module:function"``, such as ``"kernels.naive:attention"``.
        shapes: shapes of its tensor arguments, which are drawn from N(0, 1).
        dtype: their dtype.
        keywords: its other arguments: ``causal=True``.
    """
    command = [sys.executable, "-m", "instruments.traffic", function]
    command += [",".join(map(str, shape)) for shape in shapes]
    command += ["--dtype", dtype, "--keywords", json.dumps(keywords), "--json"]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"counting the bytes of {function} failed:\n{done.stderr[-2000:]}")
    traffic = Traffic()
    for row in json.loads(done.stdout):
        traffic.buffers[row["kernel"], row["buffer"]] = Bytes(row["loaded"], row["stored"])
    return traffic


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Count the bytes a function's kernels request.")
    parser.add_argument("function", help="module:function, such as kernels.naive:attention")
    parser.add_argument("shapes", nargs="+", type=_shape, help="of its tensors, such as 1,2,256,64")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--keywords", type=json.loads, default={}, help='as JSON: {"causal": true}')
    parser.add_argument("--json", action="store_true", help="print JSON and no table")
    chosen = parser.parse_args()
    module, separator, name = chosen.function.partition(":")
    if not separator or not module.startswith("kernels."):
        parser.error(f"function must be kernels.MODULE:FUNCTION, got {chosen.function}")

    # Before kernels (and so Triton) is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    function = getattr(importlib.import_module(module), name)
    tensors = [torch.randn(shape).to(getattr(torch, chosen.dtype)) for shape in chosen.shapes]
    with counting() as traffic:
        function(*tensors, **chosen.keywords)
    if chosen.json:
        print(json.dumps(traffic.rows()))
        return
    for row in traffic.rows():
        print(f"{row['kernel']:28}{row['buffer']:16}{row['loaded']:>14,}{row['stored']:>14,}")
    print(f"{'total':28}{'':16}{traffic.total:>28,} bytes")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


if __name__ == "__main__":
    main()
