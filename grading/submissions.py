"""Collecting: from whatever was handed in, one Python file a student, as plain UTF-8 text.

Nothing is executed, unpacked to disk or followed here. A submission is a ``.py`` or ``.ipynb``
file, a zip of these, or a folder, each named like the student; or one zip that holds all of them.
What cannot be used is not dropped: the student stays in the list, with a sentence that says why.
"""

import ast
import io
import json
import os
import re
import shutil
import stat
import tokenize
import unicodedata
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import nbformat

from grading.assignment import Assignment, AssignmentError

SOURCE_LIMIT = 1 << 20
NOTEBOOK_LIMIT = 20 << 20
ARCHIVE_LIMIT = 200 << 20
ENTRIES_LIMIT = 2000
_IGNORED = {"__MACOSX", "__pycache__", ".ipynb_checkpoints", ".DS_Store", "Thumbs.db"}
# Of a repository: what is in these is not the student's work (grading/github.py makes the last).
_IGNORED |= {".git", ".venv", ".grader"}
_NOT_SOLUTIONS = re.compile(r"(test_.*|.*_test|conftest|setup|sitecustomize|usercustomize)\.py")
_LIST = "submissions.json"
_KINDS = (".py", ".ipynb", ".zip")
# Marks that change the direction of writing, so that code reads otherwise than it runs.
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")


class Unusable(Exception):
    """Why a submission cannot be used, in one sentence."""


@dataclass
class Submission:
    """What a student handed in.

    Attributes:
        student: the name it is filed under.
        source: the file it came from.
        submitted: when that was last changed, in ISO format, UTC.
        problem: why there is no file to grade; empty if there is one.
        notes: what a person may want to know.
    """

    student: str
    source: str = ""
    submitted: str = ""
    problem: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Entry:
    """One file that was handed in: its path, when it was changed, and how to read it.

    ``submitted`` is when it was handed in: of what is in a student's own zip, the zip's time.
    """

    path: PurePosixPath
    size: int
    changed: float
    read: object
    problem: str = ""
    submitted: float = field(kw_only=True)


def collect(
    assignment: Assignment,
    source: Path,
    target: Path,
    roster: list[str] = (),
    *,
    afresh: bool = False,
) -> list[Submission]:
    """Put every student's file into ``target/<student>/solution.py``, and a list into ``target``.

    What was collected before stays, unless the same student handed in something usable now.

    Args:
        roster: the names of all students, if known; who handed in nothing is listed, too.
        afresh: forget what was collected before.

    Raises:
        AssignmentError: ``source`` is neither a folder nor a zip.
    """
    if source.is_dir():
        entries = list(_files_below(source))
    elif source.is_file() and zipfile.is_zipfile(source):
        try:
            members = list(_members(source.read_bytes(), source.stat().st_mtime))
            entries = _without_the_folder_of_all(members)
        except Unusable as error:
            raise AssignmentError(f"{source}: {error}") from error
    else:
        raise AssignmentError(f"{source} is neither a folder nor a zip file with submissions.")
    if afresh:
        shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    known = (target / _LIST).is_file()
    earlier = {one.student: one for one in read(target)} if known else {}
    found: dict[str, list[_Entry]] = {}
    names: dict[str, str] = {}
    for entry in entries:
        name = _student(entry.path)
        if name not in names:
            names[name] = _unlike(_clean_name(name), names.values())
        found.setdefault(names[name], []).append(entry)
    submissions = []
    for student in sorted({*found, *earlier, *map(_clean_name, roster)}):
        if student in earlier and student not in found:
            submissions.append(earlier[student])
            continue
        made = Submission(student)
        try:
            entry, text = _choose(assignment, found.get(student, []), made.notes)
            made.source = str(entry.path)
            made.submitted = datetime.fromtimestamp(entry.submitted, UTC).isoformat(
                timespec="seconds"
            )
            _write(target / student / "solution.py", text)
        except Unusable as error:
            if student in earlier and not earlier[student].problem:
                made = earlier[student]
                made.notes.append(f"What was handed in after this cannot be used: {error}")
            else:
                made.problem = str(error)
        submissions.append(made)
    data = [asdict(submission) for submission in submissions]
    _write(target / _LIST, json.dumps(data, indent=1, ensure_ascii=False))
    return submissions


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(text, "utf-8", newline="\n")
    unfinished.replace(file)


def read_one(assignment: Assignment, file: Path) -> str:
    """The Python text of one file, ``.py`` or ``.ipynb``.

    Raises:
        AssignmentError: it is neither, or cannot be read.
    """
    if file.suffix.lower() not in (".py", ".ipynb"):
        raise AssignmentError(f"{file} is neither a .py nor an .ipynb file.")
    information = file.stat()
    changed = information.st_mtime
    path = PurePosixPath(file.name)
    entry = _Entry(path, information.st_size, changed, _reader(file), submitted=changed)
    try:
        return _text(assignment, entry, [])
    except Unusable as error:
        raise AssignmentError(str(error)) from error


def read(target: Path) -> list[Submission]:
    """The list that :func:`collect` wrote."""
    file = target / _LIST
    if not file.is_file():
        raise AssignmentError(
            f"Nothing is collected in {target.parent}: run grading collect first."
        )
    return [Submission(**data) for data in json.loads(file.read_text("utf-8"))]


def _clean_name(name: str) -> str:
    """A student's name fit for a folder and a table."""
    name = unicodedata.normalize("NFC", name).strip()
    name = re.sub(r"[^\w.@+-]", "_", name).strip(".")[:80]
    # A table would take these for the beginning of a formula.
    return re.sub(r"^[-+@]", "_", name) or "_"


def _without_the_folder_of_all(entries: list[_Entry]) -> list[_Entry]:
    """Who zips a folder of submissions puts one more name before every path."""
    first = {entry.path.parts[0] for entry in entries}
    second = {entry.path.parts[1] for entry in entries if len(entry.path.parts) > 1}
    if len(first) > 1 or len(second) < 2 or any(len(entry.path.parts) < 2 for entry in entries):
        return entries
    return [replace(entry, path=PurePosixPath(*entry.path.parts[1:])) for entry in entries]


def _unlike(name: str, others: Iterable[str]) -> str:
    """The name, with a number if somebody else's came to the same."""
    number, made = 1, name
    while made in others:
        number += 1
        made = f"{name}_{number}"
    return made


def _student(path: PurePosixPath) -> str:
    """Whose file it is, as it was handed in."""
    first = path.parts[0]
    return PurePosixPath(first).stem if len(path.parts) == 1 else first


def _files_below(folder: Path) -> Iterator[_Entry]:
    """Every file, links and devices as problems; links are not followed."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _IGNORED)
        linked = [name for name in folders if Path(place, name).is_symlink()]
        for name in [*sorted(names), *linked]:
            if name in _IGNORED:
                continue
            file = Path(place, name)
            path = PurePosixPath(_printable(file.relative_to(folder).as_posix()))
            information = file.lstat()
            count += 1
            if count > 50 * ENTRIES_LIMIT:
                raise AssignmentError(f"{folder} has more than {50 * ENTRIES_LIMIT} files.")
            problem = ""
            if stat.S_ISLNK(information.st_mode):
                problem = "is a link, which is not followed"
            elif not stat.S_ISREG(information.st_mode):
                problem = "is not a plain file"
            read = _reader(file)
            changed = information.st_mtime
            yield _Entry(path, information.st_size, changed, read, problem, submitted=changed)


def _reader(file: Path):
    def read(limit: int) -> bytes:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as opened:
            return opened.read(limit + 1)

    return read


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _members(data: bytes, changed: float) -> Iterator[_Entry]:
    """The files in a zip, by names that are never used as paths."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise Unusable(f"The zip cannot be opened: {error}.") from error
    if len(members) > ENTRIES_LIMIT * 50:
        raise Unusable(f"The zip has {len(members)} files.")
    for member in members:
        path = PurePosixPath(_printable(member.filename.replace("\\", "/")))
        parts = [part for part in path.parts if part not in ("..", "/", ".") and ":" not in part]
        if member.is_dir() or not parts or _IGNORED & set(parts):
            continue
        problem = ""
        if stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link, which is not followed"
        elif member.flag_bits & 1:
            problem = "is encrypted"
        time = _zip_time(member, changed)
        yield _Entry(
            PurePosixPath(*parts),
            member.file_size,
            time,
            _member_reader(archive, member),
            problem,
            submitted=time,
        )


def _zip_time(member: zipfile.ZipInfo, default: float) -> float:
    try:
        return datetime(*member.date_time, tzinfo=UTC).timestamp()
    except ValueError:
        return default


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo):
    def read(limit: int) -> bytes:
        # Stops at the limit, whatever size the member says it has.
        with archive.open(member) as opened:
            return opened.read(limit + 1)

    return read


def _choose(assignment: Assignment, entries: list[_Entry], notes: list[str]) -> tuple[_Entry, str]:
    """The file to grade among those of one student, and its text."""
    if not entries:
        raise Unusable("Nothing was handed in.")
    opened: list[_Entry] = []
    reasons: list[str] = []
    for entry in entries:
        if entry.path.suffix.lower() == ".zip" and not entry.problem:
            try:
                members = list(_members(_limited(entry, ARCHIVE_LIMIT), entry.changed))
                if len(members) > ENTRIES_LIMIT:
                    raise Unusable(f"The zip has {len(members)} files.")
                # What a student's zip says of its own files decides nothing about being late.
                opened += [replace(member, submitted=entry.submitted) for member in members]
            except Unusable as error:
                reasons.append(str(error))
        else:
            opened.append(entry)
    texts: list[tuple[_Entry, str]] = []
    for entry in opened:
        if entry.path.suffix.lower() not in (".py", ".ipynb"):
            continue
        if _NOT_SOLUTIONS.fullmatch(entry.path.name):
            notes.append(f"{entry.path} is left out.")
            continue
        try:
            texts.append((entry, _text(assignment, entry, notes)))
        except Unusable as error:
            reasons.append(str(error))
    if not texts:
        others = ", ".join(sorted({e.path.suffix or e.path.name for e in entries}))[:100]
        raise Unusable(reasons[0] if reasons else f"There is no .py or .ipynb file, but {others}.")
    defining = [pair for pair in texts if _defines(pair[1], assignment.function)]
    candidates = defining or texts
    # One with the name that the exercise asks for; of several, or of none, the newest.
    names = [f"{assignment.name}.py", "solution.py"]
    best = max(
        candidates,
        key=lambda pair: (pair[0].path.name in names, pair[0].changed, str(pair[0].path)),
    )
    if len(candidates) > 1:
        why = "for its name" if best[0].path.name in names else "as the newest"
        notes.append(f"Of {len(candidates)} files {best[0].path} is graded, {why}.")
    if reasons:
        notes += reasons
    return best


def _limited(entry: _Entry, limit: int) -> bytes:
    if entry.problem:
        raise Unusable(f"{entry.path} {entry.problem}.")
    try:
        data = entry.read(limit)
    except Exception as error:  # whatever a damaged archive brings up
        raise Unusable(f"{entry.path} cannot be read: {type(error).__name__}.") from error
    if len(data) > limit:
        raise Unusable(f"{entry.path} is larger than {limit / 2**20:.0f} MB.")
    return data


def _text(assignment: Assignment, entry: _Entry, notes: list[str]) -> str:
    if entry.path.suffix.lower() == ".ipynb":
        return from_notebook(assignment, _limited(entry, NOTEBOOK_LIMIT), str(entry.path))
    data = _limited(entry, SOURCE_LIMIT)
    text = _decoded(data, str(entry.path), notes)
    if "\0" in text:
        raise Unusable(f"{entry.path} is not text: it has NUL bytes.")
    if _BIDIRECTIONAL.search(text):
        notes.append(f"{entry.path} has characters that reverse the direction of writing.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, name: str, notes: list[str]) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            notes.append(f"{name} was in {encoding}.")
            return data.decode(encoding, "replace")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError, ValueError):
        notes.append(f"{name} is in no encoding that it names, and was read as Latin-1.")
        text = data.decode("latin-1")
    else:
        if encoding not in ("utf-8", "utf-8-sig"):
            notes.append(f"{name} was in {encoding}.")
    # What is written back is UTF-8, whatever the file says of itself.
    lines = text.removeprefix("\ufeff").split("\n")
    for number, line in enumerate(lines[:2]):
        if re.match(r"^[ \t\f]*#.*?coding[:=]", line):
            lines[number] = line.replace("coding", "encoded")
    return "\n".join(lines)


def _defines(text: str, function: str) -> bool:
    return bool(re.search(rf"^\s*(async\s+)?def\s+{re.escape(function)}\b", text, re.MULTILINE))


def from_notebook(assignment: Assignment, data: bytes, name: str) -> str:
    """The part of a notebook that defines the exercise's function: what it tries out is left away.

    Kept are the imports that the exercise allows, functions, classes, and assignments whose names
    these use.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about what no student knows of
            notebook = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
        cells = [str(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    except RecursionError as error:
        raise Unusable(f"{name} is nested too deeply for a notebook.") from error
    except Exception as error:  # nbformat raises of all kinds
        raise Unusable(f"{name} is not a notebook: {type(error).__name__}.") from error
    pieces: list[tuple[ast.stmt, str]] = []
    for cell in cells:
        if len(cell) > SOURCE_LIMIT:
            raise Unusable(f"{name} has a cell larger than {SOURCE_LIMIT >> 20} MB.")
        text = _without_magic(cell)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            if _defines(text, assignment.function):
                return text  # the student should see what is wrong with it
            continue
        lines = text.splitlines(keepends=True)
        for node in tree.body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            pieces.append((node, "".join(lines[first - 1 : node.end_lineno]).rstrip()))
    kept = _needed(pieces, assignment.allowed_imports)
    if not any(isinstance(node, ast.FunctionDef) for node, _ in kept):
        raise Unusable(f"{name} defines no function.")
    return "\n\n".join(text for _, text in kept) + "\n"


# Cells that begin with these are Python, after their first line.
_PYTHON_CELLS = {"%%capture", "%%prun", "%%time", "%%timeit"}


def _without_magic(cell: str) -> str:
    lines = cell.lstrip().splitlines()
    if lines and lines[0].startswith("%%"):
        if lines[0].split()[0] not in _PYTHON_CELLS:
            return ""
        lines = lines[1:]
    return "\n".join("" if re.match(r"\s*[%!?]", line) else line for line in lines)


def _needed(pieces: list, allowed_imports: list[str]) -> list:
    last = {node.name: node for node, _ in pieces if hasattr(node, "name")}
    chosen: set[int] = set()
    for node, _ in pieces:
        if isinstance(node, ast.Import):
            if all(alias.name in allowed_imports for alias in node.names):
                chosen.add(id(node))
        elif isinstance(node, ast.ImportFrom):
            if node.module in allowed_imports:
                chosen.add(id(node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and last[node.name] is node:
            chosen.add(id(node))
    while True:
        used = {
            name.id
            for node, _ in pieces
            if id(node) in chosen
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)
        }
        more = {
            id(node)
            for node, _ in pieces
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and used & {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _stored(n)}
        }
        if more <= chosen:
            return [(node, text) for node, text in pieces if id(node) in chosen]
        chosen |= more


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)
