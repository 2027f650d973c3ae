"""How tests are shared out among workers."""

import os
import re
import subprocess
import sys

import pytest

from scripts.environment import ROOT

pytest.importorskip("xdist")

from tests.scheduling import EARLY, TOGETHER, turn, work_unit


@pytest.mark.parametrize("files", TOGETHER + EARLY)
def test_what_is_named_is_there(files):
    assert (ROOT / files).is_dir() if files.endswith("/") else (ROOT / files).is_file()


def test_the_site_stays_together_and_other_tests_do_not():
    site = {work_unit(f"tests/site/test_{name}.py::test[a@b-c]") for name in ("pages", "front")}
    assert len(site) == 1
    alone = [f"tests/test_house.py::test_it[{case}]" for case in "ab"]
    assert [work_unit(name) for name in alone] == alone


def test_the_longest_come_first():
    names = ["tests/kernels/test_a.py", "tests/test_chapters.py", "tests/site/test_a.py"]
    names.append("tests/serving/test_server.py")
    assert sorted(names, key=turn) == names[::-1]


PLUGIN = """
from tests.scheduling import Scheduling, turn

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: turn(item.nodeid))

def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)
"""
PROBE = """
import pytest

@pytest.mark.parametrize("case", range(6))
def test_it(case):
    pass
"""


def test_a_worker_gets_whole_units(tmp_path):
    """With pytest and pytest-xdist as they are here: what they agree on has changed before."""
    (tmp_path / "conftest.py").write_text(PLUGIN, "utf-8")
    files = ["tests/test_alone.py", "tests/site/test_one.py", "tests/site/test_two.py"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(PROBE, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "-p", "no:cacheprovider"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    passed = re.findall(r"\[(gw\d)\] .*PASSED (\S+?)::", done.stdout)
    assert sorted(file for _, file in passed) == sorted(6 * files), done.stdout + done.stderr
    assert len({worker for worker, file in passed if "/site/" in file}) == 1, done.stdout
