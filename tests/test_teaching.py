"""The course pages: what they name is there."""

import re

import pytest

from scripts.environment import ROOT

SYLLABUS = (ROOT / "book/syllabus.md").read_text("utf-8")
TEACHING = (ROOT / "book/teaching.md").read_text("utf-8")
EXERCISES = {path.parent.name for path in (ROOT / "exercises").glob("*/exercise.toml")}


def test_the_syllabus_has_every_exercise_with_its_hours_and_hands_it_in():
    table = re.findall(r"^\| `(\w+)` \|.*\| [\d–]+ \|$", SYLLABUS, re.M)
    assert sorted(table) == sorted(EXERCISES)
    ten_weeks = SYLLABUS.split("## Ten weeks")[1].split("## Four weeks")[0]
    assert set(re.findall(r"`(\w+)`", ten_weeks)) >= EXERCISES


def test_both_courses_read_every_chapter():
    chapters = {path.stem for path in (ROOT / "book").glob("[0-9][0-9]_*.md")}
    for course in SYLLABUS.split("\n## ")[1:]:
        assert set(re.findall(r"\((\d\d_\w+)\.ipynb\)", course)) == chapters


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"python -m grading (\w[\w-]*)", TEACHING)))
)
def test_the_guide_names_commands_that_there_are(command):
    from grading.__main__ import parser

    (commands,) = (action for action in parser()._actions if action.dest == "command")
    assert command in commands.choices


def test_the_guide_names_every_command():
    from grading.__main__ import parser

    (commands,) = (action for action in parser()._actions if action.dest == "command")
    named = re.findall(r"python -m grading (\w[\w-]*)", TEACHING)
    assert set(named) == commands.choices.keys()
