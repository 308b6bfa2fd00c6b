"""Fixtures shared by all rooms' tests: the tiny model, and the guard that the fork is what gets imported."""

from pathlib import Path

import pytest
import tiny
import torch
import transformers


def pytest_configure(config):
    # A root folder named `transformers/` is a namespace package to Python and can hide the fork.
    package = Path(transformers.__file__).parent if transformers.__file__ else None
    if package is None or not (package / "models/qwen2_5_vl/key_diversity.py").is_file():
        raise pytest.UsageError(
            f"`import transformers` finds {package or 'a bare folder'}, not the fork: run `bash setup.sh`"
        )


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads, and the machine may be busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model():
    """The tiny random Qwen2.5-VL, float32, SDPA. Shared by the whole session: do not change its weights."""
    return tiny.build_model()
