"""The second Triton: put there once, whole or not at all."""

import subprocess

from scripts import older_triton


def pretend(calls, code):
    def run(command):
        calls.append(command)
        folder = command[command.index("--target") + 1]
        (folder / f"triton-{older_triton.VERSION}.dist-info").mkdir(parents=True)
        return subprocess.CompletedProcess(command, code)

    return run


def test_it_is_installed_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(older_triton.subprocess, "run", pretend(calls, 0))
    assert older_triton.install(tmp_path / "older")
    assert older_triton.install(tmp_path / "older")
    assert len(calls) == 1 and f"triton=={older_triton.VERSION}" in calls[0]
    assert [path.name for path in tmp_path.iterdir()] == ["older"]


def test_where_it_cannot_be_installed_nothing_is_left_that_looks_like_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(older_triton.subprocess, "run", pretend([], 1))
    assert not older_triton.install(tmp_path / "older")
    assert not (tmp_path / "older").exists()
    assert "are skipped" in capsys.readouterr().out
