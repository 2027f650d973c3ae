"""The chapters' questions and measured sentences, and the map that is drawn of them."""

import re

import pytest

from instruments.records import Record
from scripts.chapters import Chapter, Measured, measured, read_chapters
from scripts.environment import ROOT
from scripts.headlines import HEADLINES
from scripts.sphinx_map import needs, source, tracks_beside

CHAPTERS = read_chapters(ROOT)


def forward(kernel, tflops, **speedup):
    return {"kernel": kernel, "tflops": tflops, "speedup": speedup}


def traffic(kernel, n, read, written):
    shape = {"batch": 2, "heads": 4, "d": 64, "n": n}
    return {"kernel": kernel, "read_bytes": read, "written_bytes": written} | shape


def decoding(ratio):
    return {"kernel": "paged", "speedup": {"contiguous": ratio}}


def error(contestant, rmse):
    problem = {"distribution": "outliers", "n": 8192, "d": 128}
    return {"contestant": contestant, "rmse": rmse} | problem


def served(system, rate):
    """Two rates; at the higher, a token takes 20 ms."""
    scenario = {"scenario": "sampling", "workload": "sharegpt", "system": system}
    return [scenario | {"rate": at, "latency": 0.02 * at / rate} for at in (rate / 2, rate)]


MADE_UP = {
    "gpu_and_triton": (
        [{"copy_tbs": 4.0, "tflops": {"float16": 800.0}}],
        "Float16 products run at 800 TFLOP/s and copies at 4.0 TB/s: 200 operations in the time of "
        "one byte.",
    ),
    "naive_attention": (
        # 2 · 4 heads, 16 384 rows of 64 numbers of 2 bytes, four tensors: 67 108 864 bytes.
        [traffic("naive", 1024, 1, 1), traffic("naive", 16384, 67_108_864 * 60, 0)]
        + [traffic("naive", 16384, 0, 67_108_864 * 40)],
        "At 16\N{NO-BREAK SPACE}384 tokens, three kernels move 100 times the bytes of $Q$, $K$, $V$ "
        "and $O$ together: 6.7 GB.",
    ),
    "online_softmax": (
        [
            {"kernel": kernel, "dtype": "float32", "rows": 1, "columns": columns, "ms": ms}
            for kernel, columns, ms in [
                *(("three_pass", 1, 3.0), ("two_pass", 1, 2.0)),
                *(("three_pass", 2, 4.0), ("two_pass", 2, 5.0)),
            ]
        ],
        "A softmax with two passes over its row has 0.80–1.50× the speed of one with three.",
    ),
    "tiling": (
        [traffic("naive", 1024, int(7e9), int(3e9)), traffic("flash1", 1024, int(2e9), 0)],
        "GPT-2 medium's attention, forward, moves fewer bytes to and from HBM: 10 → 2 GB (5.0×).",
    ),
    "io_analysis": (
        [
            {"n": n, "fraction": fraction, "dense_ratio": ratio}
            for n, fraction, ratio in [(4096, 0.125, 1.0), (8192, 0.5, 1.0)]
            + [(8192, 0.125, 7.0), (8192, 0.125, 6.0)]
        ],
        "At 8192 tokens, a mask that keeps one block in eight makes attention 6.5 times as fast.",
    ),
    "work_partitioning": (
        [forward("flash2", tflops, fa2=fa2, cudnn=0.5) for tflops, fa2 in [(1, 1), (3, 4), (2, 2)]]
        + [forward("flash1", 9.0, fa2=9.0, cudnn=9.0)],
        "The forward pass reaches 3 TFLOP/s; its speed is 2.00 times FlashAttention-2's and 0.50 "
        "times cuDNN's, the middle of 3 problems.",
    ),
    "warp_specialization": (
        [forward("flash3", 700.0, fa3=0.9, cudnn=0.8)],
        "The forward pass reaches 700 TFLOP/s; its speed is 0.90 times FlashAttention-3's and 0.80 "
        "times cuDNN's, the middle of 1 problems.",
    ),
    "fp8": (
        [forward("fp8", 1100.0, fa3_fp8=0.75), error("per_tensor", 0.3), error("fp8", 0.1)],
        "Quantizing included, the forward pass reaches 1100 TFLOP/s; its speed is 0.75 times "
        "FlashAttention-3's on inputs already in FP8, the middle of 1 problems. With outliers, one "
        "scale a tensor has 3.0 times the error.",
    ),
    "paged_memory": (
        [decoding(0.9), decoding(1.0), decoding(0.8)]
        + [*served("max", 2.0), *served("oracle", 4.0), *served("paged", 6.0)],
        "With pages a server takes 3.0 times the requests, at the same latency, of one that reserves "
        "the longest sequence, and 1.5 times those of one that knows all lengths (simulated clock). "
        "Decoding through block tables has 0.90 times the speed of contiguous memory, the middle of "
        "3 problems.",
    ),
}


@pytest.mark.parametrize("name", HEADLINES)
def test_a_sentence_says_what_its_record_says(name):
    rows, sentence = MADE_UP[name]
    assert HEADLINES[name](lambda record: Record({}, rows)) == sentence


def test_every_chapter_has_its_place_and_its_sentence():
    files = re.findall(r"file: (\d\d_\w+)\.ipynb", (ROOT / "_toc.yml").read_text("utf-8"))
    assert [chapter.file for chapter in CHAPTERS] == files
    assert [chapter.number for chapter in CHAPTERS] == list(range(len(files)))
    assert {chapter.name for chapter in CHAPTERS} == set(HEADLINES)
    for chapter in CHAPTERS:
        assert chapter.question.endswith("?")
        assert all(number < chapter.number for number in chapter.needs)
        assert chapter.leaves is None or chapter.leaves in chapter.needs


def test_of_a_chapter_without_its_record_nothing_is_claimed():
    def missing(name):
        raise FileNotFoundError(name)

    assert measured(CHAPTERS[3], missing) is None
    found = measured(CHAPTERS[3], lambda name: Record({}, MADE_UP["tiling"][0]))
    assert found == Measured(MADE_UP["tiling"][1], ("fig2_left_dram",))
    assert source(found) == "H200, record `fig2_left_dram`"


def test_a_book_without_the_list_has_no_map(tmp_path):
    assert read_chapters(tmp_path) == []


def test_the_tracks_of_a_map():
    made_up = [
        Chapter("00_a", "", []),
        Chapter("01_b", "", [0]),
        Chapter("02_c", "", [1], leaves=1),
        Chapter("03_d", "", [1]),
        Chapter("04_e", "", [3]),
        Chapter("05_f", "", [3], leaves=3),
    ]
    assert tracks_beside(made_up) == [
        ["line-starts"],
        ["side-starts"],
        ["side-ends"],
        ["side-starts"],
        ["line-ends", "side-passes"],
        ["line-ended", "side-ends"],
    ]


def test_what_a_chapter_builds_on_is_linked():
    primer, one, two = CHAPTERS[:3]
    assert needs([primer]) == f"builds on [the primer]({primer.file}.ipynb)"
    three = f"builds on [the primer]({primer.file}.ipynb), [chapter 1]({one.file}.ipynb) and "
    assert needs([primer, one, two]) == f"{three}[chapter 2]({two.file}.ipynb)"
