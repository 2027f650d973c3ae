"""Put the oldest Triton that the kernels run on beside the pinned one, for tests that compile with both.

    python -m scripts.older_triton

It goes into ``.venv/older-triton``, which only those tests look into. Where it cannot be installed they
are skipped by name.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from scripts.environment import ROOT

VERSION = "3.6.0"
FOLDER = ROOT / ".venv" / "older-triton"


def install(folder: Path = FOLDER) -> bool:
    """Install it unless it is there; returns whether it is there in the end."""
    if (folder / f"triton-{VERSION}.dist-info").is_dir():
        return True
    print(f"Installing Triton {VERSION} beside the pinned one (190 MB) …", flush=True)
    # Elsewhere first: what is interrupted must not look as if it were whole.
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-deps", "--target", unfinished, f"triton=={VERSION}"]
    if subprocess.run(command).returncode:
        print(f"Triton {VERSION} could not be installed: tests that compile with it are skipped.")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return True


if __name__ == "__main__":
    install()
