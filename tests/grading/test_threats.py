"""Each attack gets exactly the score it should, and the grader is never at fault."""

import resource
import socket

import pytest

from grading.box import BUBBLEWRAP
from tests.grading import threats
from tests.grading.conftest import DOUBLE, IMPATIENT, TIER, needs_box


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


@needs_box
def test_nobody_is_harmed_by_those_before(submit):
    report = submit((DOUBLE.folder / "solution.py").read_text("utf-8"))
    assert report.score == 6 and not report.flags


def test_there_are_enough_threats():
    names = [threat.name for threat in threats.ALL]
    assert len(names) == len(set(names)) >= 100
