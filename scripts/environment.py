"""Make the project's .venv and install what a command needs.

    python3 scripts/environment.py book     the website: everything but torch and triton
    python3 scripts/environment.py full     kernels, notebooks, tests and website

A chapter's first cell calls `complete`, which gives the Python it runs on what that lacks.
Calling it again costs nothing until the requirement files change; an interrupted call is repeated.
Only the standard library is used, in a syntax that an old Python can read far enough to be told.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "The attention book needs Python 3.11 or newer and this one is %d.%d: install a newer one "
        "and name it, as in make book PYTHON=python3.12." % sys.version_info[:2]
    )

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The oldest pair the kernels run on: a machine that has it, or a newer one, keeps its own.
OLDEST_IN_PLACE = {"torch": (2, 11), "triton": (3, 6)}
# What a chapter imports beside them; the rest of requirements.txt is for the website and the tests.
IN_CHAPTERS = ("numpy", "matplotlib", "anywidget", "ipywidgets", "safetensors", "tqdm", "pytest")
EXPECTATION = {
    "book": "about 2 minutes and 150 MB of downloads the first time",
    "full": "about 5 minutes the first time; on Linux torch and CUDA are about 3 GB of downloads",
}


def requirements(text: str, *, without: set[str]) -> list[str]:
    """The requirement specifiers in a requirements file, except those of the named packages."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and re.split(r"[=<>~!;\[ ]", line)[0] not in without]


def fingerprint(root: Path) -> str:
    """What an environment depends on: the requirement files, and where the project lies."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def new_enough(versions: dict[str, str | None]) -> bool:
    """Whether every package of OLDEST_IN_PLACE is there in a version the kernels run on."""
    for package, oldest in OLDEST_IN_PLACE.items():
        numbers = re.match(r"(\d+)\.(\d+)", versions.get(package) or "")
        if numbers is None or tuple(map(int, numbers.groups())) < oldest:
            return False
    return True


def versions_here() -> dict[str, str | None]:
    """The versions of torch and triton that the Python running this script has."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in OLDEST_IN_PLACE}


def complete() -> None:
    """Install what this Python lacks of what the chapters import; torch and triton must be there."""
    if not new_enough(versions_here()):
        has = " and ".join(
            f"{name} {version or '(missing)'}" for name, version in versions_here().items()
        )
        pins = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=set())
        pair = " ".join(pin for pin in pins if re.match("(torch|triton)==", pin))
        raise RuntimeError(
            f"This Python has {has}, and the book's kernels need torch 2.11 and triton 3.6 or newer. "
            f"On Linux, run %pip install {pair} in a cell and restart the notebook's kernel; "
            "book/setup.md says what to do on other systems."
        )
    missing = [name for name in IN_CHAPTERS if importlib.util.find_spec(name) is None]
    if missing:
        pins = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=set())
        wanted = [pin for pin in pins if pin.split("==")[0] in missing]
        print("Installing", *wanted, flush=True)
        if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted]).returncode:
            # Cells that do without them still run.
            print(f"pip could not install {', '.join(missing)}: check the network.", flush=True)
        importlib.invalidate_caches()


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def usable(venv: Path) -> bool:
    """Whether the environment's Python starts, is new enough and has pip."""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python_of(venv), "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def uses_torch_in_place(venv: Path) -> bool:
    """Whether `create` gave the environment the packages of the Python that made it."""
    return "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text("utf-8")


def create(venv: Path) -> None:
    """Make an empty environment, which sees this Python's own torch and triton if they will do."""
    if Path(sys.prefix).resolve() == venv.resolve():
        sys.exit("The active environment .venv is broken: run deactivate, then the command again.")
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"{sys.executable} cannot make virtual environments: install its venv package "
            "(on Debian and Ubuntu, apt install python3-venv), then run the command again."
        )
    in_place = new_enough(versions_here())
    options = ["--system-site-packages"] if in_place else []
    if subprocess.run([sys.executable, "-m", "venv", "--clear", *options, venv]).returncode:
        sys.exit(f"Could not make {venv}: the reason is above.")
    if in_place and sys.prefix != sys.base_prefix:
        # The option above means the packages of the base Python, not those of the environment
        # that this Python itself belongs to; so that one is named.
        places = sysconfig.get_paths("venv", {"base": str(venv), "platbase": str(venv)})
        outer = importlib.metadata.distribution("torch").locate_file("")
        Path(places["purelib"], "outer_environment.pth").write_text(f"{outer}\n", encoding="utf-8")


def install(venv: Path, what: str) -> None:
    in_place = uses_torch_in_place(venv)
    if in_place:
        print("Using the torch and triton that this machine has.", flush=True)
    leave_out = set(OLDEST_IN_PLACE) if what == "book" or in_place else set()
    wanted = requirements((ROOT / "requirements.txt").read_text("utf-8"), without=leave_out)
    pip = [python_of(venv), "-m", "pip", "--disable-pip-version-check", "install"]
    command = [*pip, "--constraint", ROOT / "constraints.txt", *wanted, "--editable", ROOT]
    if subprocess.run(command).returncode == 0:
        return
    hint = ""
    if sys.version_info >= (3, 14):
        hint = " The book is tested with Python 3.11 to 3.13, and this one is newer."
    sys.exit(
        "pip could not install what the book needs (its last lines are above): check the network, "
        f"then run the same command again to go on.{hint}"
    )


def set_up(venv: Path, what: str) -> None:
    stamp = venv / "attention-book.json"
    state = json.loads(stamp.read_text("utf-8")) if stamp.exists() else {}
    works = usable(venv)
    current = fingerprint(ROOT)
    if works and state.get("fingerprint") == current and state.get("has") in (what, "full"):
        return
    # A full environment stays full: its torch has to follow the pins as well.
    what = state.get("has", what) if what == "book" else what
    print(f"Setting up .venv ({EXPECTATION[what]}) …", flush=True)
    stamp.unlink(missing_ok=True)
    if not works:
        create(venv)
    install(venv, what)
    stamp.write_text(json.dumps({"fingerprint": current, "has": what}) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=sorted(EXPECTATION))
    what = parser.parse_args().what
    if what == "full" and sys.platform != "linux":
        sys.exit(
            "Triton, which the kernels need, runs on Linux only: make book builds the website, "
            "and book/setup.md says how to run the kernels on Colab or another machine."
        )
    try:
        set_up(ROOT / ".venv", what)
    except KeyboardInterrupt:
        sys.exit("Interrupted: run the same command again to go on.")


if __name__ == "__main__":
    main()
