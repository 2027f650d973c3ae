"""What is asked of Nsight Compute, and what is read from its table."""

import json
import sys

import pytest

from benchmarks import flash3_profile
from instruments.io_model import AttentionShape

TIME = "gpu__time_duration.sum"
HEAD = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'


def table(*launches):
    lines = [
        f'"{number}","{name}","{counter}","unit","{value}"\n'
        for number, (name, counts) in enumerate(launches)
        for counter, value in counts.items()
    ]
    return HEAD + "".join(lines)


def nsight_compute(monkeypatch, folder, listed, printed):
    """A program ``ncu`` that lists these counters, keeps its command, and prints this table."""
    (folder / "listed").write_text(listed)
    (folder / "printed").write_text(printed)
    program = folder / "ncu"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--query-metrics*) cat {folder}/listed;;\n'
        f'*) echo "$@" > {folder}/asked; echo "==PROF== Connected"; cat {folder}/printed;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "asked"


SHAPE = AttentionShape(16384, 16384, 128, "float16", 1, 16)
FLOPS = 4 * 16 * 16384 * 16384 * 128
PRINTED = table(
    ("fill", {TIME: "2,000"}),
    ("flash3_kernel", {TIME: "4,000,000", "lts__throughput" + flash3_profile.OF_PEAK: "62.5"}),
    ("flash3_kernel", {TIME: "2,000,000", "lts__throughput" + flash3_profile.OF_PEAK: "n/a"}),
    ("prepare", {TIME: "3,000"}),
    ("device_kernel", {TIME: "5,000,000"}),
    ("device_kernel", {TIME: "2,500,000"}),
)


def test_rows_are_the_longest_launches_in_the_order_of_the_calls():
    rows = flash3_profile.rows_of(PRINTED, ["shipped", "fa3"], SHAPE)
    assert [(row["contestant"], row["causal"]) for row in rows] == [
        *(("shipped", False), ("shipped", True), ("fa3", False), ("fa3", True))
    ]
    assert [row["launched"] for row in rows] == ["flash3_kernel"] * 2 + ["device_kernel"] * 2
    assert [row["ms"] for row in rows] == pytest.approx([4.0, 2.0, 5.0, 2.5])
    assert [row["l2_pct"] for row in rows] == [62.5, None, None, None]
    for row in rows:
        flops = FLOPS / 2 if row["causal"] else FLOPS
        assert row["tflops"] == pytest.approx(1e-9 * flops / row["ms"], abs=1e-4)
        assert flash3_profile.COUNTERS.keys() <= row.keys()
    json.dumps(rows)


def test_a_launch_too_few_is_named():
    with pytest.raises(RuntimeError, match="fewer launches than the 8 calls: fill, flash3_kernel"):
        flash3_profile.rows_of(PRINTED, ["shipped", "fa3", "cudnn", "flash2"], SHAPE)


def test_the_second_spelling_counts_where_the_first_is_missing():
    first, second = flash3_profile.COUNTERS["tensor_pct"][1:]
    found = []
    for counts in ({first: "70", second: "60"}, {second: "60"}, {first: "n/a", second: "50"}):
        launches = [("a", {TIME: "2000", **counts}), ("a", {TIME: "1000"})]
        found.append(flash3_profile.rows_of(table(*launches), ["cudnn"], SHAPE)[0]["tensor_pct"])
    assert found == [70.0, 60.0, 50.0]


def test_stalls_are_shares_and_the_largest_comes_first():
    held = {"selected": 1.0, "gmma": 6.0, "wait": 3.0, "membar": 0.0}
    counted = {flash3_profile.STALL.format(reason): warps for reason, warps in held.items()}
    shares = flash3_profile.stalls(counted)
    assert list(shares.items()) == [("gmma", 0.6), ("wait", 0.3), ("selected", 0.1)]
    assert flash3_profile.stalls({}) == {}


def test_only_counters_that_are_listed_are_asked_for(monkeypatch, tmp_path):
    stall = flash3_profile.STALL.format("gmma").partition(".")[0]
    listed = f"lts__throughput   Throughput  L2\n{stall}  Ratio\ngpu__time_duration  Counter  ns\n"
    asked = nsight_compute(monkeypatch, tmp_path, listed, PRINTED)
    rows = flash3_profile.profile(["shipped", "fa3"], 128)
    assert len(rows) == 4 and rows[0]["heads"] == 16 and rows[0]["n"] == 16384
    words = asked.read_text().split()
    wanted = words[words.index("--metrics") + 1].split(",")
    assert sorted(wanted) == sorted(
        [TIME, "lts__throughput" + flash3_profile.OF_PEAK, flash3_profile.STALL.format("gmma")]
    )
    assert words[-6:] == ["--profiled", "--head-dim", "128", "--contestants", "shipped", "fa3"]


def test_an_ncu_that_lists_nothing_is_asked_for_all(monkeypatch, tmp_path):
    nsight_compute(monkeypatch, tmp_path, "", PRINTED)
    names = flash3_profile.counters_here()
    spellings = [name for _, *each in flash3_profile.COUNTERS.values() for name in each]
    assert set(spellings) <= set(names)
    assert len(names) == len(set(names)) == len(spellings) + len(flash3_profile.STALLS)


def test_what_ncu_says_of_a_failure_is_passed_on(monkeypatch, tmp_path):
    nsight_compute(monkeypatch, tmp_path, "", "==ERROR== no right to read counters\n")
    with pytest.raises(RuntimeError, match="no right to read counters"):
        flash3_profile.profile(["shipped"], 128)


def test_without_ncu_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["flash3_profile", "--experiment", "x"])
    with pytest.raises(SystemExit, match=r"^ncu \(Nsight Compute\) is not on the PATH"):
        flash3_profile.main()
