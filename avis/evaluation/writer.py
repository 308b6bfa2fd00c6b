"""A results file: JSONL while it is measured, sorted and packed when it is complete.

While a run is under way, `dev.jsonl` has a header and one synced line an example. The last process packs it as
`dev.jsonl.gz`, with the same bytes for the same records.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from avis.files import write_atomically
from avis.journal import Journal, first_difference

VERSION = 2  # of the header; 0.1 wrote none
_REMEDY = "move it away, or choose another --out"

Key = tuple[str, int]  # source and item of a record


class ResultWriter:
    """A results file under way. Any number of processes may write to it; each line is whole, and there once."""

    def __init__(self, path: Path, config: dict[str, Any], environment: dict[str, Any]):
        """Open the file, and take up what an earlier run has left, packed or not.

        Args:
            path: ends with .jsonl.gz; the lines are beside it, without .gz, until they are packed.
            config: what the numbers depend on; an earlier run's must be the same.
            environment: the command and the machine; an earlier run's may differ.

        Raises:
            ValueError: the file was measured with another configuration or by AVIS 0.1, or is something else.
            OSError: it cannot be written.
        """
        if not path.name.endswith(".jsonl.gz"):
            raise ValueError(f"--out ends with .jsonl.gz, got {path}")
        self.packed, self._environment, self._has_added = path, environment, False
        lines = path.with_suffix("")
        header = {"version": VERSION, "config": config, "environment": environment}
        content = b""
        if lines.exists():
            with lines.open("rb") as file:
                first = file.readline()
            if first.endswith(b"\n"):
                _check_header(lines, first, header)
        elif path.exists():
            content = _unpack(path)
            _check_header(path, content, header)
        self._journal = Journal(
            lines,
            header,
            key=_record_key,
            remedy=_REMEDY,
            is_shared=True,
            unchecked=["environment"],
            content=content,
        )

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *_) -> None:
        self._journal.close()

    def has(self, source: str, index: int) -> bool:
        """Return whether an example has been measured."""
        return (source, index) in self._journal.done

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, unless another process has written this example's meanwhile.

        Raises:
            OSError: it cannot be written, or a run of fewer examples has packed the file.
        """
        if self._journal.append(record):
            self._has_added = True

    def pack(self, wanted: set[Key]) -> int | None:
        """Pack the lines in the order of their examples, the same bytes every time, when all wanted ones are there.

        A run that has added examples to an earlier one's writes its own command, where that measures them all.

        Returns:
            The number of examples in the packed file; None: some are missing, and it is not packed.
        """
        with self._journal.locked():
            done = self._journal.done
            if not wanted <= done:
                return None
            if self._journal.is_there():  # else another process has packed it
                header = dict(self._journal.header or {})
                if self._has_added and done <= wanted:
                    header["environment"] = self._environment
                records = sorted(self._journal.records(), key=_record_key)
                data = b"".join(
                    json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in [header, *records]
                )
                write_atomically(self.packed, gzip.compress(data, mtime=0))
                self._journal.path.unlink()
            return len(done)


def _record_key(record: dict[str, Any]) -> Key:
    return record["source"], record["item"]


def _unpack(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError):
        raise ValueError(f"{path} is damaged, or not a file of results: {_REMEDY}") from None


def _check_header(path: Path, data: bytes, wanted: dict[str, Any]) -> None:
    """Refuse lines that begin with another run's header, before anything is written."""
    try:
        header = json.loads(data.partition(b"\n")[0])
        version, config = header.get("version"), header["config"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged, or not a file of results: {_REMEDY}") from None
    if version != VERSION:
        raise ValueError(f"{path} was measured by AVIS 0.1, whose settings have other names: {_REMEDY}")
    differing = first_difference(config, json.loads(json.dumps(wanted["config"])))
    if differing:
        raise ValueError(f"{path} was measured with another {differing}: {_REMEDY}")
