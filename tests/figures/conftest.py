"""Runs a figure's module in Node, where there is no page: its model is plain functions."""

import json
import shutil
import subprocess

import pytest

from figures._mount import module_source


@pytest.fixture
def in_node(tmp_path):
    """in_node("life_of_scores", "expression", data): the value of a JavaScript expression in which
    `figure` is the module and `data` is what was passed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")

    def run(module, expression, data=None):
        (tmp_path / "figure.mjs").write_text(module_source(module), "utf-8")
        (tmp_path / "data.json").write_text(json.dumps(data), "utf-8")
        (tmp_path / "run.mjs").write_text(
            'import * as figure from "./figure.mjs";\n'
            'import { readFileSync } from "node:fs";\n'
            'const data = JSON.parse(readFileSync("data.json", "utf-8"));\n'
            f"process.stdout.write(JSON.stringify({expression}));\n",
            "utf-8",
        )
        answer = subprocess.run(
            [node, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return run
