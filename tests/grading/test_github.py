"""The repository for students on GitHub, and what its workflow does."""

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import yaml
from check_jsonschema import main as check_jsonschema

from grading import __main__, github, judge, submissions
from grading.assignment import AssignmentError
from grading.release import release
from tests.grading.conftest import DOUBLE
from tests.test_repository_files import WORKFLOWS, actionlint

HALF = "def double(values):\n    return 2 * values + (len(values) == 5)\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    course = release(DOUBLE, folder / "course", seed=5)
    github.template(course, folder / "template")
    return folder / "template"


@pytest.fixture(scope="module")
def workflow(template):
    text = (template / ".github/workflows/grade.yml").read_text("utf-8")
    return yaml.load(text, yaml.BaseLoader)  # "on" stays a word


def test_students_get_what_they_need_and_no_more(template):
    files = {path.relative_to(template).as_posix() for path in template.rglob("*")}
    assert files >= {"README.md", "statement.md", "solution.py", ".gitignore"}
    assert files >= {".grader/exercise/test_public.py", ".grader/grading/inside/worker.py"}
    assert not {name for name in files if "hidden" in name or name.endswith("exercise/solution.py")}
    stub = (DOUBLE.folder / "stub.py").read_text("utf-8")
    assert (template / "solution.py").read_text("utf-8") == stub
    for name in ("README.md", ".github/workflows/grade.yml"):
        text = " ".join((template / name).read_text("utf-8").replace("#", "").split())
        assert "<<" not in text and re.search("graded by the course team|course team grades", text)


def test_the_template_goes_into_a_new_folder(template):
    with pytest.raises(AssignmentError, match="is not empty: name a new folder"):
        github.template(None, template)


def test_the_command_makes_the_template(template, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = tmp_path / "repository"
    arguments = ["grading", "github", str(template.parent / "course"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert not ended.value.code and capsys.readouterr().out.startswith(f"{out} is the repository")
    for file in template.rglob("*"):
        if file.is_file():
            assert (out / file.relative_to(template)).read_bytes() == file.read_bytes()


def test_the_workflow_is_of_the_form(workflow, template):
    file = template / ".github/workflows/grade.yml"
    assert actionlint(file) == []
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        with pytest.raises(SystemExit) as stop:
            check_jsonschema(["--builtin-schema", schema, str(file)])
        assert stop.value.code == 0
    assert workflow["on"].keys() == {"push", "pull_request", "workflow_dispatch"}
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    for step in job["steps"]:
        # Nothing that a push brings along, such as a branch's name, becomes part of a script.
        assert "${{" not in step.get("run", "")
        for name in re.findall(r"\.grader/[\w./]+", step.get("run", "")):
            assert (template / name).exists()
    assert job["steps"][0]["with"] == {"persist-credentials": "false"}


def test_its_actions_are_those_of_this_project(template):
    text = (template / ".github/workflows/grade.yml").read_text("utf-8")
    ours = "\n".join(file.read_text("utf-8") for file in WORKFLOWS)
    assert len(re.findall("uses:", text)) == 3
    assert set(re.findall(r"uses: (.*)", text)) <= set(re.findall(r"uses: (.*)", ours))


def test_the_workflow_grades_and_tells(workflow, template, tmp_path):
    """The step that runs the tests, run as GitHub would."""
    clone = shutil.copytree(template, tmp_path / "clone")
    (clone / "solution.py").write_text(HALF)
    (step,) = [s for s in workflow["jobs"]["public-tests"]["steps"] if "check" in s.get("run", "")]
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (programs / "python").chmod(0o755)
    environment = {
        **step["env"],
        "PATH": f"{programs}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    (tmp_path / "summary.md").write_text("Before.\n\n")
    answer = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stderr) == (1, "")
    assert answer.stdout.endswith("1 of 2 tests passed; 1 of 3 points.\n")
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert summary.startswith("Before.\n\n## Twice the number\n\n1 of 2 public tests passed: ")
    assert "| ❌ | small numbers | 0/2 | Each number must be twice what it was. |\n" in summary
    assert "| ✅ | inputs unchanged | 1/1 | passed |\n" in summary
    assert "any numbers" not in summary and "This is practice" in summary
    (suite,) = ElementTree.parse(clone / "junit.xml").getroot()
    counts = [suite.get(name) for name in ("name", "tests", "failures", "errors")]
    assert counts == ["solution", "2", "1", "0"]
    (kept,) = [s for s in workflow["jobs"]["public-tests"]["steps"] if "artifact" in str(s)]
    assert kept["with"]["path"] == "junit.xml" and kept["if"] == "always()"


def test_a_clone_is_collected_without_its_grader(template, tmp_path):
    clone = shutil.copytree(template, tmp_path / "clones/ada")
    (clone / "solution.py").write_text(HALF)
    os.utime(clone / "solution.py", (1e9, 1e9))  # the oldest of all
    (found,) = submissions.collect(DOUBLE, tmp_path / "clones", tmp_path / "submissions")
    assert (found.student, found.source, found.notes) == ("ada", "ada/solution.py", [])


def test_nothing_in_a_summary_is_markup():
    report = judge.fault(DOUBLE, {"seed": 1, "tier": "practice"}, "").data()
    report["results"][0] |= {
        "message": "a|b\n# <img src=x> [x](http://example.org) `c` *d* @ada &lt;",
        "lines": ["line 3: _x_ = ~~y~~"],
    }
    report["flags"] = ["it imports <b>"]
    text = github.summary("A title", report)
    row = next(line for line in text.splitlines() if "line 3" in line)
    assert row.count("|") == 5 and row.count("<") == 1 and "<br>" in row
    assert not set("[]`*_~@#") & set(re.sub(r"&#\d+;", "", row))
    assert "http://" not in text and "it imports &#60;b&#62;." in text
    assert "not settled of 1 points" in text


def test_plain_text_stays_readable():
    text = "The result[1, 2] is 3|4 & must be <5>; `x_y` *z*"
    assert html.unescape(github.plain(text)) == text
    assert github.plain(" one\n two ") == "one two"
