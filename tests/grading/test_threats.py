"""Each attack gets exactly the score it should, and the grader is never at fault."""

import io
import resource
import socket
import zipfile

import nbformat
import pytest

from grading import judge, submissions
from grading.box import BUBBLEWRAP
from tests.grading import threats
from tests.grading.conftest import DOUBLE, IMPATIENT, TIER, needs_box

RIGHT = "import torch\n\n\ndef double(values):\n    return 2 * values\n"
WRONG = "import torch\n\n\ndef double(values):\n    return 0 * values\n"


@needs_box
@pytest.mark.parametrize("threat", threats.ALL, ids=str)
def test_a_threat_gets_its_score(threat, submit):
    if threat.namespaces and TIER != BUBBLEWRAP:
        pytest.skip("only namespaces keep it from what it wants")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0)
        text = threat.text.replace("PORT", str(server.getsockname()[1]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = IMPATIENT if threat.impatient else DOUBLE
        report = submit(text, found, fresh=threat.fresh)
        with pytest.raises(BlockingIOError):
            server.accept()
    states = {result.state for result in report.results}
    told = [(result.title, result.state, result.message) for result in report.results]
    assert report.score == threat.score, told
    assert states == threat.states, told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 600 << 10, (
        "the grader grew"
    )


def a_notebook(*cells: str, **claims: object) -> str:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.update(claims)
    for cell in made.cells:
        cell.outputs = [nbformat.v4.new_output("stream", text="6 of 6 points, all tests passed")]
        cell.metadata.update(claims)
    return nbformat.writes(made)


def a_zip(**files: str | bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


HANDED_IN = {
    "a notebook that claims its points": (
        "eve.ipynb",
        a_notebook("import torch", WRONG, nbgrader={"points": 6, "grade": True}, score=6),
        (0, {"wrong"}),
    ),
    "a notebook with cells that are no Python": (
        "eve.ipynb",
        a_notebook(
            "%%bash\nkill -9 $PPID",
            "!touch /tmp/x\n%env PYTHONPATH=/tmp\n" + RIGHT,
            "%%writefile solution.py\n" + WRONG,
            "%%javascript\ndef double(values): pass",
        ),
        (6, {"passed"}),
    ),
    "a notebook whose function is only in a cell of another language": (
        "eve.ipynb",
        a_notebook("%%script python\n" + RIGHT),
        (0, {"not attempted"}),
    ),
    "a notebook whose function is in a cell that is timed": (
        "ada.ipynb",
        a_notebook("%%time\n%config x = 1\n" + RIGHT),
        (6, {"passed"}),
    ),
    "names that differ in case": (
        "eve.zip",
        a_zip(**{"solution.py": RIGHT, "Solution.py": RIGHT, "SOLUTION.PY": RIGHT}),
        (6, {"passed"}),
    ),
    "a zip in a zip in a zip": (
        "eve.zip",
        a_zip(**{"a.zip": a_zip(**{"b.zip": a_zip(**{"solution.py": RIGHT})})}),
        (0, {"not attempted"}),
    ),
    "reports beside a wrong solution": (
        "eve.zip",
        a_zip(
            **{
                "solution.py": WRONG,
                "results.json": '{"score": 6}',
                "results/eve.json": '{"score": 6}',
                "../results/eve.json": '{"score": 6}',
            }
        ),
        (0, {"wrong"}),
    ),
}


@needs_box
@pytest.mark.parametrize("name", HANDED_IN)
def test_a_hostile_submission_gets_its_score(name, submit, tmp_path):
    file, content, (score, states) = HANDED_IN[name]
    source, target = tmp_path / "handed_in", tmp_path / "submissions"
    source.mkdir()
    (source / file).write_bytes(content.encode() if isinstance(content, str) else content)
    (found,) = submissions.collect(DOUBLE, source, target, [])
    text = None if found.problem else (target / found.student / "solution.py").read_text("utf-8")
    report = submit(text) if text else judge.judge(DOUBLE, None, seed=11, tier=TIER)
    assert report.score == score
    assert {result.state for result in report.results} == states


@needs_box
def test_nobody_is_harmed_by_those_before(submit):
    report = submit((DOUBLE.folder / "solution.py").read_text("utf-8"))
    assert report.score == 6 and not report.flags


def test_there_are_enough_threats():
    names = [threat.name for threat in threats.ALL]
    assert len(names) == len(set(names)) >= 100
