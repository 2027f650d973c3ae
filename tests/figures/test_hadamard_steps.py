"""The figure's numbers against the kernel's reference arithmetic, to the bit."""

import itertools

import pytest
import torch

from figures.hadamard_steps import CHANNELS, SIZES, STEPS, HadamardSteps
from kernels import fp8_reference, hadamard
from kernels.quantization_reference import dequantize, quantize

SETTINGS = [
    {"place": place, "size": size, "seed": seed}
    for (place, size), seed in zip(
        itertools.product((0, 5, 10, 15), SIZES), itertools.cycle(range(8)), strict=False
    )
]


def numbers(values):
    """A row as the kernels take it."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, CHANNELS)


def through_fp8(row):
    return dequantize(quantize(row))


@pytest.fixture(scope="module")
def row():
    def of(setting, ordinary):
        values = list(ordinary)
        values[setting["place"]] = setting["size"]
        return numbers(values)

    return of


def test_the_signs_are_the_kernels(in_node):
    signs = in_node("hadamard_steps", "data.map(figure.signsOf)", list(range(8)))
    for seed, found in enumerate(signs):
        assert found == hadamard.random_signs(CHANNELS, seed).tolist()


def test_steps_and_errors_are_the_reference_arithmetics_to_the_bit(in_node, row):
    ordinary, shown = in_node(
        "hadamard_steps", "[figure.ORDINARY, data.map(figure.modelOf)]", SETTINGS
    )
    ones = torch.ones(CHANNELS)
    for setting, model in zip(SETTINGS, shown, strict=True):
        before = row(setting, ordinary)
        signs = hadamard.random_signs(CHANNELS, setting["seed"]).cpu()
        assert len(model["stages"]) == STEPS
        assert torch.equal(numbers(model["stages"][0]), before)
        assert torch.equal(numbers(model["stages"][1]), before * signs)
        rotated = fp8_reference.rotate(before, signs)
        assert torch.equal(numbers(model["stages"][-1]), rotated)
        back = fp8_reference.rotate(through_fp8(rotated), ones) * signs
        for name, found in (("plain", through_fp8(before)), ("rotated", back)):
            error = (found.double() - before.double()).flatten()
            assert torch.equal(torch.tensor(model[name]["error"]).double(), error), setting
            others = error.clone()
            others[setting["place"]] = 0
            whole = error.norm() / before.double().norm()
            # Sums of 16 squares in float64, in another order.
            assert model[name]["whole"] == pytest.approx(whole.item(), rel=1e-14)
            assert model[name]["outlier"] == error[setting["place"]].abs().item()
            assert model[name]["others"] == others.abs().max().item()


def test_each_butterfly_is_a_product_with_its_own_matrix(in_node):
    stages = in_node("hadamard_steps", "figure.modelOf(data).stages", SETTINGS[7])
    for step, (before, after) in enumerate(itertools.pairwise(stages[1:-1])):
        left, right = torch.eye(CHANNELS >> step + 1), torch.eye(2**step)
        matrix = torch.kron(left, torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), right))
        assert torch.equal(torch.tensor(before) @ matrix, torch.tensor(after))


def test_the_kernel_itself_gives_the_rotated_row(in_node):
    setting = {"place": 3, "size": 64, "seed": 2}
    stages = in_node("hadamard_steps", "figure.modelOf(data).stages", setting)
    signs = hadamard.random_signs(CHANNELS, setting["seed"])
    found = hadamard.transform(numbers(stages[0]).to(signs.device), signs)
    assert torch.equal(found.cpu(), numbers(stages[-1]))


def test_it_shows_what_the_chapter_says_of_one_row(in_node):
    """The largest element falls to about a quarter, and the row's error does not fall."""
    settings = [{"place": 5, "size": 16, "seed": seed} for seed in range(8)]
    for model in in_node("hadamard_steps", "data.map(figure.modelOf)", settings):
        assert 4 < max(map(abs, model["stages"][-1])) < 6.5
        assert model["plain"]["outlier"] == 0
        assert model["rotated"]["whole"] > model["plain"]["whole"]


def test_it_marks_what_holds_the_outlier(in_node):
    """What changes when only the outlier does."""
    settings = [
        {"place": place, "size": size, "seed": 1} for place in (0, 6) for size in (512, 1024)
    ]
    shown = in_node(
        "hadamard_steps",
        "data.map((one) => figure.modelOf(one).stages.map((row, step) =>"
        " row.map((number, at) => [number, figure.holdsOutlier(step, one.place, at)])))",
        settings,
    )
    for one, other in (shown[:2], shown[2:]):
        for step, (row, changed) in enumerate(zip(one, other, strict=True)):
            marks = [number != new for (number, _), (new, _) in zip(row, changed, strict=True)]
            assert [mark for _, mark in row] == marks
            assert sum(marks) == 2 ** max(0, min(step - 1, 4))


def test_the_coarsest_step_is_between_the_largest_numbers(in_node):
    found = in_node("hadamard_steps", "figure.coarsestStep(data)", [0, -7, 3])
    largest = torch.tensor([448.0]).to(torch.float8_e4m3fn)
    below = (largest.view(torch.uint8) - 1).view(torch.float8_e4m3fn)
    assert found == pytest.approx((448 - below.float().item()) * 7 / 448, rel=1e-15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"place": 16}, "place.*15"),
        ({"size": 3}, "size.*1, 2, 4.*3"),
        ({"seed": 8}, "seed.*7"),
        ({"step": 7}, "step.*6"),
        ({"channels": 16}, "no option 'channels'.*place"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        HadamardSteps(**options)
    assert "\n" not in str(caught.value)
