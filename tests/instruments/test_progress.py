"""A bar comes when the patience ends, goes when the work does, and gives every item."""

import pytest

from instruments import progress


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (3600.0, False)])
def test_only_who_waits_sees_a_bar(monkeypatch, capsys, patience, shown):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", patience)
    assert list(progress.progress(range(3), "rounds")) == [0, 1, 2]
    screen = capsys.readouterr().err
    assert ("rounds" in screen) == shown
    assert screen.split("\r")[-1].strip() == ""
