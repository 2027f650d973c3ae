"""The claims page: what the records say, how it is judged, and that the page says the same."""

import re
import subprocess
import sys

import pytest

from instruments.claims import EXPERIMENTS, Finding
from instruments.records import Record
from scripts.claims import (
    DATA,
    PAGE,
    ROOT,
    Claim,
    answer,
    has_test,
    judge,
    load,
    read_papers,
    summary,
    written,
)

PAPERS = read_papers(ROOT / DATA)
CLAIMS = [claim for paper in PAPERS for claim in paper.claims]
RULE = {"quantity": "a ratio", "reproduced": 4.0, "in_part": 1.5}


def a_claim(**fields) -> Claim:
    return Claim("Fig. 1", "Faster", "5×", 3, **fields)


def attention_row(n, causal, ms, d=64):
    return {"kernel": "flash1", "dtype": "float16", "d": d, "n": n, "causal": causal, "ms": ms}


def over_eager_row(n, ratio, d=64, causal=False):
    return {"n": n, "d": d, "causal": causal, "speedup": {"eager": ratio}}


def dram_row(kernel, read, written):
    return {"kernel": kernel, "read_bytes": int(read), "written_bytes": int(written)}


def few_heads_row(kernel, batch, over_fa2):
    problem = {"dtype": "float16", "batch": batch, "heads": 32, "n": 16384 // batch, "d": 64}
    return {"kernel": kernel, "causal": False, "speedup": {"fa2": over_fa2}} | problem


def softmax_row(kernel, columns, ms):
    return {"kernel": kernel, "dtype": "float32", "rows": 1, "columns": columns, "ms": ms}


FIG2_LEFT = [
    {"kernel": kernel, "causal": causal, "ms": ms}
    for causal, factor in [(False, 1), (True, 9)]
    for kernel, ms in [("naive", 12.0), ("flash1_printed", 3.0 * factor), ("flash1", 1.0)]
]
FIG2_LEFT_DRAM = [
    *(dram_row("naive", 10e9, 3e9), dram_row("naive", 10e9, 7e9), dram_row("naive", 10e9, 0)),
    *(dram_row("flash1_printed", 3e9, 2e9), dram_row("flash1", 1e9, 1e9)),
]
MEMORY = [
    {"contestant": "eager", "n": 4096, "peak_bytes": int(17.024e9)},
    {"contestant": "flash1", "n": 4096, "peak_bytes": int(0.8512e9)},
    {"contestant": "flash1", "n": 2**15, "peak_bytes": 8},
    {"contestant": "flash1", "n": 2**16, "peak_bytes": 20},
]


def flash2_row(d, causal, tflops, kernel="flash2"):
    """A row of chapter 5's sweep at 16 384 tokens."""
    problem = {"kernel": kernel, "dtype": "float16", "n": 2**14, "d": d, "causal": causal}
    return problem | {"tflops": tflops}


def training_row(model, n, over_eager):
    """A row of the training sweep."""
    return {"model": model, "attention": "flash2", "n": n, "speedup": {"eager": over_eager}}


def flash3_row(d, n, causal, tflops, over_fa2=1.0):
    """A row of chapter 6's sweep."""
    problem = {"kernel": "flash3", "dtype": "float16", "n": n, "d": d, "causal": causal}
    return problem | {"tflops": tflops, "speedup": {"fa2": over_fa2}}


FLASH3 = [
    *(flash3_row(128, 2**14, False, 324.0, 1.25), flash3_row(128, 2**14, True, 370.0, 1.5)),
    *(flash3_row(256, 2**14, False, 567.0, 2.0), flash3_row(256, 2**10, True, 592.0, 1.75)),
    flash3_row(128, 2**12, False, 600.0, 1.0),
]
ABLATION = [
    {"design": design, "n": 8448, "d": 128, "causal": False, "tflops": tflops, "of_full": of_full}
    for design, tflops, of_full in [
        *(("full", 600.0, 1.0), ("no_overlap", 490.0, 0.8), ("no_producer", 310.0, 0.5)),
        *(("producer", 250.0, 0.4), ("turns_first", 370.0, 0.6)),
    ]
]
# Another mask and another shape are other rows.
ABLATION += [row | {"causal": True, "of_full": 9.0} for row in ABLATION]
ABLATION += [row | {"n": 16384, "d": 64, "of_full": 9.0} for row in ABLATION]


FP8_ERRORS = [
    {"contestant": name, "distribution": distribution, "n": n, "d": d, "rmse": rmse}
    for name, distribution, n, d, rmse in [
        ("fp8", "outliers", 8192, 128, 8e-3),
        ("per_tensor", "outliers", 8192, 128, 2.4e-2),
        ("no_block_scales", "outliers", 8192, 128, 1e-2),
        ("no_rotation", "outliers", 8192, 128, 2e-2),
        # Of other problems.
        ("fp8", "gaussian", 8192, 128, 1.0),
        ("per_tensor", "outliers", 1024, 128, 1.0),
        ("no_rotation", "outliers", 8192, 64, 1.0),
    ]
]
WASTE = [
    {"workload": workload, "system": system, "tokens": tokens, "running": running}
    for workload, system, tokens, running in [
        *(("sharegpt", "max", 0.2, 6.96), ("sharegpt", "pow2", 0.25, 10.0)),
        *(("sharegpt", "oracle", 0.4, 12.0), ("sharegpt", "paged", 0.9, 30.0)),
        *(("alpaca", "oracle", 0.1, 1.0), ("alpaca", "paged", 1.0, 99.0)),
    ]
]
SHARING = [
    {"workload": workload, "method": method, "parallel": parallel, "saved": saved} | paper
    for workload, method, parallel, saved, paper in [
        ("alpaca", "sampling", 2, 0.06, {"paper_saved": 0.05}),
        ("alpaca", "sampling", 4, 0.07, {}),
        ("alpaca", "sampling", 6, 0.08, {"paper_saved": 0.1}),
        ("alpaca", "beam", 2, 0.375, {"paper_saved": 0.25}),
        ("sharegpt", "beam", 2, 0.1, {"paper_saved": 0.5}),
    ]
]


def served_row(system, rate, latency, **scenario):
    return {"system": system, "rate": rate, "latency": latency} | scenario


SHAREGPT = {"scenario": "sampling", "workload": "sharegpt"}
SERVED = [
    *(served_row("paged", rate, latency, **SHAREGPT) for rate, latency in [(4, 0.01), (8, 0.03)]),
    *(served_row("oracle", rate, latency, **SHAREGPT) for rate, latency in [(2, 0.01), (4, 0.03)]),
    *(served_row("max", rate, latency, **SHAREGPT) for rate, latency in [(1, 0.01), (2, 0.03)]),
    served_row("paged", 99, 0.01, scenario="sampling", workload="alpaca"),
    *(
        served_row(system, rate, 0.02, scenario="prefix", prefix=prefix)
        for system, prefix, rate in [
            *(("paged", 80, 3.34), ("oracle", 80, 1.0)),
            *(("paged", 341, 3.58), ("oracle", 341, 2.0)),
        ]
    ),
]
BLOCK_SIZES = [
    {"scenario": scenario, "workload": workload, "block_size": size, "latency": latency} | how
    for scenario, workload, size, latency, how in [
        *(("block_size", "sharegpt", size, 1.0, {}) for size in (8, 16, 64)),
        ("block_size", "sharegpt", 1, 2.0, {}),
        *(("block_size", "alpaca", 16, 1.25, {}), ("block_size", "alpaca", 32, 1.0, {})),
        *(
            ("preemption", "sharegpt", size, latency, {"preemption": how})
            for size, how, latency in [
                *((16, "swap", 4.0), (32, "swap", 1.0), (64, "swap", 0.5), (1, "swap", 99.0)),
                *((16, "recompute", 1.0), (32, "recompute", 1.0), (64, "recompute", 1.0)),
                (1, "recompute", 1.0),
            ]
        ),
        ("preemption", "alpaca", 16, 99.0, {"preemption": "swap"}),
    ]
]
MADE_UP = [
    (
        "passes_over_a_row",
        [softmax_row("three_pass", 1, 3.0), softmax_row("two_pass", 1, 2.0)]
        + [softmax_row("three_pass", 2, 2.0), softmax_row("two_pass", 2, 2.5)],
        Finding(1.5, "0.80–1.50×"),
    ),
    ("gpt2_traffic", FIG2_LEFT_DRAM, Finding(20.0, "40 → 2 GB (20.0×)")),
    ("gpt2_traffic_as_printed", FIG2_LEFT_DRAM, Finding(8.0, "40 → 5 GB (8.0×)")),
    ("gpt2_time", FIG2_LEFT, Finding(12.0, "12 → 1 ms (12.0×)")),
    ("gpt2_time_as_printed", FIG2_LEFT, Finding(4.0, "12 → 3 ms (4.0×)")),
    (
        "block_size",
        [{"block_n": n, "block_m": m, "ms": ms} for n, m, ms in [(16, 16, 7.0), (16, 32, 6.0)]]
        + [
            {"block_n": n, "block_m": 32, "ms": ms} for n, ms in [(64, 3.0), (128, 2.0), (256, 4.0)]
        ],
        Finding(1.5, "3.0× from 16 to 128; 1.5× from 64"),
    ),
    (
        "sparse_fraction",
        [
            {"n": 4096, "fraction": 0.5, "dense_ratio": 2.0},
            {"n": 4096, "fraction": 0.125, "dense_ratio": 4.0},
            {"n": 4096, "fraction": 0.0625, "dense_ratio": 12.0},
            {"n": 4096, "fraction": 0.03125, "dense_ratio": 8.0},
            {"n": 16384, "fraction": 0.25, "dense_ratio": 1.0},
            {"n": 16384, "fraction": 0.0625, "dense_ratio": 1.0},
        ],
        # The share of 1/16, better than that of 1/8, is in neither figure.
        Finding(
            0.5,
            "s × speedup: 0.50–1.00, and 0.25 at 1/32; N 16 384: 0.25–0.25, and 0.06 at 1/16",
        ),
    ),
    (
        "speed_over_eager",
        [
            over_eager_row(512, 3.0),
            over_eager_row(1024, 2.0),
            over_eager_row(2048, None),
            over_eager_row(512, 30.0, causal=True),
            over_eager_row(512, 30.0, d=128),
        ],
        Finding(3.0, "2.0–3.0×"),
    ),
    (
        "range_over_eager",
        [
            over_eager_row(512, 3.0),
            over_eager_row(1024, None, d=128),
            over_eager_row(512, 12.0, causal=True),
            over_eager_row(512, 2.5, d=128),
        ],
        Finding(2.5, "2.5–12.0×"),
    ),
    ("memory_over_eager", MEMORY, Finding(20.0, "17 024 → 851 MB (20.0×)")),
    ("memory_growth", MEMORY, Finding(0.8, "2.50× for 2 N")),
    (
        "causal_skip",
        [attention_row(512, False, 9.0), attention_row(512, True, 1.0)]
        + [attention_row(1024, causal, ms) for causal, ms in [(False, 6.0), (True, 3.0)]]
        + [attention_row(1024, causal, ms, d=128) for causal, ms in [(False, 6.0), (True, 4.0)]],
        Finding(1.5, "1.50–2.00×"),
    ),
    (
        "few_heads",
        [
            few_heads_row(kernel, batch, over_fa2)
            for kernel, batch, over_fa2 in [
                *(("flash1_printed", 16, 0.5), ("flash1_printed", 1, 0.05)),
                *(("flash1", 16, 1.0), ("flash1", 1, 0.5)),
            ]
        ],
        Finding(5.0, "2.0× at 512 heads, 10.0× at 32 heads"),
    ),
    (
        "cost_outside_tensor_cores",
        [{"tflops": {"float16": 80.0, "float32": 5.0}}],
        Finding(16.0, "16.0×"),
    ),
    (
        "over_flash1",
        [
            {"kernel": kernel, "dtype": "float16", "n": n, "d": 64, "causal": False, "ms": ms}
            for kernel, n, ms in [
                *(("flash1", 512, 1.1), ("flash2", 512, 1.0)),
                *(("flash1", 1024, 3.0), ("flash2", 1024, 2.0)),
                *(("flash1", 2048, 8.0), ("flash2", 2048, 4.0)),
            ]
        ],
        Finding(1.5, "1.10–2.00×"),
    ),
    (
        "share_of_peak",
        [flash2_row(64, False, 494.7), flash2_row(128, True, 296.82)]
        + [flash2_row(64, True, 900.0) | {"n": 512}, flash2_row(64, True, 900.0, "flash1")],
        Finding(0.5, "30 %–50 %, forward"),
    ),
    (
        # One record stands for both directions here: 3.5 / (3.5 / rate) is the rate.
        "both_ways_d64",
        [flash2_row(64, False, 296.0), flash2_row(64, True, 142.0), flash2_row(128, True, 1.0)],
        Finding(0.5, "296, 142 TFLOP/s"),
    ),
    (
        "both_ways_d128",
        [flash2_row(128, False, 169.0), flash2_row(128, True, 328.0), flash2_row(64, True, 1.0)],
        Finding(0.5, "169, 328 TFLOP/s"),
    ),
    ("bert_training", [training_row("bert-large", 512, 1.25)], Finding(0.25, "25 %")),
    (
        "gpt2_training",
        [training_row("gpt2-small", n, over) for n, over in ((1024, 2.0), (8192, 6.0))],
        Finding(2.0, "2.0× at N 1024, 6.0× at N 8192"),
    ),
    (
        "long_range_training",
        [training_row("lra", n, over) for n, over in ((1024, 1.0), (2048, 2.0), (4096, 6.0))],
        Finding(3.0, "3.0× (1.0–6.0×)"),
    ),
    (
        "training_utilisation",
        [
            training_row("gpt-1.3b", 2048, 1.5) | {"mfu": 0.25, "of_gemm": 0.5, "tflops": 250.0},
            training_row("gpt-1.3b", 8192, 3.0) | {"mfu": 0.5, "of_gemm": 0.75, "tflops": 500.0},
            training_row("gpt2-small", 8192, 3.0) | {"mfu": 0.9, "of_gemm": 0.9, "tflops": 900.0},
        ],
        Finding(0.5, "500 TFLOP/s, 50 %; 75 % of a product's"),
    ),
    ("hopper_over_flash2", FLASH3, Finding(1.5, "1.0–2.0×, middle 1.50×")),
    ("hopper_d128", FLASH3, Finding(0.5, "324 TFLOP/s")),
    ("hopper_d256", FLASH3, Finding(0.75, "567 TFLOP/s")),
    ("hopper_best", FLASH3, Finding(600 / 740, "600 TFLOP/s")),
    # The ratio is that of the rounds, not of the medians that are shown.
    ("overlap_inside", ABLATION, Finding(1.25, "490 → 600 TFLOP/s (1.25×)")),
    ("specialization", ABLATION, Finding(2.0, "310 → 600 TFLOP/s (2.00×)")),
    ("taking_turns", ABLATION, Finding(1.5, "250 → 370 TFLOP/s (1.50×)")),
    (
        "error_with_outliers",
        [
            {"contestant": name, "dtype": dtype, "d": d, "rmse": rmse}
            for name, dtype, d, rmse in [
                *(("eager", "float16", 128, 3.2e-4), ("flash3", "float16", 128, 1.6e-4)),
                *(("eager", "float16", 64, 1.0), ("flash3", "float8_e4m3fn", 128, 1.0)),
            ]
        ],
        Finding(2.0, "3.2e-4 → 1.6e-4 (2.0×)"),
    ),
    (
        "fp8_best",
        [
            {"kernel": "fp8", "d": 128, "tflops": 600.0},
            {"kernel": "fp8", "d": 256, "tflops": 900.0},
            {"kernel": "flash3", "d": 256, "tflops": 1200.0},
        ],
        Finding(0.75, "900 TFLOP/s"),
    ),
    ("fp8_per_tensor", FP8_ERRORS, Finding(3.0, "2.4e-2 → 8.0e-3 (3.00×)")),
    ("fp8_without_block_scales", FP8_ERRORS, Finding(1.25, "1.0e-2 → 8.0e-3 (1.25×)")),
    ("fp8_without_rotation", FP8_ERRORS, Finding(2.5, "2.0e-2 → 8.0e-3 (2.50×)")),
    ("memory_that_holds_tokens", WASTE, Finding(2.25, "20.0, 25.0, 40.0; 90.0 %")),
    ("batched_requests", WASTE, Finding(2.5, "7.0, 10.0, 12.0; 30.0")),
    ("shared_by_sampling", SHARING, Finding(0.8, "6.0–8.0 %")),
    ("shared_by_beams", SHARING, Finding(1.5, "37.5–37.5 %")),
    ("served_over_oracle", SERVED, Finding(2.0, "2.00×")),
    ("served_over_max", SERVED, Finding(4.0, "4.00×")),
    ("served_with_a_prefix", SERVED, Finding(0.5, "3.34×, 1.79×")),
    ("best_block_sizes", BLOCK_SIZES, Finding(0.8, "8–64, 32–32")),
    (
        "swapping_and_recomputing",
        BLOCK_SIZES,
        Finding(0.25, "swapping takes 0.50–4.00× as long"),
    ),
    (
        "pages_cost",
        [
            {"kernel": "paged", "block_size": size, "speedup": {"contiguous": ratio}}
            for size, ratio in [(16, 1.0), (16, 0.8), (1, 0.5)]
        ],
        Finding(25.0, "0–25 %"),
    ),
]


@pytest.mark.parametrize(("name", "rows", "expected"), MADE_UP, ids=[name for name, *_ in MADE_UP])
def test_an_experiment_reduces_a_record_to_one_number(name, rows, expected):
    found = EXPERIMENTS[name](lambda record: Record({}, rows))
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.shown == expected.shown


def test_every_experiment_is_tried_here_and_used_by_a_claim():
    assert sorted(EXPERIMENTS) == sorted(name for name, *_ in MADE_UP)
    assert sorted(EXPERIMENTS) == sorted(c.experiment for c in CLAIMS if c.experiment)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.statement)
def test_a_claim_has_a_rule_exactly_if_it_has_an_experiment(claim):
    rule = (claim.quantity, claim.reproduced, claim.in_part)
    if claim.experiment:
        assert all(rule) and claim.in_part < claim.reproduced and not claim.tests
    else:
        assert rule == (None, None, None) and claim.limit is None and claim.paper is None


@pytest.mark.parametrize(
    ("value", "fields", "verdict", "reason"),
    [
        (4.0, {}, "reproduced", None),
        (4.0, {"limit": "forward only"}, "in part", "forward only"),
        (3.9, {}, "in part", "less than the paper's"),
        (3.9, {"limit": "forward only"}, "in part", "less than the paper's; forward only"),
        (3.9, {"why": "one program a head"}, "in part", "one program a head"),
        (1.4, {"limit": "forward only"}, "not reproduced", "less than the paper's"),
        (1.4, {"why": "one program a head"}, "not reproduced", "one program a head"),
    ],
)
def test_the_rule_decides(value, fields, verdict, reason):
    claim = a_claim(experiment="gpt2_time", **RULE, **fields)
    assert judge(claim, Finding(value, "")) == (verdict, reason)


def test_a_missing_record_means_not_yet():
    def missing(name):
        raise FileNotFoundError(name)

    given = answer(a_claim(experiment="gpt2_time", **RULE), ROOT, missing)
    assert (given.ours, given.verdict, given.reason) == ("not measured yet", "not yet", None)
    assert given.rule == "A ratio: reproduced from 4, in part from 1.5. Record `fig2_left`."


def test_a_formula_rests_on_tests_that_are_there():
    here = "tests/instruments/test_claims.py::test_the_rule_decides"
    given = answer(a_claim(tests=[here]), ROOT, load)
    assert given.verdict == "formula checked by test"
    assert given.rule.startswith("`test_the_rule_decides` asserts that")
    two = answer(a_claim(tests=[here, here]), ROOT, load)
    assert two.rule.startswith("`test_the_rule_decides` and `test_the_rule_decides` assert that")
    for gone in (here + "_not", "tests/no_such_file.py::test_the_rule_decides"):
        assert not has_test(ROOT, gone)
        with pytest.raises(SystemExit, match=f"names {gone}, and there is no such test"):
            answer(a_claim(tests=[here, gone]), ROOT, load)


def test_what_is_not_measurable_says_where_it_is_argued():
    given = answer(a_claim(measurable=False), ROOT, load)
    assert (given.verdict, given.reason) == ("not measurable", "argued in chapter 3")


def test_the_summary_counts_every_claim_and_proofs_apart():
    given = [answer(claim, ROOT, load) for claim in CLAIMS]
    numbers = [int(number) for number in re.findall(r"\d+", summary(given))]
    reproduced, measurable, in_part, not_reproduced, not_yet, checked, argued = numbers
    assert measurable == reproduced + in_part + not_reproduced + not_yet
    assert checked + argued == sum(claim.figure == "proof" for claim in CLAIMS) > 0
    assert measurable + checked + argued == len(CLAIMS)
    assert reproduced == sum(each.verdict == "reproduced" for each in given) > 0


def test_the_page_says_what_the_records_say():
    page = (ROOT / PAGE).read_text("utf-8")
    assert written(page, ROOT, load) == page, "run `python -m scripts.claims`"


def test_other_records_make_another_page():
    def other(name):
        if name != "ceilings":
            raise FileNotFoundError(name)
        return Record({}, [{"tflops": {"float16": 2.0, "float32": 1.0}}])

    page = written((ROOT / PAGE).read_text("utf-8"), ROOT, other)
    assert "| 2.0× | 0.12× | **not reproduced**: less than the paper's |" in page
    # What is written again is the same, and nothing of the old tables stays.
    assert written(page, ROOT, other) == page and "16.5×" not in page


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(SystemExit, match="has no place for milakov2018online"):
        written("# Claims\n", ROOT, load)


def test_the_page_is_written_without_pytorch():
    code = "import sys; sys.modules['torch'] = None; from scripts import claims; claims.main()"
    subprocess.run([sys.executable, "-c", code, "--check"], cwd=ROOT, check=True)
