"""The figure's arithmetic against the same model in Python, over every state it can show."""

import itertools
import math

import pytest

from figures._gpus import datasheet_gpus
from figures.life_of_scores import LifeOfScores


def attention_cost(n, d, dtype, heads, gpu):
    """Bytes, FLOPs, seconds and held bytes of each kernel, and of one kernel without S and P."""
    element = {"fp32": 4, "fp16": 2, "bf16": 2}[dtype]
    rows, scores = n * d * element * heads, n * n * element * heads
    flops = 2 * n * n * d * heads
    rate = (gpu["tflops"][dtype] or gpu["tflops"]["fp32"]) * 1e12

    def kernel(moved, arithmetic, held):
        seconds = max(moved / (gpu["bandwidth_tbs"] * 1e12), arithmetic / rate)
        return {"bytes": moved, "flops": arithmetic, "seconds": seconds, "heldBytes": held}

    return [
        kernel(2 * rows + scores, flops, 3 * rows + scores),
        kernel(2 * scores, 0, 3 * rows + 2 * scores),
        kernel(scores + 2 * rows, flops, 4 * rows + scores),
        kernel(4 * rows, 2 * flops, 4 * rows),
    ]


def test_every_state_costs_what_python_says(in_node):
    traits = LifeOfScores.class_traits()
    states = list(
        itertools.product(
            traits["sequence_length"].values,
            traits["head_dim"].values,
            traits["dtype"].values,
            traits["batch_heads"].values,
            datasheet_gpus(),
        )
    )
    assert len(states) == 11 * 5 * 3 * 10 * len(datasheet_gpus())
    answers = in_node(
        "life_of_scores",
        """data.map(([sequence_length, head_dim, dtype, batch_heads, gpu]) => {
          const shape = { sequence_length, head_dim, dtype, batch_heads };
          const cost = figure.attentionCost(shape, gpu);
          const keep = ({ bytes, flops, seconds, heldBytes }) =>
            ({ bytes, flops, seconds, heldBytes });
          return { ...cost, kernels: cost.kernels.map(keep), onChip: keep(cost.onChip) };
        })""",
        states,
    )
    for state, answer in zip(states, answers, strict=True):
        *kernels, on_chip = attention_cost(*state)
        memory = state[-1]["memory_gb"] * 1e9
        assert answer["kernels"] == kernels and answer["onChip"] == on_chip, state
        assert answer["bytes"] == sum(kernel["bytes"] for kernel in kernels)
        assert answer["peak"] == max(kernel["heldBytes"] for kernel in kernels)
        assert math.isclose(answer["seconds"], sum(kernel["seconds"] for kernel in kernels))
        too_large = [str(i + 1) for i, kernel in enumerate(kernels) if kernel["heldBytes"] > memory]
        assert answer["firstTooLarge"] == (too_large[0] if too_large else None)


def test_s_and_p_are_all_traffic_but_the_inputs_and_output(in_node):
    shape = {"sequence_length": 4096, "head_dim": 64, "dtype": "fp16", "batch_heads": 16}
    fraction = in_node(
        "life_of_scores",
        "figure.attentionCost(data[0], data[1]).scoreFraction",
        [shape, datasheet_gpus()[0]],
    )
    assert fraction == 4 * 4096**2 / (4 * 4096**2 + 4 * 4096 * 64)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("formatBytes(512)", "512 B"),
        ("formatBytes(1000)", "1.00 kB"),
        ("formatBytes(1024)", "1.02 kB"),
        ("formatBytes(999_600)", "1.00 MB"),
        ("formatBytes(7.06e13)", "70.6 TB"),
        ("formatSeconds(0)", "0 s"),
        ("formatSeconds(2.5e-6)", "2.50 µs"),
        ("formatSeconds(0.0999)", "99.9 ms"),
        ("formatSeconds(1332)", "1,332 s"),
        ("formatFlops(1.1e12)", "1.10 TFLOP"),
        ("formatPercent(0.9996)", ">99.9%"),
        ("formatPercent(1)", "100.0%"),
        ("formatPercent(0.0001)", "<0.1%"),
        ("formatNumber(9.3)", "9.30"),
        ("formatNumber(4096)", "4,096"),
        ("ticks(17, 4)", [0, 5, 10, 15]),
    ],
)
def test_numbers_are_said_correctly(in_node, call, text):
    assert in_node("life_of_scores", f"figure.{call}") == text


def measured(**changes):
    gpu = {
        "name": "My GPU",
        "bandwidth_tbs": 1.5,
        "tflops": {"fp32": 10, "fp16": 80, "bf16": None},
        "memory_gb": 12,
        "source": "measured here",
    }
    return gpu | changes


def test_measured_gpus_come_first_and_are_shown():
    figure = LifeOfScores(gpus=[measured()])
    assert figure.gpu == "My GPU" and figure.gpus[0] == measured()
    assert [gpu["name"] for gpu in figure.gpus[1:]] == [gpu["name"] for gpu in datasheet_gpus()]


def test_a_measured_gpu_replaces_the_datasheet_of_the_same_name():
    figure = LifeOfScores(gpus=[measured(name="H200")], gpu="T4")
    assert figure.gpu == "T4"
    assert [gpu["source"] for gpu in figure.gpus if gpu["name"] == "H200"] == ["measured here"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequence_length": 1000}, "sequence_length.*128.*1000"),
        ({"head_dim": 80}, "head_dim.*16.*80"),
        ({"dtype": "fp8"}, "dtype.*fp32.*fp8"),
        ({"gpu": "Abacus"}, "T4, L4.*Abacus"),
        ({"heads": 4}, "no option 'heads'.*batch_heads"),
        ({"gpus": [{"name": "x"}]}, "keys.*bandwidth_tbs.*got"),
        ({"gpus": [measured(memory_gb=0)]}, "My GPU: memory_gb must be a number above 0; got 0"),
        ({"gpus": [measured(bandwidth_tbs=float("nan"))]}, "bandwidth_tbs .*got nan"),
        ({"gpus": [measured(tflops={"fp32": 1})]}, "tflops.*bf16.*got"),
        ({"gpus": [measured(tflops={"fp32": None, "fp16": 1, "bf16": 1})]}, "fp32 must be.*None"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        LifeOfScores(**options)
    assert "\n" not in str(caught.value)
