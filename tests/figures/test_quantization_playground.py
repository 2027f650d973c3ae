"""The figure's rounding against PyTorch's, and its scales, rotation and errors against NumPy's."""

import math

import numpy as np
import pytest
import torch

from figures.quantization_playground import CHANNELS, OUTLIERS, ROWS, QuantizationPlayground

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
DISTRIBUTIONS = QuantizationPlayground.class_traits()["distribution"].values
SHARINGS = {"none": None, "tensor": ROWS, "block": 4, "row": 1}
OUTLIER_CHANNEL, OUTLIER_ROWS = 21, {"query": 6, "key": 11}
EPSILON = 2.0**-52
START = {
    "distribution": "outlier channel",
    "outlier": 10,
    "format": "e4m3",
    "sharing": "tensor",
    "rotated": False,
    "seed": 0,
}


def finite_numbers(name):
    """Every finite number of the format, ascending, 0 once."""
    codes = torch.arange(256, dtype=torch.uint8).view(DTYPES[name]).double().numpy()
    return np.unique(codes[np.isfinite(codes)])


def nearest(name, numbers):
    """Rounded to the nearest number of the format by looking for it; a tie to the even code."""
    grid = finite_numbers(name)
    grid = grid[grid >= 0]  # their codes are 0, 1, 2, ...
    magnitudes = np.minimum(np.abs(numbers), grid[-1])
    above = np.searchsorted(grid, magnitudes)
    below = np.maximum(above - 1, 0)
    down, up = magnitudes - grid[below], grid[above] - magnitudes
    take_up = (up < down) | ((up == down) & (above % 2 == 0))
    return np.copysign(grid[np.where(take_up, above, below)], numbers)


def uniforms(seed):
    """mulberry32: the bits of two multiplications."""
    state = seed & 0xFFFFFFFF
    while True:
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        mixed = (state ^ (state >> 15)) * (state | 1) & 0xFFFFFFFF
        mixed ^= (mixed + ((mixed ^ (mixed >> 7)) * (mixed | 61))) & 0xFFFFFFFF
        yield (mixed ^ (mixed >> 14)) / 2**32


def drawn(options, role="query"):
    generator = uniforms(2 * options["seed"] + (role == "key"))
    matrix = np.empty((ROWS, CHANNELS))
    tail = np.empty((ROWS, CHANNELS), bool)
    for at in np.ndindex(matrix.shape):
        radius = math.sqrt(-2 * math.log(1 - next(generator)))
        number = radius * math.cos(2 * math.pi * next(generator))
        matrix[at] = math.floor(number * 2**20 + 0.5) / 2**20
        tail[at] = next(generator) < 0.02
    kind, size, row = options["distribution"], options["outlier"], OUTLIER_ROWS[role]
    if kind == "heavy tail":
        matrix[tail] *= size
    if kind == "outlier channel":
        matrix[:, OUTLIER_CHANNEL] *= size
    if kind == "outlier element":
        matrix[row, OUTLIER_CHANNEL] = np.sign(matrix[row, OUTLIER_CHANNEL]) * size
    return matrix


def signs_of(seed):
    generator = uniforms(~seed)
    return np.array([-1.0 if next(generator) < 0.5 else 1.0 for _ in range(CHANNELS)])


def butterflies(matrix):
    """Sums and differences at distances 1, 2, 4, ...: the order of the additions is the figure's."""
    half = 1
    while half < CHANNELS:
        pairs = matrix.reshape(ROWS, -1, 2, half)
        one, other = pairs[:, :, 0], pairs[:, :, 1]
        matrix = np.stack([one + other, one - other], axis=2).reshape(ROWS, CHANNELS)
        half *= 2
    return matrix / math.sqrt(CHANNELS)


def rounded(matrix, options):
    rows = SHARINGS[options["sharing"]]
    scales = np.ones((ROWS, 1))
    if rows:
        largest = np.abs(matrix).reshape(ROWS // rows, -1).max(axis=1)
        scales = np.repeat(largest / finite_numbers(options["format"])[-1], rows)[:, None]
    scaled = matrix / scales
    codes = nearest(options["format"], scaled)
    return scales, scaled, codes, codes * scales


def expected(options):
    """The whole model in NumPy."""
    data, keys, signs = drawn(options), drawn(options, "key"), signs_of(options["seed"])
    turned, turned_keys = data, keys
    if options["rotated"]:
        turned, turned_keys = butterflies(data * signs), butterflies(keys * signs)
    scales, scaled, codes, values = rounded(turned, options)
    key_values = rounded(turned_keys, options)[3]
    error = (butterflies(values) * signs if options["rotated"] else values) - data
    ordinary = np.ones(data.shape, bool)
    if options["distribution"] == "outlier channel":
        ordinary[:, OUTLIER_CHANNEL] = False
    if options["distribution"] == "outlier element":
        ordinary[OUTLIER_ROWS["query"], OUTLIER_CHANNEL] = False
    scores, norm = data @ keys.T, np.linalg.norm
    last, largest = finite_numbers(options["format"])[-2:]
    # Two products of 64 terms, subtracted.
    magnitudes = [np.abs(data) @ np.abs(keys).T, np.abs(values) @ np.abs(key_values).T]
    return {
        "scales": scales[:, 0],
        "data": data,
        "turned": turned,
        "scaled": scaled,
        "codes": codes,
        "error": error,
        "largest": np.abs(turned).max(),
        "dataError": norm(error) / norm(data),
        "ordinaryError": norm(error[ordinary]) / norm(data[ordinary]),
        "scoresError": norm(values @ key_values.T - scores) / norm(scores),
        "scoresRounding": CHANNELS * EPSILON * sum(map(norm, magnitudes)) / norm(scores),
        "zeros": int(((codes == 0) & (scaled != 0)).sum()),
        "saturated": int((np.abs(scaled) > largest + (largest - last) / 2).sum()),
    }


@pytest.mark.parametrize("name", DTYPES)
def test_its_numbers_are_the_formats(in_node, name):
    grid = finite_numbers(name)
    numbers = in_node("quantization_playground", "figure.numbersOf(data)", name)
    assert numbers == grid[grid >= 0].tolist()


@pytest.mark.parametrize("name", DTYPES)
def test_it_rounds_as_pytorch_does(in_node, name):
    grid = finite_numbers(name).astype(np.float32)
    middles = (grid[1:] + grid[:-1]) / 2  # exact: they have one bit more than the format
    exact = np.concatenate([grid, middles])
    generator = np.random.default_rng(7)
    sizes = np.exp2(generator.uniform(-20, np.log2(grid[-1]), 5000))
    cases = np.concatenate(
        [
            exact,
            np.nextafter(exact, np.float32(np.inf)),
            np.nextafter(exact, np.float32(-np.inf)),
            (sizes * generator.choice([-1, 1], 5000)).astype(np.float32),
            np.array([-0.0], np.float32),
        ]
    ).clip(grid[0], grid[-1])
    reference = torch.tensor(cases).to(DTYPES[name]).float().numpy()
    assert np.array_equal(nearest(name, cases.astype(np.float64)), reference)
    expression = """data[1].map((number) => figure.roundTo(data[0], Number(number)))
      .map((number) => (Object.is(number, -0) ? "-0.0" : number))"""
    # As text: JSON.parse keeps -0, but Python's own JSON would not bring it back.
    found = in_node("quantization_playground", expression, [name, [repr(float(x)) for x in cases]])
    found = np.array([float(number) for number in found])
    assert np.array_equal(found, reference)
    assert np.array_equal(np.signbit(found), np.signbit(reference))


@pytest.mark.parametrize(("name", "largest"), [("e4m3", 448), ("e5m2", 57344)])
def test_it_saturates_beyond_the_largest_number(in_node, name, largest):
    expression = """[1.001, 1.04, 2, 1e300, Infinity].flatMap((times) =>
      [figure.roundTo(data[0], times * data[1]), figure.roundTo(data[0], -times * data[1])])"""
    found = in_node("quantization_playground", expression, [name, largest])
    assert found == [largest, -largest] * 5
    assert in_node("quantization_playground", "Number.isNaN(figure.roundTo(data, NaN))", name)


@pytest.mark.parametrize(("name", "next_number"), [("e4m3", 480), ("e5m2", 65536)])
def test_what_would_round_to_the_largest_number_does_not_saturate(in_node, name, next_number):
    """The next number, were there one, is as far away as the last two are from each other."""
    middle = (finite_numbers(name)[-1] + next_number) / 2
    cases = [name, [0, middle - 1, middle, -middle, middle + 0.001, -middle - 0.001]]
    found = in_node(
        "quantization_playground", "data[1].map((x) => figure.saturates(data[0], x))", cases
    )
    assert found == [False] * 4 + [True] * 2


def test_its_transform_is_the_hadamard_matrix(in_node):
    matrix = np.ones((1, 1))
    while len(matrix) < CHANNELS:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    rows = np.random.default_rng(1).standard_normal((ROWS, CHANNELS))
    expression = "data.map((row) => Array.from(figure.hadamard(row)))"
    found = np.array(in_node("quantization_playground", expression, rows.tolist()))
    # 64 numbers added up in either order, each sum rounded.
    bound = CHANNELS * EPSILON * np.abs(rows).sum(axis=1, keepdims=True) / 8
    assert (np.abs(found - rows @ matrix / 8) <= bound).all()
    assert np.array_equal(found, butterflies(rows))
    back = np.array(in_node("quantization_playground", expression, found.tolist()))
    assert (np.abs(back - rows) <= 8 * bound).all()


def settings():
    """Every kind of setting at a few sizes of the outlier, and two other draws."""
    for distribution in DISTRIBUTIONS:
        for outlier in (1, 10, 1000, 10**6) if distribution != "gaussian" else (10,):
            for name in DTYPES:
                for sharing in SHARINGS:
                    for rotated in (False, True):
                        chosen = (distribution, outlier, name, sharing, rotated, 0)
                        yield dict(zip(START, chosen, strict=True))
    yield START | {"seed": 1, "rotated": True}
    yield START | {"seed": 2**31 - 1, "distribution": "heavy tail"}


def test_every_number_it_shows_is_numpys(in_node):
    cases = list(settings())
    expression = """data.map((options) => {
      const model = figure.quantizationModel(options);
      const plain = (rows) => rows.map((row) => Array.from(row));
      for (const key of ["data", "turned", "scaled", "codes", "error"]) model[key] = plain(model[key]);
      return { ...model, values: null };
    })"""
    for options, model in zip(
        cases, in_node("quantization_playground", expression, cases), strict=True
    ):
        wanted = expected(options)
        for key in ("scales", "data", "turned", "scaled", "codes", "error"):
            assert np.array_equal(np.array(model[key]), wanted[key]), (options, key)
        for key in ("largest", "zeros", "saturated"):
            assert model[key] == wanted[key], (options, key)
        for key in ("dataError", "ordinaryError"):
            # A sum of 1,024 squares, in another order.
            assert math.isclose(model[key], wanted[key], rel_tol=ROWS * CHANNELS * EPSILON)
        rounding = wanted["scoresRounding"] + ROWS * CHANNELS * EPSILON * wanted["scoresError"]
        assert abs(model["scoresError"] - wanted["scoresError"]) <= rounding, options


def test_the_table_is_the_model_of_each_setting(in_node):
    found = in_node("quantization_playground", "figure.alternatives(data)", START)
    assert [[cell["sharing"] for cell in row] for row in found] == [list(SHARINGS)] * 2
    for rotated, row in zip((False, True), found, strict=True):
        for cell in row:
            wanted = expected(START | {"sharing": cell["sharing"], "rotated": rotated})
            assert cell["dataError"] == pytest.approx(wanted["dataError"], rel=1e-12)
            assert cell["scoresError"] == pytest.approx(wanted["scoresError"], rel=1e-9)


def test_it_teaches_what_it_says():
    """What the words claim of an outlier, a scale and a rotation is so in these numbers."""
    element = START | {"distribution": "outlier element", "outlier": 10**6}
    lost = {sharing: expected(element | {"sharing": sharing})["zeros"] for sharing in SHARINGS}
    assert lost["tensor"] > 900  # of 1,024; then the outlier's four rows, then its own
    assert 200 < lost["block"] <= 4 * CHANNELS and lost["row"] <= CHANNELS
    assert expected(element | {"format": "e5m2"})["zeros"] < lost["tensor"] / 100
    assert expected(element | {"sharing": "none"})["saturated"] == 1
    plain, rotated = expected(START), expected(START | {"rotated": True})
    assert rotated["largest"] < plain["largest"] / 2
    assert rotated["scoresError"] < plain["scoresError"] / 2
    assert rotated["ordinaryError"] > plain["ordinaryError"]
    twice = expected(START | {"format": "e5m2"})["dataError"] / plain["dataError"]
    assert 1.6 < twice < 2.4


@pytest.mark.parametrize(
    ("numbers", "line", "counts"),
    [
        ([-9, -1, -0.5, 0, 0.5, 1, 9], [-1, 0, 1], [3, 4]),
        ([0, 0.1, 0.5, 4], [0.25, 0.5, 1], [2, 2]),
    ],
)
def test_what_lies_beyond_the_line_counts_at_its_end(in_node, numbers, line, counts):
    expression = "figure.histogram(data[0], data[1])"
    assert in_node("quantization_playground", expression, [numbers, line]) == counts


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("showNumber(0)", "0"),
        ("showNumber(-6.0874)", "−6.09"),
        ("showNumber(0.04512)", "0.0451"),
        ("showNumber(-999.6)", "−1,000"),
        ("showNumber(57344)", "57,344"),
        ("showNumber(0.000021)", "2.1 · 10⁻⁵"),
        ("showError(0.02449)", "2.45%"),
        ("showError(0.2664)", "26.6%"),
        ("showError(23.356)", "2,336%"),
        ("showError(0.00004)", "<0.01%"),
        ("showError(0)", "0.00%"),
    ],
)
def test_numbers_are_said_correctly(in_node, call, text):
    assert in_node("quantization_playground", f"figure.{call}") == text


def said(in_node, now, before):
    expression = """(([now, before]) => figure.lesson(now, figure.quantizationModel(now),
      { options: before, model: figure.quantizationModel(before) }))(data)"""
    return in_node("quantization_playground", expression, [START | now, START | before])


@pytest.mark.parametrize(
    ("now", "before", "words"),
    [
        (
            {"sharing": "none", "outlier": 1000},
            {"outlier": 1000},
            "beyond 448 becomes 448: it satu",
        ),
        ({"sharing": "none"}, {}, "nothing is brought to 448"),
        ({"sharing": "block"}, {}, "The channel crosses every group of 4 rows"),
        ({"sharing": "row"}, {}, "every row has one"),
        ({"outlier": 20}, {}, "among the normal numbers: it keeps its 4 bits"),
        ({"outlier": 10**5}, {}, "below 2⁻⁶, the smallest normal number: it loses bits"),
        ({"outlier": 10**6}, {}, "nearer to 0 than to the smallest number, 2⁻⁹: it is lost"),
        ({"rotated": True}, {}, "each outlier is spread over its row, and so is its error"),
        ({}, {"rotated": True}, "each outlier is back in one element"),
        ({"rotated": True, "outlier": 1}, {"outlier": 1}, "Without an outlier little changes"),
        ({"format": "e5m2"}, {}, "about twice the error, but a range from 2⁻¹⁶ to 57,344"),
        ({"distribution": "gaussian"}, {}, "No element stands out"),
        ({"distribution": "heavy tail"}, {}, "One element in fifty is 10 times as large"),
    ],
)
def test_it_says_what_changed_and_why(in_node, now, before, words):
    assert words in said(in_node, now, before)


def test_the_slider_has_the_sizes_that_python_accepts(in_node):
    assert in_node("quantization_playground", "figure.OUTLIERS") == OUTLIERS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distribution": "uniform"}, "distribution.*gaussian.*uniform"),
        ({"outlier": 3}, "outlier.*1, 2, 5, 10.*3"),
        ({"format": "e4m3fn"}, "format.*e4m3.*e4m3fn"),
        ({"sharing": "channel"}, "sharing.*tensor.*channel"),
        ({"rotated": "yes"}, "rotated.*boolean.*yes"),
        ({"element": ROWS * CHANNELS}, "element.*1023.*1024"),
        ({"seed": -1}, "seed.*0.*-1"),
        ({"scale": 2}, "no option 'scale'.*distribution, element, format"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        QuantizationPlayground(**options)
    assert "\n" not in str(caught.value)
