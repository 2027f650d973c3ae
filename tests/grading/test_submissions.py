"""Collecting takes one plain file from whatever comes, follows and unpacks nothing, and loses nobody."""

import io
import json
import os
import struct
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest

from grading import submissions
from grading.assignment import AssignmentError
from tests.grading.conftest import ADD, DOUBLE

RIGHT = "def double(values):\n    return 2 * values\n"


def zipped(**files: bytes | str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def notebook(*cells: str) -> str:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    return nbformat.writes(made)


@pytest.fixture
def collect(tmp_path):
    source, target = tmp_path / "handed_in", tmp_path / "submissions"
    source.mkdir()

    def run(roster=(), found=DOUBLE, **files: bytes | str):
        for name, content in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        made = submissions.collect(found, source, target, list(roster))
        assert made == submissions.read(target)
        return {submission.student: submission for submission in made}

    run.source, run.target = source, target
    return run


def text_of(collect, student: str) -> str:
    return (collect.target / student / "solution.py").read_text("utf-8")


def test_files_notebooks_zips_and_folders(collect):
    found = collect(
        **{
            "ada.py": RIGHT,
            "bob.ipynb": notebook(RIGHT),
            "cy.zip": zipped(**{"work/solution.py": RIGHT}),
            "dee/solution.py": RIGHT,
            "eli/work.zip": zipped(**{"a.ipynb": notebook(RIGHT)}),
        }
    )
    assert list(found) == ["ada", "bob", "cy", "dee", "eli"]
    for student in found:
        assert not found[student].problem
        assert text_of(collect, student).strip() == RIGHT.strip()


@pytest.mark.parametrize("folder", ["", "handed in/"])
def test_one_zip_of_all(collect, tmp_path, folder):
    whole = tmp_path / "all.zip"
    files = {f"{folder}ada.py": RIGHT, f"{folder}bob/solution.py": RIGHT}
    whole.write_bytes(zipped(**files))
    found = submissions.collect(DOUBLE, whole, collect.target)
    assert [one.student for one in found] == ["ada", "bob"]
    assert text_of(collect, "bob") == RIGHT


def test_who_handed_in_nothing_is_in_the_list(collect):
    found = collect(["ada", "zoe"], **{"ada.py": RIGHT})
    assert found["zoe"].problem == "Nothing was handed in."
    assert not (collect.target / "zoe").exists()


def test_the_time_is_kept(collect):
    collect(**{"ada.py": RIGHT})
    os.utime(collect.source / "ada.py", (1.8e9, 1.8e9))
    expected = datetime.fromtimestamp(1.8e9, UTC).isoformat()
    assert collect()["ada"].submitted == expected


@pytest.mark.parametrize(
    "name",
    ["conftest.py", "sitecustomize.py", "usercustomize.py", "test_public.py", "test_hidden.py"],
)
def test_smuggled_files_are_left_out(collect, name):
    found = collect(**{"eve/solution.py": RIGHT, f"eve/{name}": "raise SystemExit"})
    assert sorted(path.name for path in (collect.target / "eve").iterdir()) == ["solution.py"]
    assert text_of(collect, "eve") == RIGHT
    assert found["eve"].notes == [f"eve/{name} is left out."]


def test_shadows_of_the_standard_library_and_settings_are_left_out(collect):
    names = ("torch.py", "json.py", "pytest.ini", "setup.cfg", "tox.ini", "pyproject.toml", "x.pth")
    collect(**{"eve/solution.py": RIGHT, **{f"eve/{name}": "x = 1\n" for name in names}})
    assert sorted(path.name for path in (collect.target / "eve").iterdir()) == ["solution.py"]
    assert text_of(collect, "eve") == RIGHT


def test_the_newest_of_several_files_is_graded(collect):
    collect(**{"ada/first.py": RIGHT, "ada/second.py": RIGHT + "# newer\n"})
    os.utime(collect.source / "ada/first.py", (1e9, 1e9))
    found = collect()
    assert "# newer" in text_of(collect, "ada")
    assert found["ada"].notes == ["Of 2 files ada/second.py is graded, as the newest."]


def test_a_file_with_the_name_asked_for_comes_before_a_newer_one(collect):
    collect(**{"ada/solution.py": RIGHT, "ada/notes.py": RIGHT + "# notes\n"})
    os.utime(collect.source / "ada/solution.py", (1e9, 1e9))
    found = collect()
    assert text_of(collect, "ada") == RIGHT
    assert found["ada"].notes == ["Of 2 files ada/solution.py is graded, for its name."]


def test_a_students_zip_does_not_say_when_it_was_handed_in(collect):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("solution.py", (2020, 1, 1, 0, 0, 0)), RIGHT)
    inner = data.getvalue()
    collect(**{"eve.zip": inner})
    os.utime(collect.source / "eve.zip", (1.8e9, 1.8e9))
    handed_in = datetime.fromtimestamp(1.8e9, UTC).isoformat()
    assert collect()["eve"].submitted == handed_in
    # In the zip of a whole class its own entry counts.
    whole = collect.source.parent / "class.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(zipfile.ZipInfo("eve.zip", (2026, 12, 20, 10, 0, 0)), inner)
        archive.writestr(zipfile.ZipInfo("ada.py", (2026, 12, 1, 10, 0, 0)), RIGHT)
    made = submissions.collect(DOUBLE, whole, collect.target, afresh=True)
    assert [one.submitted[:10] for one in made] == ["2026-12-01", "2026-12-20"]


def test_what_was_collected_before_stays(collect):
    collect(["ada", "bob", "eve"], **{"ada.py": RIGHT, "eve.py": RIGHT})
    for file in collect.source.iterdir():
        file.unlink()
    found = collect(**{"bob.py": RIGHT + "# late\n", "eve.py": b"\0"})
    assert text_of(collect, "ada") == text_of(collect, "eve") == RIGHT
    assert "# late" in text_of(collect, "bob")
    assert [one.problem for one in found.values()] == ["", "", ""]
    assert found["ada"].notes == found["bob"].notes == []
    assert found["eve"].notes == [
        "What was handed in after this cannot be used: eve.py is not text: it has NUL bytes."
    ]
    submissions.collect(DOUBLE, collect.source, collect.target, afresh=True)
    assert not (collect.target / "ada").exists()
    assert "NUL" in submissions.read(collect.target)[1].problem


def test_one_file_is_read_as_it_would_be_collected(tmp_path):
    (tmp_path / "mine.ipynb").write_text(notebook(RIGHT, "double(torch.ones(3))"))
    text = submissions.read_one(DOUBLE, tmp_path / "mine.ipynb")
    assert "def double" in text and "ones" not in text
    (tmp_path / "mine.zip").write_bytes(b"PK")
    with pytest.raises(AssignmentError, match=r"mine\.zip is neither a \.py nor an \.ipynb file"):
        submissions.read_one(DOUBLE, tmp_path / "mine.zip")


# Links, devices, names.


def test_links_are_not_followed(collect, tmp_path):
    (tmp_path / "secret.py").write_text(RIGHT)
    (collect.source / "eve.py").symlink_to(tmp_path / "secret.py")
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "solution.py").write_text(RIGHT)
    (collect.source / "eva").symlink_to(folder)
    found = collect()
    assert found["eve"].problem == "eve.py is a link, which is not followed."
    assert found["eva"].problem
    assert [path.name for path in collect.target.iterdir()] == ["submissions.json"]


def test_devices_and_pipes_are_not_opened(collect):
    os.mkfifo(collect.source / "eve.py")
    assert collect()["eve"].problem == "eve.py is not a plain file."


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("=cmd|' /C calc'!A0", "_cmd"),
        ("@SUM(1)", "_SUM_1_"),
        ("<script>alert(1)</script>", None),
        ("..", "_"),
        ("a\tb", "a_b"),
        ("é" * 200, None),
        ("caf\u0065\u0301", "café"),
    ],
)
def test_a_students_name_is_fit_for_a_path_and_a_table(name, student):
    clean = submissions._clean_name(name)
    assert student is None or clean.startswith(student)
    assert 0 < len(clean) <= 80 and clean[0] not in "=+-@." and not set(clean) & set("/\\<>\t'\"|")


def test_students_whose_names_come_to_the_same_stay_two(collect):
    found = collect(**{"a b.py": RIGHT, "a_b.py": RIGHT + "# two\n", "a_b.zip": b"no zip"})
    assert list(found) == ["a_b", "a_b_2"]
    assert {text_of(collect, student) for student in found} == {RIGHT, RIGHT + "# two\n"}


def test_paths_in_a_zip_go_nowhere(collect):
    names = ("../../out.py", "/etc/out.py", "C:\\out.py", "..\\..\\out.py")
    for number, name in enumerate(names):
        collect(**{f"eve{number}.zip": zipped(**{name: RIGHT})})
    assert {path.name for path in collect.target.iterdir()} == {
        "submissions.json",
        *(f"eve{number}" for number in range(len(names))),
    }
    assert not list(collect.source.parent.rglob("out.py"))


def test_a_link_in_a_zip_is_not_followed(collect):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        link = zipfile.ZipInfo("solution.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    found = collect(**{"eve.zip": data.getvalue()})
    assert found["eve"].problem == "solution.py is a link, which is not followed."


def test_an_encrypted_zip_is_named(collect):
    data = bytearray(zipped(**{"solution.py": RIGHT}))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(mark) + place
        data[at] |= 1
    assert "is encrypted" in collect(**{"eve.zip": bytes(data)})["eve"].problem


def test_a_zip_bomb_is_read_to_its_limit_only(collect):
    bomb = zipped(**{"solution.py": b" " * (64 << 20)})
    assert len(bomb) < 1 << 17
    found = collect(**{"eve.zip": bomb})
    assert found["eve"].problem == "solution.py is larger than 1 MB."


def test_a_zip_that_lies_about_sizes(collect):
    data = bytearray(zipped(**{"solution.py": b" " * (64 << 20)}))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + place, 10)
    assert collect(**{"eve.zip": bytes(data)})["eve"].problem


def test_a_zip_with_too_many_files(collect):
    files = {f"{number}.txt": "" for number in range(submissions.ENTRIES_LIMIT + 1)}
    assert "2001 files" in collect(**{"eve.zip": zipped(**files)})["eve"].problem


@pytest.mark.parametrize("damage", ["no zip", "cut off", "wrong checksum"])
def test_a_damaged_zip_is_named(collect, damage):
    data = zipped(**{"solution.py": RIGHT * 50})
    if damage == "no zip":
        data = b"Rar!\x1a\x07"
    elif damage == "cut off":
        data = data[: len(data) // 2]
    else:
        at = data.index(b"PK\x03\x04") + 45
        data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    assert collect(**{"eve.zip": data})["eve"].problem


def test_zips_within_zips_are_not_opened(collect):
    inner = zipped(**{"solution.py": RIGHT})
    found = collect(**{"eve.zip": zipped(**{"inner.zip": inner})})
    assert found["eve"].problem == "There is no .py or .ipynb file, but .zip."


def test_another_kind_of_file_is_named(collect):
    assert "but .pdf" in collect(**{"eve.pdf": "%PDF"})["eve"].problem


# Encodings.


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (RIGHT.encode("utf-16"), "was in utf-16"),
        (b"\xef\xbb\xbf" + RIGHT.encode(), ""),
        (RIGHT.replace("\n", "\r\n").encode(), ""),
        (b"# coding: latin-1\n# caf\xe9\n" + RIGHT.encode(), "was in iso-8859-1"),
        (b"# caf\xe9\n" + RIGHT.encode(), "was read as Latin-1"),
        (b"# coding: no-such\n" + RIGHT.encode(), "was read as Latin-1"),
    ],
    ids=["utf-16", "mark", "lines", "latin-1", "undeclared", "unknown"],
)
def test_every_encoding_becomes_utf_8(collect, data, note):
    found = collect(**{"ada.py": data})
    text = text_of(collect, "ada")
    assert text.endswith(RIGHT) and "\ufeff" not in text
    compile(text.encode("utf-8"), "solution.py", "exec")
    assert note in "".join(found["ada"].notes)
    assert bool(found["ada"].notes) == bool(note)


def test_what_is_no_text_is_named(collect):
    assert "NUL bytes" in collect(**{"eve.py": b"\0" * 100})["eve"].problem
    assert "larger than 1 MB" in collect(**{"eve.py": b"#" * (2 << 20)})["eve"].problem


def test_text_that_reads_otherwise_than_it_runs_is_noted(collect):
    found = collect(**{"eve.py": f"# \u202e\n{RIGHT}"})
    assert "reverse the direction" in found["eve"].notes[0]


# Notebooks.


def test_of_a_notebook_the_functions_are_kept_and_what_was_tried_is_not(collect):
    cells = (
        "import torch\nimport exercises\nimport triton\nimport triton.language as tl",
        "%matplotlib inline\n!rm -rf /\nBLOCK = 64\nUNUSED = print('tried')",
        "@triton.jit\ndef add_kernel(x):\n    pass  # old",
        "@triton.jit\ndef add_kernel(x):\n    tl.store(x, BLOCK)",
        "def add(left, right):\n    add_kernel[(1,)](left)\n    return left",
        "exercises.check('add', add)\nwhile True: pass",
        "%%bash\ndef add(): pass",
        "this is no Python",
    )
    found = collect(found=ADD, **{"ada.ipynb": notebook(*cells)})
    assert not found["ada"].problem
    assert text_of(collect, "ada") == (
        "import torch\n\nimport triton\n\nimport triton.language as tl\n\nBLOCK = 64\n\n"
        "@triton.jit\ndef add_kernel(x):\n    tl.store(x, BLOCK)\n\n"
        "def add(left, right):\n    add_kernel[(1,)](left)\n    return left\n"
    )


def test_a_function_that_does_not_parse_is_shown_to_its_author(collect):
    collect(**{"ada.ipynb": notebook("x = 1", "def double(values):\n    return 2 *")})
    assert text_of(collect, "ada") == "def double(values):\n    return 2 *"


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        json.dumps({"nbformat": 99, "cells": 3}),
        json.dumps(
            {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": 3}]}
        ),
        "[" * 10**6,
        notebook("x = 1"),
        notebook(),
    ],
    ids=["text", "list", "version", "cells", "deep", "nothing defined", "empty"],
)
def test_a_hostile_notebook_is_named(collect, text):
    assert "eve.ipynb" in collect(**{"eve.ipynb": text})["eve"].problem


def test_a_notebook_that_is_too_large_is_named(collect, monkeypatch):
    monkeypatch.setattr(submissions, "NOTEBOOK_LIMIT", 1000)
    found = collect(**{"eve.ipynb": notebook("#" * 2000)})
    assert "is larger" in found["eve"].problem


@pytest.mark.parametrize("name", ["nowhere", "file.py"])
def test_a_source_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / "file.py").write_text(RIGHT)
    with pytest.raises(AssignmentError, match="neither a folder nor a zip"):
        submissions.collect(DOUBLE, tmp_path / name, tmp_path / "out")


def test_nothing_collected_is_said(tmp_path):
    with pytest.raises(AssignmentError, match="run grading collect first"):
        submissions.read(Path(tmp_path, "submissions"))
