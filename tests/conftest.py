"""What every test shares: where kernels run, which tests need a GPU, and who runs which."""

import importlib.util

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
if HAS_TORCH:
    # Before anything else imports Triton: this decides whether its interpreter is used.
    import torch

    import kernels

    HAS_GPU = torch.cuda.is_available() and not kernels.INTERPRETED
else:
    # The website's tests also run in an environment made by `make book`.
    HAS_GPU = False
    collect_ignore = ["benchmarks", "exercises", "grading", "instruments", "kernels", "serving"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    if hasattr(config, "workerinput"):
        from tests.scheduling import turn

        items.sort(key=lambda item: turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Work is handed out by tests/scheduling.py where pytest-xdist is asked for groups."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from tests.scheduling import Scheduling

    return Scheduling(config, log)
