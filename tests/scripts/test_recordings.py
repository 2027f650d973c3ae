"""When a recording holds: what it depends on, and that every change is noticed."""

import copy

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scripts import recordings


@pytest.fixture
def root(tmp_path):
    """A small project: cells import kernels.a, which imports kernels.b, beside others unused."""
    files = {
        "kernels/__init__.py": "",
        "kernels/a.py": "from . import b\n",
        "kernels/b.py": "import math\n",
        "kernels/unused.py": "",
        "instruments/__init__.py": "",
        "instruments/timing.py": "def late():\n    import kernels.c\n",
        "instruments/worker.py": "",
        "figures/__init__.py": 'GPUS = HERE / "gpus.json"\n',
        "figures/gpus.json": "[true]",
        "figures/other.json": "[]",
        "kernels/c.py": "",
        "benchmarks/results/h200/forward.json": "{}",
        "benchmarks/results/h200/backward.json": "{}",
        "exercises/double/statement.md": "Double it.",
        "exercises/double/solution.py": "",
        "exercises/double/wrong/zero.py": "",
        "exercises/triple/statement.md": "Triple it.",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def chapter(*sources):
    cells = [new_markdown_cell("# Title"), new_code_cell("import exercises", id="setup")]
    for number, text in enumerate(sources, start=1):
        output = new_output("stream", text=f"one\ntwo {number}\n")
        cells.append(new_code_cell(text, execution_count=number + 1, outputs=[output]))
    return new_notebook(cells=cells)


@pytest.fixture
def recorded(root):
    notebook = chapter(
        "from kernels import a", 'rows = records("forward")', "import numpy", "kernels = a"
    )
    notebook.metadata["recording"] = recordings.evidence(notebook, root)
    return notebook


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("import kernels.a", {"kernels/__init__.py", "kernels/a.py", "kernels/b.py"}),
        ("from kernels.b import f", {"kernels/__init__.py", "kernels/b.py"}),
        (
            "import instruments.timing as t",
            {
                "instruments/__init__.py",
                "instruments/timing.py",
                "kernels/__init__.py",
                "kernels/c.py",
            },
        ),
        (
            'run([python, "-m", "instruments.worker"])',
            {"instruments/__init__.py", "instruments/worker.py"},
        ),
        ('show("backward")', {"benchmarks/results/h200/backward.json"}),
        ("from figures import Figure", {"figures/__init__.py", "figures/gpus.json"}),
        (
            'show("double")',
            {"exercises/double/statement.md", "exercises/double/solution.py"},
        ),
        ("import numpy as np", set()),
        ("%matplotlib inline\nimport kernels.b", {"kernels/__init__.py", "kernels/b.py"}),
        ("x = (7\n% 2)\nimport kernels.b", {"kernels/__init__.py", "kernels/b.py"}),
    ],
)
def test_what_a_cell_depends_on(root, cell, expected):
    assert set(recordings.dependencies(chapter(cell), root)) == expected


def test_an_unchanged_chapter_is_fresh(root, recorded):
    assert recordings.why_stale(recorded, root) == []
    (root / "kernels/unused.py").write_text("changed = True\n")
    recorded.cells[0].source = "# Another title"
    recorded.cells[1].source = "the setup cell changed"
    assert recordings.why_stale(recorded, root) == []


@pytest.mark.parametrize(
    "name",
    [
        "kernels/__init__.py",
        "kernels/a.py",
        "kernels/b.py",
        "benchmarks/results/h200/forward.json",
    ],
)
def test_a_changed_file_makes_it_stale_and_is_named(root, recorded, name):
    with (root / name).open("a") as file:
        file.write(" ")
    assert recordings.why_stale(recorded, root) == [f"{name} has changed"]


def test_new_and_vanished_files_are_named(root, recorded):
    (root / "kernels/b.py").unlink()
    other = root / "benchmarks/results/h100/forward.json"
    other.parent.mkdir()
    other.write_text("{}")
    assert recordings.why_stale(recorded, root) == [
        "benchmarks/results/h100/forward.json is new",
        "kernels/b.py is no longer used",
    ]


def test_a_changed_cell_makes_it_stale(root, recorded):
    recorded.cells[4].source = "import numpy as np"
    assert recordings.why_stale(recorded, root) == ["code cell 3 is new or changed"]


def test_removed_and_reordered_cells_make_it_stale(root, recorded):
    fewer, swapped = copy.deepcopy(recorded), copy.deepcopy(recorded)
    del fewer.cells[4]
    swapped.cells[4], swapped.cells[5] = swapped.cells[5], swapped.cells[4]
    for notebook in (fewer, swapped):
        assert recordings.why_stale(notebook, root) == ["the code cells were removed or reordered"]


def test_outputs_of_another_run_make_it_stale(root, recorded):
    again, emptied = copy.deepcopy(recorded), copy.deepcopy(recorded)
    again.cells[3].outputs[0].text = "one\nthree\n"
    emptied.cells[3].update(outputs=[], execution_count=None)
    for notebook in (again, emptied):
        reasons = recordings.why_stale(notebook, root)
        assert reasons == ["code cell 2 has other outputs than were recorded"]


def test_a_silent_cell_must_have_run_too(root):
    notebook = chapter("x = 1")
    notebook.cells[2].outputs = []
    notebook.metadata["recording"] = recordings.evidence(notebook, root)
    assert recordings.why_stale(notebook, root) == []
    notebook.cells[2].execution_count = None
    assert recordings.why_stale(notebook, root) != []


def test_text_in_lines_or_in_one_string_is_the_same(root, recorded):
    for cell in recorded.cells:
        cell.source = cell.source.splitlines(keepends=True)
        for output in cell.get("outputs", []):
            output.text = output.text.splitlines(keepends=True)
    assert recordings.why_stale(recorded, root) == []


def test_cell_ids_follow_type_and_text_alone():
    cells = [new_code_cell("x"), new_markdown_cell("x"), new_code_cell("x"), new_code_cell("y")]
    ids = recordings.cell_ids(cells)
    assert len(set(ids)) == 4 and ids[2] == f"{ids[0]}-2"
    assert recordings.cell_ids([new_code_cell("y")]) == ids[3:]
