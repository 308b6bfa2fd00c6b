"""Tests of avis/journal.py: nothing doubled, lost or torn, whatever stops a writer, no other file touched."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avis.journal import Journal, first_difference

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
HEADER = {"config": {"seed": 0, "rows": ["a", "b"]}, "model": "m"}


def index_of(record: dict) -> int:
    return record["index"]


def opened(path: Path, header=None, **options) -> Journal:
    return Journal(path, header, key=index_of, line_start='{"index": ', **options)


def write(path: Path, header=None, count: int = 3, **options) -> bytes:
    with opened(path, header, **options) as journal:
        for index in range(count):
            if index not in journal.done:
                assert journal.append({"index": index, "text": f"ü\n{index}"})
    return path.read_bytes()


@pytest.fixture
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def running(code: str, *arguments) -> subprocess.Popen:
    program = f"import sys, time\nfrom pathlib import Path\nfrom avis.journal import Journal\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


# --------------------------------------------------------------------------------------------- what a kill leaves


@pytest.mark.parametrize("header", [None, HEADER], ids=["bare", "headed"])
def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path, no_sync, header):
    """Guards against: a torn last line or header that stays, or that glues itself to the next; whole lines written
    again."""
    path = tmp_path / "new" / "a.jsonl"
    whole = write(path, header)
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with opened(path, header) as journal:
            lines = whole[:end].count(b"\n") - (header is not None)
            assert journal.done == set(range(max(lines, 0))), f"killed after {end} bytes"
        assert write(path, header) == whole, f"killed after {end} bytes"


def test_a_writer_killed_in_its_line_is_resumed(tmp_path):
    """Guards against: bytes of a process killed between two writes of one line, kept or doubled by the next run."""
    path = tmp_path / "a.jsonl"
    writer = running(
        """
import os
write = os.write
def halting(fd, data):
    if len(data) > 10**6:  # the third record
        write(fd, data[: 10**5])
        print("torn", flush=True)
        time.sleep(60)
    return write(fd, data)
with Journal(Path(sys.argv[1]), key=lambda record: record["index"]) as journal:
    for index in range(2):
        journal.append({"index": index})
    os.write = halting
    journal.append({"index": 2, "text": "x" * 2 * 10**6})
""",
        path,
    )
    assert writer.stdout.readline() == "torn\n"
    with pytest.raises(ValueError, match="another run is writing"):
        opened(path)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.stat().st_size > 10**5
    with opened(path) as journal:
        assert journal.done == {0, 1}
    assert path.read_bytes() == b'{"index": 0}\n{"index": 1}\n'


def test_every_record_is_synced_before_append_returns(tmp_path, monkeypatch):
    """Guards against: lines in our buffer, which a kill loses, or in the system's, which a power cut loses."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    path = tmp_path / "a.jsonl"
    with opened(path, HEADER) as journal:
        for index in range(3):
            journal.append({"index": index})
            assert synced[-1] == path.stat().st_size
    assert len(synced) == 5, "the folder's entry, the header, three records"


def test_an_interrupted_append_leaves_nothing_of_its_line(tmp_path, monkeypatch):
    """Guards against: half a line after Ctrl-C, and a record that counts as done although it is not there."""
    path = tmp_path / "a.jsonl"
    with opened(path) as journal:
        journal.append({"index": 0})
        before = path.read_bytes()

        def interrupted(fd):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.append({"index": 1})
        assert path.read_bytes() == before and journal.done == {0}
        assert journal.append({"index": 1})


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """Guards against: half a line left behind by a full disk, a message that does not say where it stands, and a writer
    that cannot go on when there is room again."""
    path, write_bytes, room = tmp_path / "a.jsonl", os.write, [40]

    def full(fd, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write_bytes(fd, data[: room[0]])
        room[0] -= written
        return written

    with opened(path) as journal:
        monkeypatch.setattr(os, "write", full)
        journal.append({"index": 0})
        with pytest.raises(OSError, match="No space left on device; its 1 records are complete") as caught:
            journal.append({"index": 1, "text": "x" * 50})
        assert "\n" not in str(caught.value) and path.read_bytes() == b'{"index": 0}\n'
        room[0] = 10**6
        assert journal.append({"index": 1}) and journal.done == {0, 1}
    assert path.read_bytes() == b'{"index": 0}\n{"index": 1}\n'


# --------------------------------------------------------------------------------------------- files of others


@pytest.mark.parametrize(
    "content, match",
    [
        (b"Dear diary", "another program's file"),
        (b'{"indices": 3}', "another program's file"),
        (b'{"index": 0}\nDear diary\n', r"another program's file \(line 2\)"),
        (b'{"index": 0}\n{"index": 1, "text"\n', "line 2 is damaged"),
        (b'{"index": 0}\n{"index": [1]}\n{"index": 2', "line 2 is damaged"),
        (b'{"index": 0}\n\n', r"another program's file \(line 2\)"),
        (b'{"index": 0}\n{"index": 0}\n', "line 2 repeats an earlier record"),
        (b'{"index": ' + b"[" * 10**5 + b"\n", "line 1 is damaged"),
        (b'{"index": "\xff"}\n', "line 1 is damaged"),
    ],
    ids=ascii,
)
def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path, content, match):
    """Guards against: somebody's own file cut short because its last line looked torn, or appended to."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        opened(path, remedy="choose another --output")
    assert str(caught.value).endswith("choose another --output") and "\n" not in str(caught.value)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b'{"a": 1}\n', b"{", b"{}", b"[]\n", b'"text"\n', b"{\n}\n"], ids=ascii
)
def test_a_document_of_another_program_is_no_torn_header(tmp_path, content):
    """Guards against: another program's JSON, without a last line end, taken for our header and cut off. What our own
    header begins with cannot be distinguished from it."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    if content == b"{":
        assert write(path, HEADER)
        return
    with pytest.raises(ValueError):
        opened(path, HEADER)
    assert path.read_bytes() == content


def test_a_journal_of_another_run_is_refused_by_name(tmp_path):
    """Guards against: records of two runs in one file, and an error that does not say in what they differ."""
    path = tmp_path / "a.jsonl"
    before = write(path, HEADER)
    changed = {"config": {"seed": 1, "rows": ["a", "b"]}, "model": "m"}
    with pytest.raises(ValueError, match=r"made with another config\.seed: choose another file"):
        opened(path, changed)
    with pytest.raises(ValueError, match="made with another device"):
        opened(path, HEADER | {"device": "cpu"})
    with pytest.raises(ValueError, match="another program's file"):
        opened(path)
    assert path.read_bytes() == before
    opened(path, {"model": "m", "config": {"rows": ("a", "b"), "seed": 0}}).close()


def test_a_record_that_the_caller_refuses_leaves_the_file_as_it_is(tmp_path):
    """Guards against: a torn line cut off a file that is then refused; own records taken for found ones."""
    path, found = tmp_path / "a.jsonl", []
    content = write(path) + b'{"index": 3'
    path.write_bytes(content)

    def refuse(record):
        if record["index"] == 2:
            raise ValueError("not for this run")

    with pytest.raises(ValueError, match="not for this run"):
        opened(path, on_found=refuse)
    assert path.read_bytes() == content
    with opened(path, on_found=found.append) as journal:
        journal.append({"index": 3})
    assert [record["index"] for record in found] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["folder", "pipe", "under a file"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    """Guards against: a wait for the other end of a pipe, and errors of several lines or without the name."""
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        path = path / "b"
    with pytest.raises((ValueError, OSError), match=str(path)) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_refused_in_one_line(tmp_path, monkeypatch):
    """Guards against: the system's own words, which do not say what was wanted. Root may write everywhere."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="^cannot write .*a.jsonl: Permission denied$"):
        opened(tmp_path / "a.jsonl")


def test_parts_of_a_header_may_differ(tmp_path):
    """Guards against: a run refused for where it runs, and a header that is not the file's."""
    path = tmp_path / "a.jsonl"
    write(path, HEADER | {"environment": {"cpus": 2}})
    now = HEADER | {"environment": {"cpus": 3, "gpu": None}}
    with opened(path, now, unchecked=["environment"]) as journal:
        assert journal.header == HEADER | {"environment": {"cpus": 2}} and journal.done == {0, 1, 2}
    with opened(path, HEADER, unchecked=["environment"]) as journal:
        assert journal.header["environment"] == {"cpus": 2}
    with pytest.raises(ValueError, match="made with another model"):
        opened(path, now | {"model": "n"}, unchecked=["environment"])
    with pytest.raises(ValueError, match="made with another environment"):
        opened(path, now)


def test_a_new_file_begins_with_the_content_of_an_earlier_one(tmp_path, monkeypatch):
    """Guards against: content put into a file that has records, a part of it after a kill or on a full disk, and keys
    of it that do not count as done."""
    path, found = tmp_path / "a.jsonl", []
    content = write(tmp_path / "earlier.jsonl", HEADER)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            opened(path, HEADER, content=content)
    assert path.read_bytes() == b""
    for is_shared in (False, True):
        with opened(path, HEADER, content=content, is_shared=is_shared, on_found=found.append) as journal:
            assert journal.done == {0, 1, 2} and journal.is_there() and path.read_bytes() == content
            if is_shared:
                with opened(path, HEADER, is_shared=True) as other:
                    assert other.append({"index": 3})
        assert [record["index"] for record in found] == [0, 1, 2]
        found.clear()
    with opened(path, HEADER, content=content) as journal:
        assert journal.done == {0, 1, 2, 3}, "the content is for a new file"


# --------------------------------------------------------------------------------------------- several processes


def test_one_process_at_a_time(tmp_path):
    """Guards against: two runs that write to one file, and a lock that outlives its owner."""
    path = tmp_path / "a.jsonl"
    with opened(path):
        with pytest.raises(ValueError, match="another run is writing to"):
            opened(path)
    opened(path).close()


def test_processes_that_share_a_file_write_each_record_once(tmp_path):
    """Guards against: two headers on first creation, lines of two processes mixed, and records written twice."""
    path = tmp_path / "new" / "a.jsonl"
    code = """
start = float(sys.argv[3])
time.sleep(max(0.0, start - time.time()))
header = {"run": 1}
with Journal(Path(sys.argv[1]), header, key=lambda record: record["index"], is_shared=True) as journal:
    written = 0
    for index in range(60):
        written += journal.append({"index": index, "by": sys.argv[2], "text": "x" * 20000})
print(written)
"""
    start = time.time() + 1.0
    writers = [running(code, path, name, start) for name in "abc"]
    written = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    head, *records = map(json.loads, path.read_bytes().splitlines())
    assert head == {"run": 1} and [record["index"] for record in records] == list(range(60))
    assert sum(written) == 60


def test_a_shared_file_is_caught_up_with(tmp_path):
    """Guards against: records of the other process asked again, and a torn line of a killed one left in the middle."""
    path = tmp_path / "a.jsonl"
    with opened(path, is_shared=True) as one, opened(path, is_shared=True) as other:
        assert one.append({"index": 0}) and not other.append({"index": 0}) and other.done == {0}
        with path.open("ab") as file:
            file.write(b'{"index": 1, "te')  # the start of a killed writer's line
        assert other.append({"index": 1}) and not one.append({"index": 1})
        assert [record["index"] for record in one.records()] == [0, 1]
    assert path.read_bytes() == b'{"index": 0}\n{"index": 1}\n'


def test_a_file_completed_by_another_run_is_not_written_to(tmp_path):
    """Guards against: records that go into a file without a name, or into a cut one."""
    path = tmp_path / "a.jsonl"
    with opened(path, is_shared=True) as one, opened(path, is_shared=True) as other:
        one.append({"index": 0})
        other.append({"index": 1})
        other.remove(lambda record: record["index"] == 0)
        with pytest.raises(OSError, match="the same command resumes"):
            one.append({"index": 2})
        assert other.append({"index": 2}) and path.read_bytes() == b'{"index": 1}\n{"index": 2}\n'
        path.write_bytes(b"")
        with pytest.raises(OSError, match="cut by another program"):
            other.append({"index": 3})
    with opened(path) as journal:
        path.unlink()
        with pytest.raises(OSError, match="moved or completed"):
            journal.append({"index": 0})
    assert not path.exists()


def test_a_file_replaced_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    """Guards against: a run that reads and locks the old file while the path names a new one."""
    path = tmp_path / "a.jsonl"
    write(path)
    new, open_file, waiting = b'{"index": 7}\n', os.open, [True]

    def slow(name, *arguments):
        fd = open_file(name, *arguments)
        if name == path and waiting.pop():
            waiting.append(False)
            (tmp_path / "b").write_bytes(new)
            os.replace(tmp_path / "b", path)
        return fd

    monkeypatch.setattr(os, "open", slow)
    with opened(path) as journal:
        assert journal.done == {7} and journal.append({"index": 8})
    assert path.read_bytes() == new + b'{"index": 8}\n'


# --------------------------------------------------------------------------------------------- changing what is there


def test_records_can_be_read_while_others_are_appended(tmp_path):
    """Guards against: one position in the file shared by reading and writing, and lines longer than what is read at
    once."""
    path = tmp_path / "a.jsonl"
    with opened(path, HEADER, is_shared=True) as journal:
        for index in range(3):
            journal.append({"index": index, "text": "x" * (index * 1_500_000)})
        seen = []
        for record in journal.records():
            seen.append(record["index"])
            assert journal.append({"index": record["index"] + 10, "text": "y" * 10})
            next(journal.records())
        assert seen == [0, 1, 2] and len(list(journal.records())) == 6
        assert len(list(opened(path, HEADER, is_shared=True).records())) == 6


@pytest.mark.parametrize("header", [None, HEADER], ids=["bare", "headed"])
def test_unwanted_records_are_taken_out_in_one_step(tmp_path, header):
    """Guards against: the header or other records taken along, a lock lost with the old file, and something left
    beside it."""
    path = tmp_path / "a.jsonl"
    lines = write(path, header).splitlines(keepends=True)
    with opened(path, header) as journal:
        inode = path.stat().st_ino
        journal.remove(lambda record: record["index"] > 5)
        assert path.stat().st_ino == inode, "nothing to take out"
        journal.remove(lambda record: record["index"] == 1)
        assert journal.done == {0, 2} and path.read_bytes() == b"".join([*lines[:-2], lines[-1]])
        with pytest.raises(ValueError, match="another run is writing"):
            opened(path, header)
        assert journal.append({"index": 1}) and journal.done == {0, 1, 2}
        journal.remove(lambda record: True)
        assert journal.done == set() and path.read_bytes() == b"".join(lines[:-3])
        assert journal.append({"index": 9})
    assert opened(path, header).done == {9} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_stop_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, stop):
    """Guards against: a file that is half replaced, a part of one left behind, and a journal that cannot go on."""
    path = tmp_path / "a.jsonl"
    before = write(path)

    def stopped(*_):
        raise stop

    with opened(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped)
            with pytest.raises(type(stop), match="No space left|^$"):
                journal.remove(lambda record: record["index"] == 1)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
        assert journal.append({"index": 3})
    (tmp_path / ".a.jsonl.part").write_bytes(b"of a run that was killed before the rename")
    with opened(path) as journal:
        journal.remove(lambda record: record["index"] == 3)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_whole_file_can_be_replaced(tmp_path):
    """Guards against: keys of the old content, or a link that is replaced by a file."""
    path, link = tmp_path / "a.jsonl", tmp_path / "link"
    write(path)
    link.symlink_to(path)
    with opened(link) as journal:
        journal.replace(b'{"index": 5}\n')
        assert journal.done == {5} and journal.append({"index": 6})
    assert link.is_symlink() and path.read_bytes() == b'{"index": 5}\n{"index": 6}\n'


def test_records_that_could_not_be_read_again_are_refused(tmp_path):
    """Guards against: a line that the next run takes for another program's; a key that is missing; a value that JSON
    does not have."""
    path = tmp_path / "a.jsonl"
    with opened(path) as journal:
        for record, error in (({"text": "", "index": 1}, ValueError), ({}, ValueError), ({"index": {1}}, TypeError)):
            with pytest.raises(error):
                journal.append(record)
        journal.append({"index": 0})
        assert not journal.append({"index": 0}), "the key is unique"
        journal.close()
        journal.close()
    assert path.read_bytes() == b'{"index": 0}\n'


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 2}}) == "a.b"
    assert first_difference({"a": 1, "c": 2}, {"a": 1}) == "c"
    assert first_difference({"a": None}, {}) == "a"
    assert first_difference([], {}) == "header" and first_difference({"a": 1}, {"a": {"b": 1}}) == "a"
