"""Tests of avis/files.py and avis/cli.py: whole files or none, and one clear line for what is wrong."""

import argparse
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from avis.cli import ArgumentParser, printable, run_command
from avis.files import check_file, read_json, sha256, write_atomically, write_json

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]


# ------------------------------------------------------------------------------------------------------------ files


def make_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_empty(folder: Path) -> Path:
    (folder / "empty").touch()
    return folder / "empty"


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda folder: "https://example.org/a.png", "only files are read, not URLs"),
        (lambda folder: Path("https://example.org/a.png"), "only files are read, not URLs"),
        (lambda folder: "data:image/png;base64,iVBOR", "only files are read, not URLs"),
        (lambda folder: folder / "none", "no such file"),
        (lambda folder: folder, "is a folder, not a file"),
        (lambda folder: "", "is a folder, not a file"),
        (make_loop, "cannot read .*symbolic links"),
        (make_pipe, "is not a regular file"),
        (make_empty, "is empty"),
        (lambda folder: folder / ("x" * 300), "cannot read .*too long"),
        (lambda folder: "a\0b", "cannot read .*null"),
        (lambda folder: make_empty(folder) / "below", "cannot read .*Not a directory"),
    ],
    ids=str,
)
def test_what_is_no_readable_file_is_refused_in_one_line(tmp_path, make, match):
    """Guards against: a wait for a pipe, a traceback from a library, and a download."""
    with pytest.raises(ValueError, match=match) as caught:
        check_file(make(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_passes(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"a")
    assert check_file(str(path)) == check_file(path) == path
    (tmp_path / "link").symlink_to(path)
    assert check_file(tmp_path / "link")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(ValueError, match="Permission denied"):
        check_file(path)


def test_sha256_is_over_the_files_in_order(tmp_path):
    parts = [b"a" * (2**20 + 1), b"", b"b"]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).write_bytes(part)
    assert sha256(tmp_path / str(number) for number in range(3)) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_atomically(path, b"first")
    write_json(path, {"a": [1, "ü"]})
    assert read_json(path, "") == {"a": [1, "ü"]} and path.read_bytes().endswith(b"\n")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, step, stop):
    """Guards against: half a file under its name, and a part of one left beside it."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(*_):
        raise stop

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(stop)) as caught:
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    if isinstance(stop, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path):
    """Guards against: a reader, after a kill between writing and renaming, that finds half a file."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    code = """
import os, sys, signal
from pathlib import Path
from avis.files import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"new" * 10**6)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path):
    make_empty(tmp_path)
    with pytest.raises(OSError, match="^cannot write .*/empty/a: "):
        write_atomically(tmp_path / "empty" / "a", b"")


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 10**5])
def test_a_damaged_document_says_what_to_do(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="a.json is missing or damaged: run it again$"):
        read_json(path, "run it again")


# ----------------------------------------------------------------------------------------------------- command lines


def raising(error: BaseException):
    def command():
        raise error

    return command


DEAD_WORKER = "error: a worker process died, perhaps for lack of memory: the same command resumes"


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("wrong\nmore"), 2, "error: wrong"),
        (OSError(errno.ENOENT, "No such file"), 2, "error: [Errno 2] No such file"),
        (MemoryError(), 2, "error: MemoryError"),
        (ValueError("\x1b[31mred\r"), 2, "error: \ufffd[31mred"),
        (json.JSONDecodeError("odd", "", 0), 2, "error: odd: line 1 column 1 (char 0)"),
        (BrokenProcessPool("long"), 2, DEAD_WORKER),
        (KeyboardInterrupt(), 130, "interrupted: the same command resumes"),
        (KeyboardInterrupt("3 of 4"), 130, "interrupted: 3 of 4"),
    ],
    ids=repr,
)
def test_bad_input_is_one_line_and_a_status(capsys, error, status, line):
    """Guards against: tracebacks, several lines, and text that moves the cursor."""
    assert run_command(raising(error)) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")


def test_a_status_is_handed_on_and_a_bug_is_not_hidden():
    assert (run_command(lambda: None), run_command(lambda: 0), run_command(lambda: 1)) == (0, 0, 1)
    with pytest.raises(KeyError):
        run_command(raising(KeyError("a bug")))


@pytest.mark.parametrize("arguments", [["--num", "3"], ["--number", "x"], ["\x1b"], ["sub", "--dept", "3"]])
def test_a_wrong_flag_is_one_line(capsys, arguments):
    """Guards against: abbreviations that a new flag makes ambiguous, in subcommands too, and a list of all flags."""
    parser = ArgumentParser(prog="p")
    parser.add_argument("--number", type=int)
    parser.add_subparsers().add_parser("sub").add_argument("--depth", type=int)
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.startswith("error: ") and err.endswith(" (see --help)\n")
    assert err.count("\n") == 1 and "\x1b" not in err
    assert parser.parse_args(["--number", "3"]) == argparse.Namespace(number=3)


def test_printable_keeps_text():
    assert printable(" añ\n中 ") == "añ\n中" and printable("a\tb\x07\u202e") == "a\ufffdb\ufffd\ufffd"
