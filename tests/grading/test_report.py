"""The instructors' page: what is on it, and who can get it."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from grading import serve_report
from grading.assignment import AssignmentError
from grading.release import release
from scripts.environment import ROOT
from tests.grading.conftest import DOUBLE


@pytest.fixture
def exported(tmp_path):
    """A course with the files of an export, and some that are none."""
    course = release(DOUBLE, tmp_path / "course", seed=5)
    for name in ("report.html", "gradebook.csv", "gradebook.json", "junit.xml"):
        (course.folder / name).write_text(f"<b>{name} é", "utf-8")
    (course.folder / "feedback").mkdir()
    (course.folder / "feedback/ada l.md").write_text("# Ada", "utf-8")
    (course.folder / "feedback/eve.md").symlink_to(course.folder / "exercise/solution.py")
    return course


@pytest.fixture
def ask(exported):
    server, address = serve_report.open_server(exported, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    start = urlsplit(address)

    def answer(path: str, method: str = "GET") -> tuple[int, str, str]:
        connection = http.client.HTTPConnection(start.hostname, start.port, timeout=60)
        connection.request(method, path.replace("SECRET", start.path.strip("/")))
        got = connection.getresponse()
        return got.status, got.getheader("Content-Type"), got.read().decode()

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_report_is_served(ask):
    page = (200, "text/html; charset=utf-8", "<b>report.html é")
    assert ask("/SECRET/") == ask("/SECRET/report.html") == ask("/SECRET/?a=b") == page
    assert ask("/SECRET/gradebook.csv")[:2] == (200, "text/csv; charset=utf-8")
    assert ask("/SECRET/feedback/ada%20l.md") == (200, "text/plain; charset=utf-8", "# Ada")
    assert ask("/SECRET/junit.xml", "HEAD") == (200, "application/xml; charset=utf-8", "")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/report.html",
        "/SECRETS/",
        "/SECRET",
        "/SECRET/assignment.toml",
        "/SECRET/exercise/solution.py",
        "/SECRET/../course/report.html",
        "/SECRET/feedback/../report.html",
        "/SECRET/feedback/../exercise/test_hidden.py",
        "/SECRET/feedback/%2e%2e/exercise/test_hidden.py",
        "/SECRET/..%2fcourse%2fassignment.toml",
        "/SECRET//etc/hostname",
        "/SECRET/feedback",
        "/SECRET/feedback/eve.md",
        "/SECRET/report.html%00",
    ],
)
def test_nothing_else_is_served(ask, path):
    status, _, text = ask(path)
    assert status == 404 and "<b>" not in text


def test_nothing_can_be_sent(ask):
    assert ask("/SECRET/report.html", "POST")[0] == 501


def test_what_is_not_exported_is_not_served(tmp_path, exported):
    (exported.folder / "report.html").unlink()
    with pytest.raises(AssignmentError, match="run grading export first"):
        serve_report.open_server(exported, 0)


def test_a_port_in_use_is_told(exported):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AssignmentError, match=rf"Port {port} cannot be used \(Address already"):
            serve_report.open_server(exported, port)


def test_the_address_is_printed_and_ctrl_c_ends_it(exported):
    program = (
        "import sys; from pathlib import Path; from grading import course, serve_report;"
        "serve_report.serve(course.open_course(Path(sys.argv[1])), 0)"
    )
    command = [sys.executable, "-c", program, str(exported.folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        address = line.split()[4]
        assert address.startswith("http://127.0.0.1:") and line.endswith("(Ctrl+C stops it).\n")
        start = urlsplit(address)
        connection = http.client.HTTPConnection(start.hostname, start.port, timeout=60)
        connection.request("GET", start.path)
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "\n", "")
