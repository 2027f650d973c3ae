"""Setting up: which Python will do, what is installed, and when."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import environment

SCRIPT = Path(environment.__file__)


def test_an_old_python_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    assert "3.11 or newer" in str(stop.value) and "3.8" in str(stop.value)


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 7))


def test_without_leaves_packages_out():
    text = (
        "# words\n\ntorch==2.13.0\ntriton==3.7.1  # its match\nnumpy==2.4.6 ; x > '1'\ntorchx==1\n"
    )
    assert environment.requirements(text, without={"torch", "triton"}) == [
        "numpy==2.4.6 ; x > '1'",
        "torchx==1",
    ]


@pytest.mark.parametrize(
    ("torch", "triton", "answer"),
    [
        ("2.11.0+cu130", "3.6.0", True),
        ("2.13.0", "3.7.1", True),
        ("3.0", "4.0", True),
        ("2.10.1", "3.6.0", False),
        ("2.9.1", "3.6.0", False),
        ("2.13.0", "3.5.1", False),
        ("2.13.0", None, False),
        (None, None, False),
    ],
)
def test_which_torch_is_used_in_place(torch, triton, answer):
    assert environment.new_enough({"torch": torch, "triton": triton}) is answer


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A project whose environments are made and filled only in name; returns what was done."""
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    done = []

    def create(venv):
        venv.mkdir()
        done.append("create")

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "usable", Path.exists)
    monkeypatch.setattr(environment, "create", create)
    monkeypatch.setattr(environment, "install", lambda venv, what: done.append(what))
    return done


def test_a_second_call_does_nothing(house):
    environment.set_up(environment.ROOT / ".venv", "book")
    environment.set_up(environment.ROOT / ".venv", "book")
    assert house == ["create", "book"]


def test_full_adds_to_book_and_serves_it_too(house):
    for what in ("book", "full", "book"):
        environment.set_up(environment.ROOT / ".venv", what)
    assert house == ["create", "book", "full"]


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "pyproject.toml"])
def test_a_changed_file_installs_again_and_full_stays_full(house, name):
    environment.set_up(environment.ROOT / ".venv", "full")
    (environment.ROOT / name).write_text("other")
    environment.set_up(environment.ROOT / ".venv", "book")
    assert house == ["create", "full", "full"]


@pytest.fixture
def interrupt(monkeypatch):
    """Sets up with an install that is interrupted before it is done."""

    def interrupted(venv, what):
        raise KeyboardInterrupt

    def set_up():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(environment, "install", interrupted)
            environment.set_up(environment.ROOT / ".venv", "book")

    return set_up


def test_an_interrupted_install_is_repeated(house, interrupt):
    interrupt()
    environment.set_up(environment.ROOT / ".venv", "book")
    assert house == ["create", "book"]


def test_an_interrupted_update_is_repeated_though_the_files_are_as_before(house, interrupt):
    environment.set_up(environment.ROOT / ".venv", "book")
    (environment.ROOT / "requirements.txt").write_text("other")
    interrupt()
    (environment.ROOT / "requirements.txt").write_text("requirements.txt")
    environment.set_up(environment.ROOT / ".venv", "book")
    assert house == ["create", "book", "book"]


def test_an_environment_made_by_hand_is_filled_not_remade(house):
    (environment.ROOT / ".venv").mkdir()
    environment.set_up(environment.ROOT / ".venv", "full")
    assert house == ["full"]


@pytest.mark.parametrize("what", ["book", "full"])
@pytest.mark.parametrize("in_place", [True, False])
def test_pip_gets_torch_only_where_it_is_wanted(tmp_path, monkeypatch, what, in_place):
    (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {in_place}".lower())
    commands = []

    def call(command, **options):
        commands.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", call)
    environment.install(tmp_path, what)
    [command] = commands
    torch = any(part.startswith("torch==") for part in command)
    assert torch == (what == "full" and not in_place)
    assert any(part.startswith("jupyter-book==") for part in command)


def test_a_failing_pip_ends_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = false")
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match="check the network"):
        environment.install(tmp_path, "book")


def test_a_python_without_ensurepip_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="python3-venv"):
        environment.create(tmp_path / ".venv")


def test_full_on_a_system_without_triton_names_the_way_out(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["environment.py", "full"])
    with pytest.raises(SystemExit, match=r"Linux only.*make book.*book/setup\.md"):
        environment.main()


def test_a_new_environment_sees_the_torch_of_the_one_that_made_it(tmp_path):
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    make = [sys.executable, "-m", "venv", "--without-pip", outer]
    subprocess.run(make, check=True)
    places = ["import sysconfig; print(sysconfig.get_path('purelib'))"]
    python = environment.python_of(outer)
    answer = subprocess.run([python, "-c", *places], capture_output=True, text=True, check=True)
    for name, version in (("torch", "2.11.0+cu130"), ("triton", "3.6.0")):
        about = Path(answer.stdout.strip(), f"{name}-{version}.dist-info")
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (about / "METADATA").write_text(text)
    create = f"""
import sys, pathlib
sys.path.insert(0, {str(SCRIPT.parent)!r})
import environment
environment.create(pathlib.Path({str(inner)!r}))
"""
    subprocess.run([python, "-c", create], check=True)
    assert environment.usable(inner)
    assert environment.uses_torch_in_place(inner)
    ask = "import environment, json; print(json.dumps(environment.versions_here()))"
    answer = subprocess.run(
        [environment.python_of(inner), "-c", ask],
        env={"PYTHONPATH": str(SCRIPT.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == {"torch": "2.11.0+cu130", "triton": "3.6.0"}
