"""What every test shares: where kernels run, and which tests need a GPU."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
