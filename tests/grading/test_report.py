"""The instructors' page: what is on it, and who can get it."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from grading import __main__, report, serve_report
from grading.assignment import AssignmentError
from grading.release import release
from scripts.environment import ROOT
from tests.grading.conftest import DOUBLE
from tests.grading.made_up_class import CLASS, HOSTILE, LONG, write_page, write_results


@pytest.fixture(scope="module")
def class_page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("class") / "course")


@pytest.fixture(scope="module")
def soup(class_page):
    return BeautifulSoup(class_page.read_text("utf-8"), "html.parser")


def text_of(element) -> str:
    return " ".join(element.get_text(" ").split())


def test_nothing_that_students_wrote_is_markup(soup, class_page):
    assert not soup.find_all(["script", "img", "iframe", "object", "link", "form"])
    assert not [name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
    shown = soup.get_text()
    for text in (
        HOSTILE,
        f"it imports {HOSTILE}",
        f"line 3: {HOSTILE}",
        f"wrong: {HOSTILE} {LONG}",
    ):
        assert text in shown
    for link in soup.find_all("a"):
        if link["href"].startswith("#"):
            assert soup.find(id=link["href"][1:])
        else:
            assert (class_page.parent / unquote(link["href"])).is_file()


def test_the_class_in_numbers(soup):
    tiles = {text_of(tile.dt): text_of(tile.dd) for tile in soup.select(".figures div")}
    # Of 6, 0, 1.5 of 3 that came late, 0.5 of 1, and 2; one is not settled.
    assert tiles == {
        "Mean": "2 of 6",
        "Median": "1.5 of 6",
        "Full score": "1",
        "No points": "1",
        "Late": "2",
        "To be looked at": "2",
    }
    counts = [text_of(column) for column in soup.select(".columns div")]
    assert counts == ["2", "", "1", "1", "", "", "", "", "", "1"]
    assert text_of(soup.select_one("section[aria-labelledby=scores] p")).startswith("1 not settled")


def test_the_hardest_test_is_first(soup):
    tests = soup.select(".tests > li")
    assert [text_of(test.strong) for test in tests] == [
        "test any numbers",
        "test inputs unchanged",
        "test values",
    ]
    assert text_of(tests[0].select_one(".head .quiet")) == "hidden, 3 points; passed by 33%"
    assert tests[0].select_one(".share")["aria-label"] == (
        "2 passed, 2 wrong, 1 crashed, 1 not attempted"
    )
    assert text_of(tests[0].select_one(".said li")) == f"2 × wrong: {HOSTILE} {LONG}"


def test_each_student_has_results_and_flags(soup):
    students = {text_of(one.select_one(".name")): one for one in soup.select("details")}
    assert students.keys() == CLASS.keys()
    assert text_of(students["cy"].select_one(".score")) == "1.5 of 6, late"
    assert "1 day late, 3 points before" in text_of(students["cy"])
    assert "Nothing handed in" in text_of(students["bob"])
    assert "test any numbers (hidden) wrong 0/3" in text_of(students["cy"])
    assert "test inputs unchanged grader fault ?/1" in text_of(students[LONG])
    looked_at = soup.select("section[aria-labelledby=review] li")
    assert [text_of(item.a) for item in looked_at] == ["eve", LONG]
    assert "it imports" in text_of(looked_at[0])
    assert "1 test could not be judged" in text_of(looked_at[1])


def test_a_class_without_a_settled_score_has_a_page(tmp_path):
    course = release(DOUBLE, tmp_path / "course", seed=5)
    write_results(course, {"ada": (["grader fault"] * 3, [])})
    soup = BeautifulSoup(report.write(course).read_text("utf-8"), "html.parser")
    assert text_of(soup.select_one(".figures dd")) == "– of 6" and not soup.select(".line")


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


@pytest.mark.parametrize(("option", "port"), [([], 8000), (["--port", "0"], 0)])
def test_the_command_serves_a_folder(exported, monkeypatch, option, port):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    served = []
    monkeypatch.setattr(serve_report, "serve", lambda course, port: served.append((course, port)))
    monkeypatch.setattr(sys, "argv", ["grading", "serve-report", str(exported.folder), *option])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert not ended.value.code and served == [(exported, port)]


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_is_a_number(monkeypatch, capsys, port):
    monkeypatch.setattr(sys, "argv", ["grading", "serve-report", "autumn", f"--port={port}"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 2
    assert f"a port is a number from 0 to 65535; got '{port}'" in capsys.readouterr().err


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
