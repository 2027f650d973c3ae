"""Records: the only home of a measured number.

A record is ``benchmarks/results/<gpu>/<experiment>.json``::

    {"environment": {gpu, driver, torch, triton, cuda, python, commit, dirty, date, command},
     "rows": [{...}, ...]}

Text, tables and plots read from it; nothing is typed by hand.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REFERENCE_GPU = "nvidia-h200"
"""The GPU whose records the book's text speaks of."""


@dataclass(frozen=True)
class Record:
    """Measured rows and the environment they were measured in."""

    environment: dict
    rows: list[dict]

    def where(self, **equal) -> list[dict]:
        """The rows whose fields equal the given ones."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in equal.items())]

    def one(self, **equal) -> dict:
        """The single row whose fields equal the given ones.

        Raises:
            LookupError: there is none, or more than one.
        """
        rows = self.where(**equal)
        if len(rows) != 1:
            raise LookupError(f"{len(rows)} rows have {equal}, expected exactly 1")
        return rows[0]

    @property
    def stamp(self) -> str:
        """One line for a caption: GPU, versions and date."""
        e = self.environment
        return f"{e['gpu']}, torch {e['torch']}, Triton {e['triton']}, {e['date'][:10]}"


def environment() -> dict:
    """What a measurement depends on: GPU, driver, versions, commit, date, command line."""
    return {
        "gpu": _gpu_name(),
        "driver": _driver(),
        "torch": metadata.version("torch"),
        "triton": metadata.version("triton"),
        "cuda": _cuda(),
        "python": platform.python_version(),
        "commit": os.environ.get("ATTENTION_BOOK_COMMIT") or _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *_command()]),
    }


def save(experiment: str, rows: list[dict], results: Path = RESULTS) -> Path:
    """Write a record for the GPU of this machine and return where it is."""
    facts = environment()
    path = results / slug(facts["gpu"]) / f"{experiment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = f'{{"environment": {json.dumps(facts, indent=2)},\n "rows": [\n  {lines}\n ]}}\n'
    # Written aside and moved, so that an interrupted run never leaves half a record.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def load(experiment: str, gpu: str | None = None, results: Path = RESULTS) -> Record:
    """Read a record: of the given GPU, else of this machine's if there is one, else the book's.

    Raises:
        FileNotFoundError: no such record; the message lists those there are.
    """
    folders = [gpu] if gpu else [slug(_gpu_name()), REFERENCE_GPU]
    for folder in folders:
        path = results / folder / f"{experiment}.json"
        if path.exists():
            return Record(**json.loads(path.read_text(encoding="utf-8")))
    known = sorted(str(p.relative_to(results)) for p in results.rglob("*.json"))
    raise FileNotFoundError(
        f"no record {experiment!r} for {' or '.join(folders)}; "
        f"there are: {', '.join(known) or 'none'}"
    )


def slug(gpu: str) -> str:
    """A GPU's name as a folder's: ``"NVIDIA H200"`` is ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _cuda() -> str:
    import torch

    return torch.version.cuda or "none"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.splitlines()[0].strip()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _dirty() -> bool:
    told = os.environ.get("ATTENTION_BOOK_DIRTY")
    if told is not None:
        return told == "1"
    return _git("status", "--porcelain") != ""


def _command() -> list[str]:
    """The command line, with a module's name in place of its file's path."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return [*program, *sys.argv[1:]]
