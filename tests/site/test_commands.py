"""What building and serving say when something is missing."""

import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from scripts import build_book, serve
from scripts.build_book import ROOT


@pytest.fixture
def bare_root(tmp_path):
    (tmp_path / "package-lock.json").write_text("{}", "utf-8")
    return tmp_path


def test_without_npm_it_says_where_mathjax_comes_from(bare_root, monkeypatch, capsys):
    monkeypatch.setattr(build_book.shutil, "which", lambda name: None)
    build_book.bring_mathjax(bare_root)
    assert "npm is not installed" in capsys.readouterr().out


def fake_npm(monkeypatch, code):
    calls = []

    def run(command, cwd, **options):
        calls.append(command[1:])
        (cwd / "node_modules").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, code, "", "npm error network\n")

    monkeypatch.setattr(build_book.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(build_book.subprocess, "run", run)
    return calls


def test_a_failing_npm_is_shown_and_tried_again_next_time(bare_root, monkeypatch, capsys):
    calls = fake_npm(monkeypatch, code=1)
    build_book.bring_mathjax(bare_root)
    build_book.bring_mathjax(bare_root)
    assert calls == [["ci"], ["ci"]]
    assert "npm error network" in capsys.readouterr().out


def test_npm_runs_again_only_when_the_lock_file_changed(bare_root, monkeypatch):
    calls = fake_npm(monkeypatch, code=0)
    build_book.bring_mathjax(bare_root)
    build_book.bring_mathjax(bare_root)
    assert len(calls) == 1
    (bare_root / "package-lock.json").write_text('{"changed": true}', "utf-8")
    build_book.bring_mathjax(bare_root)
    assert len(calls) == 2


def small_book(root, page):
    (root / "book").mkdir()
    (root / "book" / "index.md").write_text(page, "utf-8")
    (root / "_config.yml").write_text(
        "sphinx: {extra_extensions: [figures.sphinx_extension]}\n", "utf-8"
    )
    (root / "_toc.yml").write_text("format: jb-book\nroot: index\n", "utf-8")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("# Page\n\n[nowhere](missing.md)\n", "missing.md"),
        (
            "# Page\n\n```{book-figure} Life\n```\n",
            "no figure 'Life'; there are BlockTableWalk, HadamardSteps, IOExplorer",
        ),
        ('# Page\n\n```{book-figure} LifeOfScores\n{"head_dim": 80}\n```\n', "head_dim"),
        ("# Page\n\n```{book-figure} LifeOfScores\n{\n```\n", "LifeOfScores: Expecting"),
    ],
)
def test_a_warning_stops_the_build(tmp_path, capfd, page, words):
    small_book(tmp_path, page)
    with pytest.raises(SystemExit, match="The site was not built"):
        build_book.build(tmp_path)
    assert words in capfd.readouterr().err


def test_serving_needs_a_site(tmp_path):
    with pytest.raises(SystemExit, match="run `make book` first"):
        serve.open_server(tmp_path, 8000)


def test_a_taken_port_is_named(tmp_path):
    (tmp_path / "index.html").write_text("here", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} cannot be used"):
            serve.open_server(tmp_path, port)


def test_it_serves_the_site(tmp_path):
    (tmp_path / "index.html").write_text("here", "utf-8")
    server = serve.open_server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
        assert answer.read() == b"here"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_is_a_port(port):
    command = [sys.executable, "-m", "scripts.serve", "--", port]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2 and f"from 1 to 65535; got '{port}'" in answer.stderr
