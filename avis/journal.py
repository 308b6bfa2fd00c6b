"""The one writer of results that outlive a kill: JSONL, one synced line a record, resumed where it stopped::

    with Journal(Path("answers.jsonl"), {"config": config}, key=lambda record: record["index"]) as journal:
        for index in range(100):
            if index not in journal.done:
                journal.append({"index": index, "answer": ask(index)})

Needs no torch.
"""

import fcntl
import json
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """An append-only file of records under a lock.

    A last line that a kill has torn is cut off on opening. The file of another program is left as it is.

    Attributes:
        path: of the file.
        header: the first line's object; None: the file has no header.
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
    ):
        """Open or create the file and its folder, and read what an earlier run has left.

        Args:
            path: of the file.
            header: what the records depend on, JSON-ready: written as the first line. None for files without a header.
            key: of a record, unique in the file.
            line_start: how every line of such a file begins (the header's aside), which tells it from other files.
            remedy: what to do about a file that cannot be resumed, for error messages.
            is_shared: any number of processes may append, each record once; else one process has the file at a time.

        Raises:
            ValueError: the file belongs to another program or another run, is damaged, or another process has it.
            OSError: it cannot be written.
        """
        self.path, self.header, self.done = path, header, set[Hashable]()
        self._key, self._line_start, self._remedy, self._is_shared = key, line_start.encode(), remedy, is_shared
        self._end, self._lines = 0, 0  # of what has been read and is whole
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not is_shared:
                self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._locked():
                if header is not None and not self._lines:
                    self._write(header)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which ends the lock."""
        os.close(self._fd)

    def records(self) -> Iterator[Record]:
        """Yield the records in the file, in order, without its header."""
        for number, (_, line) in enumerate(self._spans(0, self._end)):
            if number or self.header is None:
                yield json.loads(line)

    def append(self, record: Record) -> bool:
        """Write one record, whole and synced, or nothing of it.

        Returns:
            False when another process has written a record of the same key meanwhile.

        Raises:
            OSError: it cannot be written, or the file was renamed or removed meanwhile.
        """
        with self._locked():
            if self._is_shared and self._key(record) in self.done:
                return False
            if not self._is_there():
                raise OSError(f"{self.path} was moved or completed by another run: the same command resumes")
            self._write(record)
            return True

    def remove(self, is_unwanted: Callable[[Record], bool]) -> None:
        """Replace the file, in one step, by one without the records for which `is_unwanted` holds."""
        kept = []
        with self._locked():
            for number, (_, line) in enumerate(self._spans(0, self._end)):
                is_header = self.header is not None and not number
                if is_header or not is_unwanted(json.loads(line)):
                    kept.append(line)
            if sum(map(len, kept)) < self._end:
                self.replace(b"".join(kept))

    def replace(self, data: bytes) -> None:
        """Replace the whole content, in one step; a reader sees the old file or the new one."""
        part = self.path.with_name(f".{self.path.name}.part")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _write_all(fd, data)
            os.replace(part, self.path)
        except BaseException:
            os.close(fd)
            part.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._end, self._lines, self.done = fd, 0, 0, set()
        self._catch_up()

    def _lock(self, flags: int) -> None:
        try:
            fcntl.flock(self._fd, flags)
        except OSError:
            raise ValueError(f"another run is writing to {self.path}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, having read all that is in the file."""
        if self._is_shared:
            self._lock(fcntl.LOCK_EX)
        try:
            self._catch_up()
            yield
        finally:
            if self._is_shared:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (place, line) of the lines between two places."""
        with open(os.dup(self._fd), "rb") as file:
            file.seek(start)
            while start < end:
                line = file.readline()
                yield start, line
                start += len(line)

    def _catch_up(self) -> None:
        """Read the lines since the last look, and cut off a torn one: under the lock nobody else is writing."""
        size = os.fstat(self._fd).st_size
        for start, line in self._spans(self._end, size):
            self._check_start(line)
            if not line.endswith(b"\n"):
                os.ftruncate(self._fd, start)
                return
            self._read(line)
            self._end = start + len(line)

    def _check_start(self, line: bytes) -> None:
        wanted = b'{"' if self.header is not None and not self._lines else self._line_start
        length = min(len(line), len(wanted))
        if line[:length] != wanted[:length]:
            raise ValueError(f"{self.path} is another program's file (line {self._lines + 1}): {self._remedy}")

    def _read(self, line: bytes) -> None:
        try:
            value = json.loads(line)
            if self._lines or self.header is None:
                self.done.add(self._key(value))
            else:
                self._check_header(value)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{self.path} line {self._lines + 1} is damaged: {self._remedy}") from None
        self._lines += 1

    def _check_header(self, found: Record) -> None:
        """Refuse a file whose header differs from ours, naming the first part that does."""
        wanted = json.loads(json.dumps(self.header))
        differing = first_difference(found, wanted)
        if differing:
            raise ValueError(f"{self.path} was made with another {differing}: {self._remedy}")

    def _write(self, record: Record) -> None:
        line = json.dumps(record).encode() + b"\n"  # ASCII: a question may hold what UTF-8 has no form for
        try:
            _write_all(self._fd, line)
        except BaseException as error:
            os.ftruncate(self._fd, self._end)
            if isinstance(error, OSError):
                reason = f"cannot write {self.path}: {error.strerror}; its {len(self.done)} records are complete"
                raise OSError(f"{reason}, and the same command resumes") from None
            raise
        self._read(line)
        self._end += len(line)


def first_difference(found: Any, wanted: Any, place: str = "") -> str | None:
    """Return the dotted name of the first part in which two JSON objects differ; None when they are equal."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return None if found == wanted else place or "header"
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if name not in found or name not in wanted:
            return f"{place}.{name}".lstrip(".")
        inner = first_difference(found[name], wanted[name], f"{place}.{name}".lstrip("."))
        if inner:
            return inner
    return None


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)
