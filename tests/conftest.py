"""Fixtures shared by all rooms' tests: the tiny model, and the guard that the fork is what gets imported."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from stand_in_kit import write_checkout

import demo


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


@pytest.fixture(autouse=True)
def small_numbers():
    """Fitting flushes them to zero in its own process; here others' tests follow, and hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_model():
    """The tiny random Qwen2.5-VL, float32, SDPA. Shared by the whole session: do not change its weights."""
    return tiny.build_model()


@pytest.fixture(scope="session")
def bundled():
    """The bundled model, float32, and its processor. Shared by the whole session: do not change its weights."""
    from avis.loading import load_model

    return load_model(demo.BUNDLED, device="cpu")


@pytest.fixture
def kit(tmp_path, monkeypatch, bundled):
    """A checkout of VLMEvalKit's stand-in, importable, with the bundled model already loaded; returns its folder."""
    write_checkout(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr("avis.pipeline.load_model", lambda *_: bundled)
    monkeypatch.setenv("LMUData", str(tmp_path))
    monkeypatch.delenv("MMEVAL_ROOT", raising=False)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("vlmeval", "vlmeval_run")]:
        del sys.modules[name]


@pytest.fixture
def no_model(monkeypatch):
    """The test fails when the demo loads the model."""

    def load_pipeline(args):
        pytest.fail("the model was loaded for what can be known without it")

    monkeypatch.setattr(demo, "load_pipeline", load_pipeline)


@pytest.fixture
def with_model(monkeypatch, bundled):
    """The demo uses the shared model instead of loading one."""
    from avis.pipeline import AvisPipeline

    monkeypatch.setattr(demo, "load_pipeline", lambda args: (AvisPipeline(*bundled), []))


@pytest.fixture
def run(capfd):
    """Runs the command line in this process: (exit status, stdout, stderr), native code's output included."""

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = demo.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code or 0
        return status, *capfd.readouterr()

    return run


@pytest.fixture(autouse=True)
def other_tests_keep_their_logging():
    """The demo quietens Transformers for its own process."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
