"""The roofline figure's numbers against the book's own roofline and its model of bytes."""

import pytest

from figures.roofline import SIZES, Roofline
from instruments import io_model
from instruments.roofline import Ceilings

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}


def python_work(kernel, size, dtype):
    """Operations and bytes, from the chapters' formulas."""
    shape = io_model.AttentionShape(size, size, 64, DTYPES[dtype])
    matrix = size * size * WIDTH[dtype]
    return {
        "sum": (size**2, 3 * matrix),
        "softmax": (5 * size**2, 2 * matrix),
        "product": (2 * size**3, 3 * matrix),
        "standard": (shape.flops, io_model.total_bytes(io_model.naive_compulsory(shape))),
        "fused": (shape.flops, io_model.fused_compulsory(shape)),
    }[kernel]


def test_the_books_kernels_do_what_its_model_says(in_node):
    states = [
        {"kernel": kernel, "size": size, "dtype": dtype}
        for kernel in ("sum", "softmax", "standard", "product", "fused")
        for size in SIZES
        for dtype in DTYPES
    ]
    found = in_node("roofline", "data.map(figure.workOf)", states)
    for state, work in zip(states, found, strict=True):
        assert (work["flops"], work["bytes"]) == python_work(**state)


def test_the_limits_are_pythons(in_node):
    gpus = [gpu for gpu in Roofline().gpus]
    data = [
        {"gpu": gpu, "dtype": dtype, "flops": 2.0**flops, "bytes": 2.0**moved}
        for gpu in gpus
        for dtype in DTYPES
        for flops in (10, 23, 37, 46)
        for moved in (10, 19, 33)
    ]
    expression = "data.map((one) => figure.limits(one, one.gpu, one.dtype))"
    for one, found in zip(data, in_node("roofline", expression, data), strict=True):
        gpu, dtype, flops, moved = one["gpu"], one["dtype"], one["flops"], one["bytes"]
        if gpu["tflops"][dtype] is None:
            assert found is None
            continue
        ceilings = Ceilings(gpu["bandwidth_tbs"], gpu["tflops"])
        assert found["seconds"] == pytest.approx(1e-3 * ceilings.milliseconds(flops, moved, dtype))
        assert found["ridge"] == pytest.approx(ceilings.ridge(dtype))
        rate = 1e12 * ceilings.attainable_tflops(flops / moved, dtype)
        assert found["rate"] == pytest.approx(rate)
        assert found["intensity"] == flops / moved
        below = flops / moved < ceilings.ridge(dtype)
        assert found["limit"] == ("memory" if below else "arithmetic")


def test_the_readers_own_kernel_is_two_sliders(in_node):
    state = {"kernel": "own", "size": 128, "dtype": "fp16", "operations": 60, "moved": 51}
    work = in_node("roofline", "figure.workOf(data)", state)
    assert work == {"flops": 2**30, "bytes": pytest.approx(2**25.5)}
    steps = in_node(
        "roofline", "data.map((n) => figure.nearestStep(n, [20, 94]))", [2**30, 1, 1e40]
    )
    assert steps == [60, 20, 94]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "convolution"}, "kernel.*sum.*own.*convolution"),
        ({"size": 100}, "size.*128.*100"),
        ({"operations": 95}, "operations.*94"),
        ({"moved": 19}, "moved.*20"),
        ({"dtype": "fp8"}, "dtype.*fp32.*fp8"),
        ({"gpu": "abacus"}, "gpu is one of .*H200.*abacus"),
        ({"bytes": 20}, "no option 'bytes'.*moved"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        Roofline(**options)
    assert "\n" not in str(caught.value)
