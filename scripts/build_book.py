"""Builds the website into _build/html, strictly: a warning is an error.

    python -m scripts.build_book

Runs nothing of the book: the pages show what the notebooks recorded. Needs no GPU and no PyTorch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# `python -m jupyter_book` does not exist.
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def say(message: str) -> None:
    print(message, flush=True)


def bring_mathjax(root: Path) -> None:
    """Installs what package-lock.json pins into node_modules, once; says so where it cannot."""
    wanted = hashlib.sha256((root / "package-lock.json").read_bytes()).hexdigest()
    stamp = root / "node_modules" / ".installed"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        say("npm is not installed: the pages will load MathJax from its CDN.")
        return
    say("Bringing MathJax with npm (a few seconds) ...")
    answer = subprocess.run([npm, "ci"], cwd=root, capture_output=True, text=True)
    if answer.returncode != 0:
        last = (answer.stderr.strip() or answer.stdout.strip()).splitlines()[-3:]
        say("\n".join(last))
        say("npm could not bring MathJax: the pages will load it from its CDN instead.")
        return
    stamp.write_text(wanted, "utf-8")


def jupyter_book(root: Path) -> list[str]:
    """The build command. Absolute paths, and book/ as the source: so `/` is a page of its own, and
    a virtual environment beside book/ is not searched for pages."""
    return [
        *(sys.executable, "-c", JUPYTER_BOOK, "build", str(root / "book")),
        *("--config", str(root / "_config.yml"), "--toc", str(root / "_toc.yml")),
        *("--path-output", str(root), "--all", "-W", "-n", "--keep-going", "-q"),
    ]


def reasons(errors: str) -> str:
    """Sphinx's warnings and errors without the traceback that Jupyter Book ends every failure with."""
    warnings = errors.partition("Traceback (most recent call last):")[0].strip()
    return warnings or errors.strip().splitlines()[-1]


def build(root: Path) -> Path:
    """Builds the book that lies in `root` and returns the folder of the site."""
    say("Building the site strictly (about half a minute) ...")
    start = time.monotonic()
    # The configuration names extensions in figures/ and scripts/.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    answer = subprocess.run(
        jupyter_book(root), cwd=root, env=environment, capture_output=True, text=True
    )
    site = root / "_build" / "html"
    if answer.returncode != 0:
        print(reasons(answer.stderr), file=sys.stderr, flush=True)
        sys.exit("The site was not built: see the warnings above; each of them counts as an error.")
    seconds = time.monotonic() - start
    say(f"Built in {seconds:.0f} s: open {site / 'index.html'}, or run `make serve`.")
    return site


if __name__ == "__main__":
    bring_mathjax(ROOT)
    build(ROOT)
