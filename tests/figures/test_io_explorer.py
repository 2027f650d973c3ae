"""The explorer's bytes against the IO model, which the kernels' counted bytes equal; exactly."""

import itertools

import pytest

from figures._gpus import OF_THE_CHIP, datasheet_gpus
from figures.io_explorer import IOExplorer
from instruments import io_model
from kernels.flash1 import sram_block_sizes
from tests.figures.test_life_of_scores import measured

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TENSOR_OF = {
    "query": "Q",
    "key": "K",
    "value": "V",
    "scores": "S",
    "probabilities": "P",
    "accumulator": "O",
    "output": "O",
    "running_max": "statistics",
    "running_sum": "statistics",
    "logsumexp": "statistics",
}
ALGORITHMS = ["standard", "printed", "swapped", "sparse"]


def by_tensor(buffers):
    parts = {}
    for (_, buffer), moved in buffers.items():
        tensor = TENSOR_OF[buffer]
        parts[tensor] = parts.get(tensor, 0) + moved.loaded + moved.stored
    return parts


def expected(options):
    """(bytes by tensor, FLOPs) of the four algorithms, and the tiles."""
    n, d = options["sequence_length"], options["head_dim"]
    shape = io_model.AttentionShape(n, n, d, DTYPES[options["dtype"]])
    block_m, block_n = options["block_m"], options["block_n"]
    if options["tiles"] == "rule":
        block_m, block_n = sram_block_sizes(1024 * options["sram_kib"], d, shape.element)
    swapped = by_tensor(io_model.swapped_requested(shape, block_m, block_n))
    visible = options["visible"]
    sparse = swapped | {tensor: swapped[tensor] * visible for tensor in "KV"}
    parts = [
        by_tensor(io_model.naive_compulsory(shape)),
        by_tensor(io_model.printed_requested(shape, block_n)),
        swapped,
        sparse,
    ]
    flops = [shape.flops] * 3 + [shape.flops * visible]
    return list(zip(parts, flops, strict=True)), (block_m, block_n)


def values(name):
    return IOExplorer.class_traits()[name].values


def all_options():
    """Every N, d, dtype and every choice of tiles; the fractions take turns."""
    sizes = [("rule", kib, 128, 64) for kib in values("sram_kib")]
    sizes += [
        ("chosen", 100, *blocks)
        for blocks in itertools.product(values("block_m"), values("block_n"))
    ]
    fractions = itertools.cycle(values("visible"))
    names = ["sequence_length", "head_dim", "dtype", "tiles", "sram_kib", "block_m", "block_n"]
    shapes = itertools.product(values("sequence_length"), values("head_dim"), DTYPES)
    return [
        dict(zip(names, [*shape, *size], strict=True), visible=next(fractions))
        for shape, size in itertools.product(shapes, sizes)
    ]


def test_every_byte_is_the_io_models(in_node):
    cases = all_options()
    assert len(cases) == 11 * 3 * 3 * (13 + 25)
    answers = in_node("io_explorer", "data.map(figure.ioModel)", cases)
    for options, answer in zip(cases, answers, strict=True):
        algorithms, tile = expected(options)
        assert (answer["tile"]["blockM"], answer["tile"]["blockN"]) == tile, options
        for shown, (parts, flops) in zip(answer["algorithms"], algorithms, strict=True):
            assert shown["parts"] == parts, (options, shown["name"])
            assert shown["bytes"] == sum(parts.values())
            assert shown["flops"] == flops
            assert shown["intensity"] == flops / sum(parts.values())
        n, d = options["sequence_length"], options["head_dim"]
        shape = io_model.AttentionShape(n, n, d, DTYPES[options["dtype"]])
        assert answer["minimum"] == io_model.fused_compulsory(shape)
        numbers = answer["tile"]["numbers"]
        assert answer["withinTheorem"] == (d <= numbers <= n * d)
        if options["tiles"] == "rule":
            assert numbers * shape.element == 1024 * options["sram_kib"]
        else:
            assert numbers == 2 * sum(tile) * d


def test_everything_lies_within_the_axes(in_node):
    """The chart's intensities go from 2^-1 to 2^17, the bars' bytes from a decade to a decade."""
    answers = in_node(
        "io_explorer",
        """data.map((options) => {
          const model = figure.ioModel(options);
          const bytes = model.algorithms.map((each) => each.bytes);
          const intensities = model.algorithms.map((each) => each.intensity);
          return { decades: figure.byteDecades(model), minimum: model.minimum, bytes,
            intensities: [...intensities, model.flops / model.minimum] };
        })""",
        all_options(),
    )
    for answer in answers:
        low, high = answer["decades"]
        assert 2 * 10**low <= answer["minimum"] <= min(answer["bytes"]) * 64
        assert all(10**low < moved <= 10**high for moved in answer["bytes"])
        assert all(0.5 <= intensity <= 2**17 for intensity in answer["intensities"])
        # The labels hang to the right of their points, which asks for room there.
        assert all(intensity <= 512 for intensity in answer["intensities"][:-1])


def python_threshold(options, key, gpu, algorithm):
    """The least value from which on every larger one is limited by arithmetic."""
    rate = gpu["tflops"][options["dtype"]] or gpu["tflops"]["fp32"]
    from_here = None
    for value in reversed(values(key)):
        parts, flops = expected(options | {key: value})[0][algorithm]
        if flops * gpu["bandwidth_tbs"] <= rate * sum(parts.values()):
            break
        from_here = value
    return from_here


@pytest.mark.parametrize("key", ["sequence_length", "sram_kib"])
def test_from_where_arithmetic_is_the_limit(in_node, key):
    sizes = [("rule", kib, 128, 64) for kib in (16, 228)] + [("chosen", 100, 256, 64)]
    cases = [
        ({"sequence_length": n, "head_dim": d, "dtype": dtype, "tiles": tiles, "sram_kib": kib}
         | {"block_m": block_m, "block_n": block_n, "visible": visible}, gpu)
        for n, d, dtype, (tiles, kib, block_m, block_n), visible, gpu in itertools.product(
            (128, 2048), (64, 256), ("fp16", "fp32"), sizes, (1, 1 / 16), datasheet_gpus()
        )
    ]  # fmt: skip
    answers = in_node(
        "io_explorer",
        f"""data.map(([options, gpu]) => figure.computeBoundFrom(options, "{key}",
          {values(key)}, figure.ceilings(gpu, options.dtype)))""",
        cases,
    )
    for (options, gpu), answer in zip(cases, answers, strict=True):
        wanted = [python_threshold(options, key, gpu, index) for index in range(4)]
        assert answer == wanted, (options, gpu["name"])
    seen = {from_here for answer in answers for from_here in answer}
    assert None in seen and values(key)[0] in seen and len(seen) > 3


def test_the_roof(in_node):
    for gpu in datasheet_gpus():
        roof = in_node(
            "io_explorer",
            """data[1].map((dtype) => {
              const rates = figure.ceilings(data[0], dtype);
              return [figure.attainable(rates.ridge / 4, rates), figure.attainable(1e6, rates),
                figure.limit(rates.ridge * 0.99, rates), figure.limit(rates.ridge * 1.01, rates)];
            })""",
            [gpu, list(DTYPES)],
        )
        for dtype, (sloping, flat, *limits) in zip(DTYPES, roof, strict=True):
            rate = 1e12 * (gpu["tflops"][dtype] or gpu["tflops"]["fp32"])
            assert flat == rate and sloping == pytest.approx(rate / 4, rel=1e-15)
            assert limits == ["memory", "compute"]


def test_the_values_it_offers_are_the_ones_it_takes(in_node):
    offered = in_node("io_explorer", "[figure.SEQUENCE_LENGTHS, figure.SRAM_KIB]")
    assert offered == [list(values("sequence_length")), list(values("sram_kib"))]


def test_every_gpu_of_the_list_says_where_its_numbers_come_from():
    for gpu in datasheet_gpus():
        assert gpu["documents"] and all(title.strip() for title in gpu["documents"])
        assert OF_THE_CHIP <= set(gpu)
    names = {gpu["name"] for gpu in datasheet_gpus()}
    assert {"T4", "A100 80 GB", "H100 SXM", "H200", "B200", "MI300X"} <= names


def test_a_measured_gpu_keeps_what_is_known_of_its_chip():
    figure = IOExplorer(gpus=[measured(name="H200"), measured(name="My GPU")])
    assert figure.gpu == "H200"
    chip = {"sms": 132, "sram_kib": 228, "l2_mib": 60}
    assert figure.gpus[0] == measured(name="H200") | chip
    assert figure.gpus[1] == measured(name="My GPU")


def test_it_starts_on_the_h200():
    assert IOExplorer().gpu == "H200"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequence_length": 1000}, "sequence_length.*128.*1000"),
        ({"head_dim": 80}, "head_dim.*64.*80"),
        ({"dtype": "fp8"}, "dtype.*fp32.*fp8"),
        ({"sram_kib": 99}, "sram_kib.*16.*99"),
        ({"tiles": "best"}, "tiles.*rule.*chosen.*best"),
        ({"block_m": 100}, "block_m.*16.*100"),
        ({"visible": 0.3}, "visible.*0.5.*0.3"),
        ({"gpu": "Abacus"}, "T4, L4.*Abacus"),
        ({"gpus": [measured(memory_gb=-1)]}, "My GPU: memory_gb must be a number above 0; got -1"),
        ({"heads": 4}, "no option 'heads'.*block_m"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        IOExplorer(**options)
    assert "\n" not in str(caught.value)
