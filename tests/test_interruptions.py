"""No memory, no disk, and Ctrl-C: one line each, and no answer lost."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from chats import ROOT
from refusals import assert_refused

import demo


@pytest.mark.parametrize(
    ("stage", "error", "advice"),
    [
        ("prefill", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "max_pixels"),
        ("rollout", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "num_rollouts"),
        ("rollout", RuntimeError("[enforce fail at alloc_cpu.cpp:1] can't allocate memory"), "max_new_tokens"),
        ("prefill", MemoryError(), "max_pixels"),
    ],
    ids=["prefill", "rollout", "computer", "Python"],
)
def test_lack_of_memory_says_what_to_lower(run, with_model, bundled, monkeypatch, stage, error, advice):
    """Guards against: a traceback for the commonest failure on a GPU, and advice that does not fit the stage."""

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(bundled[0], stage, fails)
    assert_refused(run(), "out of memory", "lower", advice)


def test_other_runtime_errors_are_not_hidden(with_model, bundled, monkeypatch):
    """Guards against: every failure called a lack of memory, or reported as bad input, by which bugs are not seen."""

    def fails(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(bundled[0], "prefill", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        demo.main([])


def test_full_disk_loses_no_answer(run, with_model, tmp_path, monkeypatch):
    """Guards against: the answer lost because its drawing could not be written."""

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, err = run("--enable-kdv", "--save-kept", tmp_path / "kept.png", "--max-new-tokens", 1)
    assert status == 2 and "\nanswer " in out
    assert err.count("\n") == 1 and "No space left" in err


def test_full_disk_behind_stdout_is_reported(tmp_path):
    """Guards against: exit status 0, or Python's own complaint at exit, when the answer could not be printed."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import demo; "
        "demo.run = lambda args: demo.say('answer'); sys.exit(demo.main([]))"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program, str(ROOT)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_refused((done.returncode, "", done.stderr), "No space left")


@pytest.mark.parametrize("stage", ["loading", "prefill", "rollout"])
def test_ctrl_c_ends_in_one_line(run, with_model, bundled, monkeypatch, stage):
    """Guards against: a traceback, or another exit status than a shell expects, at Ctrl-C in any stage."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    if stage == "loading":
        monkeypatch.setattr(demo, "load_pipeline", interrupted)
    else:
        monkeypatch.setattr(bundled[0], stage, interrupted)
    assert run() == (130, "", "interrupted\n")


def test_ctrl_c_while_libraries_are_imported(tmp_path):
    """Guards against: a traceback from inside an import, which is where most of a short run is spent."""
    command = [sys.executable, str(ROOT / "demo.py"), "--max-new-tokens", "1"]
    # In the background of a shell the signal is ignored, by the tests and by what they start.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = subprocess.Popen(command, preexec_fn=heard, **piped)
    while running.poll() is None and "libtorch" not in Path(f"/proc/{running.pid}/maps").read_text():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert (running.returncode, out, err) == (130, "", "interrupted\n")
