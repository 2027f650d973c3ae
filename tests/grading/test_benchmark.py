"""The benchmark of grading hands in a class and sees what a command takes."""

import sys

import pytest

from benchmarks import grading


def test_a_class_hands_in_what_it_says(tmp_path):
    grading.hand_in("merge_softmax", 16, tmp_path)
    texts = [path.read_text("utf-8") for path in sorted(tmp_path.iterdir())]
    assert len(texts) == 16
    assert sum("raise SystemExit" in text for text in texts) == 2
    assert sum("raise NotImplementedError" in text for text in texts) == 2
    assert len(set(texts)) == 14


def test_processes_and_their_children_are_seen():
    child = "import time\nheld = bytearray(b'x') * (100 << 20)\n"
    child += "while time.process_time() < 1: pass"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    row = grading.watch([sys.executable, "-c", parent], done=lambda: 0.3)
    assert row["megabytes"] >= 90 and row["seconds"] >= 0.9 and row["processor_seconds"] > 0
    assert 1 <= row["parent_megabytes_at_50_percent"] < row["megabytes"]


def test_a_command_that_fails_is_named():
    with pytest.raises(SystemExit, match="failed"):
        grading.watch([sys.executable, "-c", "raise SystemExit(3)"])
