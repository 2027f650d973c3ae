"""The folder of one assignment of one class, from release to gradebook.

assignment.toml     which exercise, the class's seed, when it is due, what lateness costs
exercise/           the exercise as this class has it, with its hidden tests: for instructors
handout/            what students get
submissions/        what was collected, one folder a student
run.json            the seed, the tier and the versions of the grading
results/            one report a student
feedback/           what each student gets back, and the gradebooks, beside
"""

import json
import secrets
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from grading.assignment import Assignment, AssignmentError, find


@dataclass(frozen=True)
class LateRule:
    """What lateness costs: a share of the points for each day begun, up to so many days."""

    due: datetime | None = None
    per_day: float = 0.0
    days: int = 0

    def late_days(self, submitted: str) -> int:
        """Days begun since it was due; 0 if it is in time, or if nothing is due."""
        if self.due is None or not submitted:
            return 0
        late = datetime.fromisoformat(submitted) - self.due
        return max(0, -(-late // timedelta(days=1)))

    def final(self, score: float | None, submitted: str) -> float | None:
        """The score that counts."""
        late = self.late_days(submitted)
        if score is None or late == 0:
            return score
        if late > self.days:
            return 0.0
        return round(score * max(0.0, 1 - self.per_day * late), 2)


@dataclass(frozen=True)
class Course:
    """One assignment of one class."""

    folder: Path
    assignment: Assignment
    seed: int
    late: LateRule

    @property
    def submissions(self) -> Path:
        return self.folder / "submissions"

    @property
    def results(self) -> Path:
        return self.folder / "results"


def open_course(folder: Path) -> Course:
    """The course in a folder that ``grading release`` made."""
    file = folder / "assignment.toml"
    if not file.is_file():
        raise AssignmentError(
            f"{folder} has no assignment.toml: make the folder with python -m grading release."
        )
    try:
        data = tomllib.loads(file.read_text("utf-8"))
        due = data.get("due")
        if due is not None and due.tzinfo is None:
            due = due.replace(tzinfo=UTC)
        rule = LateRule(due, float(data.get("late_per_day", 0.0)), int(data.get("late_days", 0)))
        return Course(folder, find(str(folder / "exercise")), int(data["seed"]), rule)
    except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise AssignmentError(f"{file} cannot be read: {error}.") from error


def fresh_seed() -> int:
    return secrets.randbits(48)


def write_json(file: Path, data: object) -> None:
    """Write a file whole or not at all: an interruption leaves the old one."""
    # Of a name of its own: on a cluster, a task believed to be lost may write at the same time.
    temporary = file.with_suffix(f".{secrets.token_hex(4)}.part")
    temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), "utf-8")
    temporary.replace(file)
