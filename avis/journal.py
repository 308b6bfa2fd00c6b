"""Write results that outlive a kill: JSONL, one synced line a record, resumed where it stopped::

    with Journal(Path("answers.jsonl"), {"config": config}, key=lambda record: record["index"]) as journal:
        for index in range(100):
            if index not in journal.done:
                journal.append({"index": index, "answer": ask(index)})

Needs no torch.
"""

import fcntl
import json
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avis.files import sync_folder

Record = dict[str, Any]
_BLOCK = 2**20  # bytes read at a time


class Journal:
    """An append-only file of records under a lock.

    A last line that a kill has torn is cut off on opening. The file of another program is left as it is. Only the
    records' keys are in memory.

    Attributes:
        path: of the file.
        header: the first line's object, as it is in the file; None: the file has no header.
        done: keys of the records in the file.
    """

    def __init__(
        self,
        path: Path,
        header: Record | None = None,
        *,
        key: Callable[[Record], Hashable],
        line_start: str = "{",
        remedy: str = "choose another file",
        is_shared: bool = False,
        on_found: Callable[[Record], None] | None = None,
        unchecked: Collection[str] = (),
        content: bytes = b"",
    ):
        """Open or create the file and its folder, and read what an earlier run has left.

        Args:
            path: of the file.
            header: what the records depend on, JSON-ready: written as the first line. None for files without a header.
            key: of a record, unique in the file.
            line_start: how every record's line begins. Files whose lines begin otherwise are another program's.
            remedy: what to do about a file that cannot be resumed, for error messages.
            is_shared: any number of processes may append, each record once; else one process has the file at a time.
            on_found: called in order with each record that is found in the file, not with those appended here. When it
                raises ValueError, the file is refused and left as it is.
            unchecked: parts of the header in which an earlier run may differ.
            content: whole lines, header included, that a new file begins with in place of the header alone.

        Raises:
            ValueError: the file belongs to another program or another run, is damaged, or another process has it.
            OSError: it cannot be written.
        """
        self.path, self.header, self.done = path, header, set[Hashable]()
        self._header_line = b"" if header is None else _encode(header)
        self._key, self._line_start, self._remedy = key, line_start.encode(), remedy
        self._is_shared, self._on_found, self._unchecked = is_shared, on_found, frozenset(unchecked)
        self._end, self._lines = 0, 0  # of what has been read and is whole
        self._fd = self._open_locked()
        try:
            self._catch_up()
            if content and not self._lines:
                self._replace_by([content])  # all of it or nothing
                self._catch_up()
            elif header is not None and not self._lines:
                self._write(self._header_line)
            if is_shared:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which ends the lock. Closing it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def records(self) -> Iterator[Record]:
        """Yield the records in the file, in order, without its header. Records may be appended meanwhile."""
        for number, (_, line) in enumerate(self._read_lines(0, self._end)):
            if number or self.header is None:
                yield json.loads(line)

    def append(self, record: Record) -> bool:
        """Write one record, whole and synced, or nothing of it.

        Args:
            record: JSON-ready.

        Returns:
            False when the file has a record of the same key: another process has written it meanwhile.

        Raises:
            OSError: it cannot be written, or the file was renamed or removed meanwhile.
        """
        line = _encode(record)
        if not line.startswith(self._line_start):
            raise ValueError(f"a record of {self.path} must begin with {self._line_start.decode()}")
        key = self._key(json.loads(line))
        with self.locked():
            if key in self.done:
                return False
            if not self.is_there():
                raise OSError(f"{self.path} was moved or completed by another run: the same command resumes")
            self._write(line)
            self.done.add(key)
            return True

    def remove(self, is_unwanted: Callable[[Record], bool]) -> None:
        """Replace the file, in one step, by one without the records for which `is_unwanted` holds.

        Raises:
            OSError: the new file cannot be written; the old one is still there.
        """
        with self.locked():
            unwanted: dict[int, Hashable] = {}  # by place
            for number, (place, line) in enumerate(self._read_lines(0, self._end)):
                if number or self.header is None:
                    record = json.loads(line)
                    if is_unwanted(record):
                        unwanted[place] = self._key(record)
            if unwanted:
                lines = self._read_lines(0, self._end)
                self._replace_by(line for place, line in lines if place not in unwanted)
                self._end = os.fstat(self._fd).st_size
                self._lines -= len(unwanted)
                self.done.difference_update(unwanted.values())

    def replace(self, data: bytes) -> None:
        """Replace the whole content, in one step; a reader sees the old file or the new one.

        Raises:
            OSError: the new file cannot be written; the old one is still there.
        """
        with self.locked():
            self._replace_by([data])
            self._end, self._lines, self.done = 0, 0, set()
            self._catch_up()

    def _open_locked(self) -> int:
        """Open or create the file and lock it. A file that was replaced between the two steps is opened again."""
        while True:
            try:
                if self.path.exists() and not self.path.is_file():
                    raise ValueError(f"{self.path} is not a regular file")
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise OSError(f"cannot write {self.path}: {error.strerror}") from None
            try:
                self._lock(fd)
                if _is_at(self.path, fd):
                    if not os.fstat(fd).st_size:
                        sync_folder(self.path.parent)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if self._is_shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing to {self.path}") from None
        except OSError as error:  # some network file systems
            raise OSError(f"cannot lock {self.path}: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, having read all that is in the file. Not to be nested: `append` takes it, too."""
        if self._is_shared:
            self._lock(self._fd)
        try:
            self._catch_up()
            yield
        finally:
            if self._is_shared:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_there(self) -> bool:
        """Return whether the path still names this file: another process may have renamed or removed it."""
        return _is_at(self.path, self._fd)

    def _read_lines(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (place, line) of the lines between two places.

        It reads through a descriptor and at places of its own: the file may be appended to or replaced meanwhile.
        """
        fd = os.dup(self._fd)
        try:
            place, rest = start, b""
            while place < end and (block := os.pread(fd, min(_BLOCK, end - place), place)):
                place += len(block)
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield start, line + b"\n"
                    start += len(line) + 1
            if rest:
                yield start, rest
        finally:
            os.close(fd)

    def _catch_up(self) -> None:
        """Read the lines since the last look, and cut off a torn one: under the lock nobody else is writing."""
        size = os.fstat(self._fd).st_size
        if size < self._end:
            raise OSError(f"{self.path} was cut by another program: the same command resumes")
        if size == self._end:
            return
        for start, line in self._read_lines(self._end, size):
            is_header = self.header is not None and not self._lines
            self._check_start(line, is_header)
            if not line.endswith(b"\n"):
                os.ftruncate(self._fd, start)
                return
            self._take(line, is_header)
            self._end = start + len(line)

    def _check_start(self, line: bytes, is_header: bool) -> None:
        """Refuse a line that is not a journal's. The start of a torn line is enough, for a header only our own's."""
        if is_header:
            is_ours = line.startswith(b"{") if line.endswith(b"\n") else self._header_line.startswith(line)
        else:
            is_ours = line.startswith(self._line_start) or self._line_start.startswith(line)
        if not is_ours:
            raise ValueError(f"{self.path} is another program's file (line {self._lines + 1}): {self._remedy}")

    def _take(self, line: bytes, is_header: bool) -> None:
        """Take note of a whole line of the file. Raises ValueError when it is not one of this journal."""
        place = f"{self.path} line {self._lines + 1}"
        try:
            value = json.loads(line)
            if is_header:
                self._check_header(value)
            else:
                key = self._key(value)
                if key in self.done:
                    raise ValueError(f"{place} repeats an earlier record: {self._remedy}")
                if self._on_found is not None:
                    self._on_found(value)
                self.done.add(key)
        except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{place} is damaged: {self._remedy}") from None
        self._lines += 1

    def _check_header(self, found: Any) -> None:
        """Refuse a file whose header differs from this run's, naming the first part that does."""
        wanted = json.loads(self._header_line)
        checked = {name: value for name, value in found.items() if name not in self._unchecked}
        differing = first_difference(checked, {name: wanted[name] for name in wanted if name not in self._unchecked})
        if differing:
            raise ValueError(f"{self.path} was made with another {differing}: {self._remedy}")
        self.header = found

    def _write(self, line: bytes) -> None:
        """Append a whole line to a file that ends where it was read to."""
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except BaseException as error:
            os.ftruncate(self._fd, self._end)
            if isinstance(error, OSError):
                state = f"its {len(self.done)} records are complete, and the same command resumes"
                raise OSError(f"cannot write {self.path}: {error.strerror}; {state}") from None
            raise
        self._lines += 1
        self._end += len(line)

    def _replace_by(self, parts: Iterable[bytes]) -> None:
        """Write a locked file beside this one, rename it over this one, and use it from now on."""
        target = self.path.resolve()  # a link stays a link
        beside = target.with_name(f".{target.name}.part")
        fd = -1
        try:
            fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
            for part in parts:
                _write_all(fd, part)
            os.fsync(fd)
            os.replace(beside, target)
        except BaseException as error:
            if fd != -1:
                os.close(fd)
                beside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OSError(f"cannot replace {self.path}: {error.strerror}; it is as it was") from None
            raise
        os.close(self._fd)
        self._fd = fd
        sync_folder(target.parent)


def first_difference(found: Any, wanted: Any, place: str = "") -> str | None:
    """Return the dotted name of the first part in which two JSON objects differ; None when they are equal."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return None if found == wanted else place or "header"
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        inside = f"{place}.{name}".lstrip(".")
        if name not in found or name not in wanted:
            return inside
        inner = first_difference(found[name], wanted[name], inside)
        if inner:
            return inner
    return None


def _encode(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"  # ASCII: a question may hold what UTF-8 has no form for


def _is_at(path: Path, fd: int) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
