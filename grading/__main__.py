"""Grading the exercises.

python -m grading check row_softmax my_file.py        the public tests on a file
python -m grading release row_softmax FOLDER          make a class's assignment
python -m grading collect FOLDER SUBMISSIONS          take in a folder or zip of submissions
python -m grading grade FOLDER -j 4                   judge them; goes on where it was interrupted
python -m grading grade FOLDER --slurm                judge them on a cluster
python -m grading regrade FOLDER [STUDENT ...]        judge again with the recorded seed
python -m grading export FOLDER                       gradebooks, feedback, and a page to look at
python -m grading serve-report FOLDER                 show what was exported in a browser
python -m grading gradescope FOLDER --out FILE.zip    an autograder to upload to Gradescope
python -m grading github FOLDER --out TEMPLATE        a repository for students on GitHub
"""

import argparse
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import tqdm

from grading import (
    assignment,
    course,
    github,
    gradebook,
    gradescope,
    judge,
    release,
    report,
    serve_report,
    submissions,
)
from grading.assignment import AssignmentError
from grading.box import OFFICIAL, TIERS, BoxError, best_tier
from grading.grade import grade, out_of_date, regrade, results, settings


def check(arguments: argparse.Namespace) -> int:
    if not arguments.file.is_file():
        raise AssignmentError(f"{arguments.file} is not a file.")
    found = assignment.find(arguments.exercise)
    tier = arguments.tier or best_tier()
    if tier not in OFFICIAL:
        print("Practice mode: this machine has no box, so your code runs with your own rights.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "solution.py")
        file.write_text(submissions.read_one(found, arguments.file.resolve()), "utf-8")
        made = judge.judge(found, file, seed=course.fresh_seed(), tier=tier, hidden=False)
    data = made.data()
    if arguments.junit:
        gradebook.write_junit(arguments.junit, {arguments.file.stem: data})
    if arguments.summary:
        with open(arguments.summary, "a", encoding="utf-8") as file:
            file.write(github.summary(found.title, data))
    return 0 if tell(made) else 1


def tell(made: judge.Report) -> bool:
    """Print one line a test, or one for all if all fail alike, and the sum; tell whether all passed."""
    results = made.results
    alike = {(result.state, result.message) for result in results}
    if len(alike) == 1 and results[0].state != judge.PASSED:
        print(f"✗ every test: {results[0].message}")
        for line in results[0].lines:
            print(f"    {line}")
    else:
        for result in results:
            mark = "✓" if result.state == judge.PASSED else "✗"
            reason = f": {result.message}" if result.message else ""
            print(f"{mark} {result.title}{reason}")
            for line in result.lines if result.state == judge.CRASHED else []:
                print(f"    {line}")
    for flag in made.flags:
        print(f"! A person would look at this: {flag}.")
    passed = sum(result.state == judge.PASSED for result in results)
    score = "not settled" if made.score is None else f"{made.score:g}"
    print(f"{passed} of {len(results)} tests passed; {score} of {made.possible:g} points.")
    return passed == len(results)


def release_(arguments: argparse.Namespace) -> int:
    due = arguments.due
    made = release.release(
        assignment.find(arguments.exercise),
        arguments.folder,
        seed=arguments.class_seed,
        due=due.replace(tzinfo=UTC) if due and due.tzinfo is None else due,
        late_per_day=arguments.late_per_day,
        late_days=arguments.late_days,
    )
    print((made.folder / "assignment.toml").read_text("utf-8").split("\n")[0].removeprefix("# "))
    print(f"Give students {made.folder / 'handout'}; keep the rest.")
    return 0


def collect(arguments: argparse.Namespace) -> int:
    made = course.open_course(arguments.folder)
    roster = arguments.roster.read_text("utf-8").split("\n") if arguments.roster else []
    names = [name.strip() for name in roster if name.strip()]
    found = submissions.collect(
        made.assignment, arguments.source, made.submissions, names, afresh=arguments.afresh
    )
    for submission in found:
        for note in [submission.problem, *submission.notes]:
            if note:
                print(f"{submission.student}: {note}")
    usable = sum(not submission.problem for submission in found)
    print(f"{len(found)} students, {usable} with a file to grade.")
    return 0


def grade_(arguments: argparse.Namespace) -> int:
    made = course.open_course(arguments.folder)
    run_all = on_slurm(made, arguments)
    # A machine from which jobs are submitted needs no box: the nodes do.
    tier = arguments.tier or (TIERS[0] if arguments.slurm else best_tier())
    run = settings(made, tier=tier, seed=arguments.seed)
    if not run["official"]:
        print("Practice mode: this machine has no box. These results are not official.")
    before, waiting = results(made), len(out_of_date(made))
    total = len(submissions.read(made.submissions))
    with tqdm.tqdm(total=total, unit="submission", disable=None) as bar:
        done = grade(
            made,
            tier=tier,
            jobs=arguments.jobs or 1,
            progress=lambda student: bar.update(),
            run_all=run_all,
        )
    for student, one in done.items():
        old = before.get(student, one)["score"]
        if old != one["score"]:
            print(f"{student}: {old} before, {one['score']} now")
    weaker = [student for student, report in done.items() if report["tier"] != tier]
    if weaker:
        print(f"Judged in a weaker tier, which is all that the node has: {', '.join(weaker)}.")
    faults = sum(report["score"] is None for report in done.values())
    flagged = sum(bool(report["flags"]) for report in done.values())
    print(
        f"{len(done)} graded, {waiting} of them now, in the tier {tier}, seed {run['seed']}; "
        f"{faults} not settled, {flagged} to be looked at."
    )
    return 0


def on_slurm(made: course.Course, arguments: argparse.Namespace) -> Callable | None:
    """What judges on a cluster; None if that is not wanted."""
    asked = {name: getattr(arguments, name) for name in _FOR_SLURM}
    if not arguments.slurm:
        for name, value in asked.items():
            if value is not None:
                raise AssignmentError(f"--{name} is for a cluster: give --slurm, too.")
        return None
    from grading import slurm  # here alone, so that nothing else needs submitit

    parameters = slurm.resources(
        made.assignment,
        jobs=arguments.jobs or slurm.JOBS,
        minutes=arguments.time,
        gigabytes=arguments.memory,
        cpus=arguments.cpus or 1,
        gpus=arguments.gpus,
        partition=arguments.partition,
        options=dict(arguments.sbatch or ()),
    )
    return slurm.on_slurm(made, parameters)


def regrade_(arguments: argparse.Namespace) -> int:
    made = course.open_course(arguments.folder)
    changed = regrade(made, arguments.students, jobs=arguments.jobs)
    for student, before, after in changed:
        print(f"{student}: {before} before, {after} now")
    print(f"{len(changed)} changed.")
    return 0


def export(arguments: argparse.Namespace) -> int:
    made = course.open_course(arguments.folder)
    for file in [*gradebook.export(made), report.write(made)]:
        print(file)
    if old := out_of_date(made):
        print(
            f"Results are missing, or older than the submission or the tests: {', '.join(old)}. "
            "Run grade, then export again."
        )
    return 0


def serve_report_(arguments: argparse.Namespace) -> int:
    serve_report.serve(course.open_course(arguments.folder), arguments.port)
    return 0


def gradescope_(arguments: argparse.Namespace) -> int:
    made = course.open_course(arguments.folder)
    gradescope.pack(made, arguments.out, hidden=arguments.hidden, minutes=arguments.minutes)
    print(f"Upload {arguments.out} to Gradescope, and keep it: the hidden tests are in it.")
    return 0


def github_(arguments: argparse.Namespace) -> int:
    github.template(course.open_course(arguments.folder), arguments.out)
    print(f"{arguments.out} is the repository for students: commit it, and make it a template.")
    return 0


_FOR_SLURM = ("partition", "time", "memory", "cpus", "gpus", "sbatch")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is wanted; got {text!r}")
    return int(text)


def gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number of gigabytes is wanted; got {text!r}")
    return number


def sbatch_option(text: str) -> tuple[str, str | bool]:
    name, given, value = text.partition("=")
    if not re.fullmatch("[a-z][a-z-]*", name):
        raise argparse.ArgumentTypeError(
            f"an option of sbatch without its dashes is wanted, as in account=cs336; got {text!r}"
        )
    return name, value if given else True


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535; got {text!r}")
    return int(text)


def due_date(text: str) -> datetime:
    """A point in time; of a day alone its last second."""
    moment = datetime.fromisoformat(text)
    return (
        moment if len(text) > len("2027-01-31") else moment.replace(hour=23, minute=59, second=59)
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m grading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)

    def command(name: str, function, *positional: tuple[str, dict]) -> argparse.ArgumentParser:
        one = commands.add_parser(name)
        one.set_defaults(run=function)
        for argument, options in positional:
            one.add_argument(argument, **options)
        return one

    folder = ("folder", {"type": Path, "metavar": "FOLDER"})
    exercise = ("exercise", {"metavar": "EXERCISE"})
    one = command("check", check, exercise, ("file", {"type": Path, "metavar": "FILE"}))
    one.add_argument("--tier", choices=TIERS)
    one.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit")
    one.add_argument("--summary", type=Path, metavar="FILE", help="append a table in Markdown")
    one = command("release", release_, exercise, folder)
    one.add_argument("--class-seed", type=int, help="chooses the variant; drawn if not given")
    one.add_argument("--due", type=due_date, help="such as 2027-01-31T23:59 (UTC)")
    one.add_argument(
        "--late-per-day", type=float, default=0.0, help="share of the points a day costs"
    )
    one.add_argument("--late-days", type=int, default=0, help="after so many days nothing counts")
    one = command("collect", collect, folder, ("source", {"type": Path, "metavar": "SUBMISSIONS"}))
    one.add_argument("--roster", type=Path, help="a file with one student a line")
    one.add_argument(
        "--afresh", action="store_true", help="forget what was collected before (else it stays)"
    )
    one = command("grade", grade_, folder)
    one.add_argument(
        "-j", "--jobs", type=count, help="submissions at a time: 1, or 100 on a cluster"
    )
    one.add_argument("--seed", type=int, help="of the tests; a fresh one if not given")
    one.add_argument("--tier", choices=TIERS)
    on = one.add_argument_group("on a cluster", "What is not given comes from the assignment.")
    on.add_argument("--slurm", action="store_true", help="judge in a job array of Slurm")
    on.add_argument("--partition")
    on.add_argument("--time", type=count, metavar="MINUTES", help="for a submission")
    on.add_argument("--memory", type=gigabytes, metavar="GB", help="for a submission")
    on.add_argument("--cpus", type=count, metavar="N", help="for a submission: 1")
    on.add_argument("--gpus", type=count, metavar="N", help="for a submission")
    on.add_argument(
        "--sbatch",
        type=sbatch_option,
        action="append",
        metavar="OPTION=VALUE",
        help="any other option of sbatch, as in account=cs336; can be repeated",
    )
    one = command("regrade", regrade_, folder)
    one.add_argument("students", nargs="*", metavar="STUDENT")
    one.add_argument("-j", "--jobs", type=int, default=1, help="submissions at a time")
    command("export", export, folder)
    one = command("serve-report", serve_report_, folder)
    one.add_argument("--port", type=port_number, default=8000, help="0 takes a free one")
    one = command("gradescope", gradescope_, folder)
    one.add_argument("--out", type=Path, required=True, metavar="FILE.zip")
    one.add_argument(
        "--hidden",
        choices=gradescope.HIDDEN,
        default=gradescope.HIDDEN[0],
        help="when students see the results of hidden tests",
    )
    one.add_argument(
        "--minutes",
        type=int,
        default=gradescope.MINUTES,
        help="the timeout of the assignment on Gradescope",
    )
    one = command("github", github_, folder)
    one.add_argument("--out", type=Path, required=True, metavar="TEMPLATE")
    return made


def main() -> None:
    arguments = parser().parse_args()
    # Before a test imports Triton: kernels are interpreted, here and in the box.
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        sys.exit(arguments.run(arguments))
    except (AssignmentError, BoxError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
