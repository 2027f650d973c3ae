"""The live experiment's form: the first choice runs at once, the button runs what is chosen."""

import ipywidgets
import pytest
import torch
from triton.runtime.errors import OutOfResources

from instruments import live


@pytest.fixture
def shown(monkeypatch):
    items = []
    monkeypatch.setattr(live, "display", items.append)
    monkeypatch.setattr(live, "say", items.append)
    return items


def _parts(shown):
    (form,) = [item for item in shown if isinstance(item, ipywidgets.VBox)]
    row, output = form.children
    return row.children[:-1], row.children[-1], output


def test_the_first_choice_runs_at_once_and_the_button_runs_the_chosen(shown):
    runs = []
    live.experiment(lambda **chosen: runs.append(chosen), N=[256, 512], dtype=["float16"])
    (length, _), button, _ = _parts(shown)
    length.value = 512
    button.click()
    assert runs == [{"N": 256, "dtype": "float16"}, {"N": 512, "dtype": "float16"}]
    assert not button.disabled


def test_what_a_run_returns_is_shown(shown):
    live.experiment(
        lambda sequence_length, mask: sequence_length * 2, sequence_length=[3], mask=["full"]
    )
    assert shown[:2] == ["With sequence length 3, mask full:", 6]


def test_a_failing_repeat_is_told_and_can_be_repeated(shown, capsys):
    def run(N):
        if N == 2:
            raise RuntimeError("an illegal memory access\nwith a long explanation")

    live.experiment(run, N=[1, 2])
    (length,), button, _ = _parts(shown)
    length.value = 2
    button.click()
    assert "RuntimeError: an illegal memory access" in capsys.readouterr().out
    assert not button.disabled


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "which has 23.7 GB of memory: choose less"),
        (
            OutOfResources(131072, 101376, "shared memory"),
            "a program may have 101376 (shared memory)",
        ),
    ],
)
def test_a_choice_too_large_for_the_gpu_is_told_and_the_form_is_offered(
    shown, monkeypatch, error, sentence
):
    class Properties:
        total_memory = 23_700_000_000

    def run(N):
        if N > 100:
            raise error
        return N

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: Properties)
    live.experiment(run, N=[4096, 64])
    assert sentence in shown[1]
    (length,), button, _ = _parts(shown)
    length.value = 64
    button.click()
    assert not button.disabled
