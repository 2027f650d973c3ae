"""Compiling with the pinned Triton and the oldest that the kernels run on, each in a process of its own.

A process of its own, because this one may run kernels through the interpreter.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scripts.environment import ROOT
from scripts.older_triton import FOLDER, VERSION

# Each is a folder to import Triton from, none for the pinned one.
TRITONS = [
    pytest.param(None, id="pinned Triton"),
    pytest.param(
        FOLDER,
        id=f"Triton {VERSION}",
        marks=pytest.mark.skipif(
            not FOLDER.is_dir(), reason=f"Triton {VERSION} is not there: scripts/older_triton.py"
        ),
    ),
]


def run_script(folder: Path | None, *arguments: str):
    """What a script prints as JSON when it imports Triton from a folder."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
        places = [folder, ROOT, os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(str(place) for place in places if place)
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
