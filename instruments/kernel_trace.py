"""Every load and store of a real kernel in its order, recorded by Triton's CPU interpreter.

    def example():
        matrix = torch.arange(60.0).view(6, 10)
        return {"plain": lambda: scale(matrix, 2.0), "transposed": lambda: scale(matrix.T, 2.0)}

    runs = record(example, scale, scale_kernel)

An entry says which program loads or stores which rows and columns of which tensor. The result is plain
lists and numbers, small enough for a figure of a page: :class:`figures.kernel_trace.KernelTrace` draws it.
Programs are recorded one after another, as the interpreter runs them; a GPU runs many at once.
"""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instruments.traffic import Bytes, Counter, Traffic, watching

# Of tensors that small the numbers are recorded too.
MOST_VALUES = 64
# One number a row of queries: drawn as a column beside them.
COLUMNS = {"logsumexp", "running_max", "running_sum"}
# What a process of its own finds imported, as a notebook has it.
PRELUDE = "import math\n\nimport torch\nimport triton\nimport triton.language as tl\n\n"


def record(
    example: Callable[[], dict[str, Callable]],
    *functions: Callable,
    predicted: dict[str, dict[tuple[str, str], Bytes]] | None = None,
) -> list[dict]:
    """Record the runs of an example, on the CPU.

    On a GPU machine kernels are compiled, so the example runs in an interpreting process of its own. Only
    its source goes there: it imports what it uses, except ``math``, ``torch``, ``triton`` and ``tl``.

    Args:
        example: returns what to run, by name; each launches one kernel or several.
        functions: kernels and functions of the same notebook that the example uses.
        predicted: of a run, bytes by ``(kernel, buffer)`` as :mod:`instruments.io_model` gives them, which
            the figure sets beside those counted.

    Returns:
        A dict for each run: ``name``; ``tensors``, each with name, rows, columns, bytes an element, row and
        column stride, and values if there are few; ``launches``, each with kernel and grid; ``accesses``,
        each ``[launch, program, tensor, stored, first row, end row, first column, end column, rows of the
        tile, columns of the tile]``; ``predicted``, by tensor's name, bytes ``[loaded, stored]``.

    Raises:
        ValueError: a load or store touches no rectangle of a tensor, or the strides of one leave the place
            of its elements open.
    """
    import kernels

    runs = _record_here(example) if kernels.INTERPRETED else _record_apart(example, functions)
    for name, buffers in (predicted or {}).items():
        run = next((run for run in runs if run["name"] == name), None)
        if run is None:
            raise ValueError(
                f"predicted speaks of {name!r}; the runs are {', '.join(r['name'] for r in runs)}"
            )
        total: dict[str, list[int]] = {}
        for (_, buffer), count in buffers.items():
            entry = total.setdefault(buffer, [0, 0])
            entry[0] += count.loaded
            entry[1] += count.stored
        run["predicted"] = total
    return runs


def bytes_of(run: dict) -> dict[tuple[str, str], Bytes]:
    """Bytes of a recorded run by ``(kernel, buffer)``, as the traffic counter gives them."""
    total: dict[tuple[str, str], Bytes] = {}
    for launch, _, tensor, stored, top, bottom, left, right, _, _ in run["accesses"]:
        buffer = run["tensors"][tensor]
        entry = total.setdefault((run["launches"][launch]["kernel"], buffer["name"]), Bytes())
        moved = (bottom - top) * (right - left) * buffer["element"]
        kind = "stored" if stored else "loaded"
        setattr(entry, kind, getattr(entry, kind) + moved)
    return total


def _record_here(example) -> list[dict]:
    runs = []
    for name, run in example().items():
        recorder = _Recorder()
        with watching(recorder):
            run()
        runs.append({"name": name, **recorder.result()})
    return runs


def _record_apart(example, functions) -> list[dict]:
    sources = [inspect.getsource(getattr(one, "fn", one)) for one in (*functions, example)]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        # A file: Triton reads a kernel's source again.
        module = Path(folder) / "recorded_example.py"
        module.write_text(PRELUDE + "\n\n".join(sources), "utf-8")
        command = [sys.executable, "-m", "instruments.kernel_trace", str(module), example.__name__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"recording {example.__name__} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


class _Recorder(Counter):
    """Writes down what the counter would only add up."""

    def __init__(self) -> None:
        super().__init__(Traffic())
        self.launches: list[dict] = []
        self.tensors: list[dict] = []
        self.accesses: list[list[int]] = []
        self.places: dict[str, tuple[int, dict]] = {}  # of this launch: an argument's tensor
        self.seen: list = []  # kept alive, so that no later tensor gets the address of an earlier one

    def launched(self, kernel: str, tensors: dict) -> None:
        super().launched(kernel, tensors)
        self.launches.append({"kernel": kernel, "grid": None})
        self.places = {name: self._place(name, tensor) for name, tensor in tensors.items()}

    def _place(self, name: str, tensor) -> tuple[int, dict]:
        for number, other in enumerate(self.seen):
            same = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if same == (other.data_ptr(), other.shape, other.stride()):
                return number, self.tensors[number]
        self.seen.append(tensor)
        matrix = _matrix(name, tensor)
        # A second tensor of that name is what a later kernel made of the first.
        if any(entry["name"] == name for entry in self.tensors):
            name = f"merged {name}"
        self.tensors.append({"name": name, **matrix})
        return len(self.tensors) - 1, self.tensors[-1]

    def accessed(self, kinds, pointers, mask) -> None:
        from triton.runtime.interpreter import interpreter_builder as machine

        grid = machine.grid_dim
        x, y, z = machine.grid_idx
        self.launches[-1]["grid"] = [int(size) for size in grid]
        program = x + grid[0] * (y + grid[1] * z)
        visible = mask if isinstance(mask, np.ndarray) else mask.data
        addresses, visible = np.broadcast_arrays(pointers.data, visible)
        visible = visible.astype(bool)
        if not visible.any():
            return
        touched = addresses[visible].astype(np.int64)
        name = next(name for start, end, name in self.spans if start <= touched.min() < end)
        number, matrix = self.places[name]
        offsets = (touched - self.seen[number].data_ptr()) // matrix["element"]
        for kind in kinds:
            entry = [len(self.launches) - 1, program, number, int(kind == "stored")]
            self.accesses.append(entry + _rectangle(name, offsets, visible, matrix))

    def result(self) -> dict:
        stores: dict[tuple, int] = {}
        for _, _, tensor, stored, *place, _, _ in self.accesses:
            if stored:
                stores[tensor, *place] = stores.get((tensor, *place), 0) + 1
        rewritten = {place[0] for place, count in stores.items() if count > 1}
        for number, (entry, tensor) in enumerate(zip(self.tensors, self.seen, strict=True)):
            few = tensor.numel() <= MOST_VALUES and number not in rewritten
            if few and tensor.isfinite().all():
                entry["values"] = [float(f"{value:.3g}") for value in tensor.flatten().tolist()]
        used = {entry[2] for entry in self.accesses}
        order = [number for number in range(len(self.tensors)) if number in used]
        for entry in self.accesses:
            entry[2] = order.index(entry[2])
        return {
            "tensors": [self.tensors[number] for number in order],
            "launches": self.launches,
            "accesses": self.accesses,
        }


def _matrix(name: str, tensor) -> dict:
    """Shape and strides of a tensor as rows and columns; what comes before its last dimension is rows."""
    if tensor.ndim > 1 and name not in COLUMNS:
        flat = tensor.view(-1, tensor.shape[-1])
    else:
        flat = tensor.view(-1, 1) if name in COLUMNS else tensor.view(1, -1)
    (rows, columns), (row_stride, column_stride) = flat.shape, flat.stride()
    # Along a dimension of one element a stride means nothing.
    if columns == 1:
        column_stride = 1
    if rows == 1:
        row_stride = columns * column_stride
    shape = {"rows": rows, "columns": columns, "element": tensor.element_size()}
    return shape | {"row_stride": row_stride, "column_stride": column_stride}


def _rectangle(name: str, offsets, visible, matrix: dict) -> list[int]:
    """Rows and columns that a load or store touches, and how large its tile is with what is masked."""
    row_stride, column_stride = matrix["row_stride"], matrix["column_stride"]
    outer, inner = max(row_stride, column_stride), min(row_stride, column_stride)
    across = offsets // outer
    along = (offsets - across * outer) // inner
    rows, columns = (across, along) if row_stride == outer else (along, across)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    if len(offsets) != (bottom - top) * (right - left) or len(set(offsets.tolist())) != len(
        offsets
    ):
        raise ValueError(f"a load or store of {name} touches no rectangle of its rows and columns")
    tile = [1] * (2 - visible.ndim) + list(visible.shape)
    # The tile of a transposed load, and a vector of rows, lie the other way.
    shown = [int(visible.reshape(tile).any(axis=1 - axis).sum()) for axis in (0, 1)]
    if shown != [bottom - top, right - left] or (matrix["columns"] == 1 and tile[0] == 1):
        tile.reverse()
    return [top, bottom, left, right, *tile]


def main() -> None:
    """Record the example of a file, as a process of its own."""
    file, name = sys.argv[1:]
    specification = importlib.util.spec_from_file_location("recorded_example", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    print(json.dumps(_record_here(getattr(module, name))))


if __name__ == "__main__":
    main()
