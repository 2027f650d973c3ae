"""Running test files alone: no plugin, configuration or conftest that happens to be installed or near."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import numpy
import pytest

_ARGUMENTS = [
    f"--config-file={os.devnull}",
    "--noconftest",
    "--import-mode=importlib",
    "--assert=plain",
    "--capture=no",
    *(
        f"-pno:{plugin}"
        for plugin in (
            "terminal",
            "cacheprovider",
            "faulthandler",
            "logging",
            "warnings",
            "threadexception",
            "unraisableexception",
        )
    ),
]
_ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}


def run(folder: Path, files: Iterable[Path], plugin: object) -> None:
    """Run an exercise's test files in this process, where one plugin sees what comes of them.

    Nothing of them stays in it: neither their modules nor the last error.
    """
    names = [str(file) for file in files]
    modules = set(sys.modules)
    try:
        # NumPy, under Triton's interpreter, warns of NaN and infinity; a GPU computes them in silence.
        with mock.patch.dict(os.environ, _ENVIRONMENT), numpy.errstate(all="ignore"):
            pytest.main([*_ARGUMENTS, f"--rootdir={folder}", *names], plugins=[plugin])
    finally:
        for name in set(sys.modules) - modules:
            if getattr(sys.modules[name], "__file__", None) in names:
                del sys.modules[name]
        # Where pytest keeps the last error for a debugger, and with it the learner's tensors.
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
