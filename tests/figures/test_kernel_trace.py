"""Recordings of real kernels: the bytes are the model's, and the figure adds up the same ones."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

import kernels  # noqa: E402
from figures.kernel_trace import KernelTrace  # noqa: E402
from instruments import io_model, kernel_trace  # noqa: E402
from instruments.traffic import Bytes  # noqa: E402
from tests.site.specimen_trace import recorded  # noqa: E402

needs_interpreter = pytest.mark.skipif(
    not kernels.INTERPRETED, reason="loads and stores are recorded by the interpreter"
)


@triton.jit
def double_kernel(source_ptr, target_ptr, length, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < length
    tl.store(target_ptr + offsets, 2 * tl.load(source_ptr + offsets, mask=inside), mask=inside)


def ragged():
    source = torch.arange(10.0)
    return {
        "doubled": lambda: double_kernel[(3,)](source, torch.empty_like(source), 10, BLOCK=4),
    }


def standard():
    from kernels import naive

    inputs = torch.randn(3, 1, 1, 96, 16)
    return {"standard": lambda: naive.attention(*inputs)}


def loops():
    from kernels import flash1

    inputs = torch.randn(3, 1, 1, 80, 16)
    sizes = {"block_m": 32, "block_n": 16}
    return {
        "printed": lambda: flash1.printed_attention(*inputs, **sizes),
        "swapped": lambda: flash1.attention(*inputs, **sizes),
        "causal": lambda: flash1.attention(*inputs, causal=True, **sizes),
    }


STANDARD = io_model.AttentionShape(96, 96, 16, "float32")
LOOPS = io_model.AttentionShape(80, 80, 16, "float32")
PREDICTED = {
    "standard": io_model.naive_requested(STANDARD),
    "printed": io_model.printed_requested(LOOPS, 16),
    "swapped": io_model.swapped_requested(LOOPS, 32, 16),
    "causal": io_model.swapped_requested(LOOPS, 32, 16, causal=True),
}


@pytest.fixture(scope="module")
def runs():
    return [*kernel_trace.record(standard), *kernel_trace.record(loops)]


@needs_interpreter
def test_a_recording_is_every_load_and_store_in_order():
    (run,) = kernel_trace.record(ragged)
    assert run["launches"] == [{"kernel": "double_kernel", "grid": [3, 1, 1]}]
    assert [tensor["name"] for tensor in run["tensors"]] == ["source", "target"]
    assert run["accesses"] == [
        [0, program, tensor, tensor, 0, 1, 4 * program, min(10, 4 * program + 4), 1, 4]
        for program in range(3)
        for tensor in range(2)
    ]
    assert run["tensors"][0]["values"] == list(range(10))
    assert run["tensors"][1]["values"] == list(range(0, 20, 2))


@needs_interpreter
def test_a_process_of_its_own_records_the_same():
    here = kernel_trace.record(ragged)
    assert kernel_trace._record_apart(ragged, (double_kernel,)) == here


@needs_interpreter
def test_the_bytes_are_the_models(runs):
    for run in runs:
        assert kernel_trace.bytes_of(run) == PREDICTED[run["name"]]
        assert len(json.dumps(run, separators=(",", ":"))) < 30_000


@needs_interpreter
def test_a_view_is_recorded_by_its_own_rows_and_columns():
    runs = {run["name"]: run for run in recorded()}
    strides = {
        name: [run["tensors"][0][key] for key in ("rows", "columns", "row_stride", "column_stride")]
        for name, run in runs.items()
    }
    assert strides == {"plain": [6, 10, 10, 1], "transposed": [10, 6, 1, 10]}
    for run in runs.values():
        rows, columns = (run["tensors"][0][key] for key in ("rows", "columns"))
        touched = np.zeros((rows, columns), dtype=int)
        for _, _, tensor, _, top, bottom, left, right, *tile in run["accesses"]:
            assert tile == [4, 8]
            touched[top:bottom, left:right] += tensor == 0
        assert (touched == 1).all()


@needs_interpreter
def test_what_is_no_rectangle_is_refused():
    @triton.jit
    def diagonal_kernel(matrix_ptr, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        tl.store(matrix_ptr + index * (SIZE + 1), index.to(tl.float32))

    matrix = torch.zeros(4, 4)
    with pytest.raises(Exception, match="matrix touches no rectangle") as caught:
        kernel_trace.record(lambda: {"diagonal": lambda: diagonal_kernel[(1,)](matrix, SIZE=4)})
    assert "\n" not in str(caught.value.__cause__ or caught.value).strip()


@needs_interpreter
def test_a_prediction_for_no_run_is_refused():
    with pytest.raises(ValueError, match="predicted speaks of 'halved'; the runs are doubled"):
        kernel_trace.record(ragged, predicted={"halved": {("double_kernel", "source"): Bytes(40)}})


@needs_interpreter
def test_the_figure_counts_what_python_counts(in_node, runs):
    function = """data.map((run) => run.accesses.map((_, index) => {
      const state = figure.touchedBy(run, index + 1);
      return state.map(({ read, written, again, crossings, down, across }) =>
        ({ read, written, again, crossings, down, across }));
    }))"""
    chosen = [{**run, "accesses": run["accesses"][:60]} for run in runs]
    for run, steps in zip(chosen, in_node("kernel_trace", function, chosen), strict=True):
        loads = [np.zeros((t["rows"], t["columns"]), dtype=int) for t in run["tensors"]]
        all_touches = [np.zeros_like(matrix) for matrix in loads]
        moved = [{"read": 0, "written": 0, "again": 0} for _ in loads]
        for entry, step in zip(run["accesses"], steps, strict=True):
            _, _, tensor, stored, top, bottom, left, right, _, _ = entry
            place = slice(top, bottom), slice(left, right)
            element = run["tensors"][tensor]["element"]
            size = loads[tensor][place].size * element
            moved[tensor]["written" if stored else "read"] += size
            if not stored:
                moved[tensor]["again"] += int((loads[tensor][place] > 0).sum()) * element
                loads[tensor][place] += 1
            all_touches[tensor][place] += 1
            for shown, expected, touches in zip(step, moved, all_touches, strict=True):
                assert {key: shown[key] for key in expected} == expected
                drawn = np.array(shown["crossings"]).reshape(len(shown["down"]) - 1, -1)
                drawn = drawn.repeat(np.diff(shown["down"]), 0)
                assert (drawn.repeat(np.diff(shown["across"]), 1) == touches).all()


@needs_interpreter
def test_steps_end_where_an_access_a_program_or_a_kernel_ends(in_node, runs):
    function = """data.map((run) => ["access", "program", "kernel"]
      .map((by) => figure.boundaries(run, by)))"""
    for run, (each, programs, launches) in zip(
        runs, in_node("kernel_trace", function, runs), strict=True
    ):
        total = len(run["accesses"])
        assert each == list(range(total + 1))
        for ends, parts in ((programs, 2), (launches, 1)):
            keys = [entry[:parts] for entry in run["accesses"]]
            changes = [i for i in range(1, total) if keys[i] != keys[i - 1]]
            assert ends == [0, *changes, total]


@needs_interpreter
def test_addresses_are_those_of_the_strides(in_node):
    data = recorded()
    function = """data.map((run) => run.accesses.map((_, index) =>
      figure.segments(run, figure.access(run, index))))"""
    for run, found in zip(data, in_node("kernel_trace", function, data), strict=True):
        for entry, pieces in zip(run["accesses"], found, strict=True):
            _, _, tensor, _, top, bottom, left, right, _, _ = entry
            matrix = run["tensors"][tensor]
            memory = np.arange(matrix["rows"] * matrix["columns"])
            strides = [memory.itemsize * matrix[key] for key in ("row_stride", "column_stride")]
            view = np.lib.stride_tricks.as_strided(
                memory, (matrix["rows"], matrix["columns"]), strides
            )
            addresses = sorted(view[top:bottom, left:right].ravel().tolist())
            assert [n for first, size in pieces for n in range(first, first + size)] == addresses
            assert all(a + n < b for (a, n), (b, _) in zip(pieces, pieces[1:], strict=False))


def test_without_a_formula_it_expects_each_number_once(in_node):
    run = {
        "tensors": [{"name": "row", "rows": 1, "columns": 4, "element": 4}],
        "accesses": [[0, 0, 0, 0, 0, 1, 0, 4, 1, 4], [0, 0, 0, 0, 0, 1, 0, 2, 1, 2]],
    }
    assert in_node("kernel_trace", "figure.expected(data)", run) == [{"read": 16, "written": 0}]
    run["predicted"] = {"row": [24, 0]}
    assert in_node("kernel_trace", "figure.expected(data)", run) == [{"read": 24, "written": 0}]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0, 6, 0, 10), "all 6 rows"),
        ((0, 4, 0, 10), "rows 0 to 3"),
        ((5, 6, 0, 8), "row 5, columns 0 to 7"),
        ((0, 6, 9, 10), "column 9"),
    ],
)
def test_places_are_said(in_node, place, words):
    data = dict(zip(("top", "bottom", "left", "right"), place, strict=True))
    expression = "figure.placeWords({ rows: 6, columns: 10 }, data)"
    assert in_node("kernel_trace", expression, data) == words


def test_every_tensor_lies_within_the_picture_and_beside_the_others(in_node):
    data = recorded_in_specimen()
    function = "data.flatMap((run) => [312, 560, 900].map((width) => figure.layout(run, width)))"
    for index, picture in enumerate(in_node("kernel_trace", function, data)):
        width = (312, 560, 900)[index % 3]
        boxes = [(p["x"], p["y"], p["width"], p["height"]) for p in picture["places"]]
        assert all(x + w <= width and y + h <= picture["height"] for x, y, w, h in boxes)
        for i, (x, y, w, h) in enumerate(boxes):
            for other_x, other_y, other_w, other_h in boxes[:i]:
                apart = x >= other_x + other_w or other_x >= x + w
                assert apart or y >= other_y + other_h or other_y >= y + h


def recorded_in_specimen():
    from tests.site.specimen_trace import SPECIMEN

    return json.loads(
        SPECIMEN.read_text("utf-8").partition("KernelTrace\n")[2].partition("```")[0]
    )["runs"]


@needs_interpreter
def test_the_specimens_recording_is_todays():
    assert recorded_in_specimen() == recorded()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": []}, "runs are what instruments.kernel_trace.record returns"),
        ({"runs": [{"name": "x"}]}, "runs are what instruments.kernel_trace.record returns"),
        ({"run": "fast"}, "run is one of plain, transposed; got 'fast'"),
        ({"step": 17}, "step is a whole number from 0 to 8; got 17"),
        ({"by": "warp"}, "by.*access.*program.*warp"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        KernelTrace(**{"runs": recorded_in_specimen()} | options)
    assert "\n" not in str(caught.value)
