"""Check, hash and atomically write files; no torch::

path = check_file("photo.jpg")           # a regular, readable file, or one clear ValueError
write_json(Path("out/report.json"), {"n": 3})
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

# One slash is enough: pathlib has dropped the second slash of "https://" by the time a Path is checked.
_URL = re.compile(r"[A-Za-z][\w+.-]+:/|data:")


def check_file(source: str | Path) -> Path:
    """Return the path of a regular, readable, non-empty file.

    Raises:
        ValueError: a URL, no such file, or anything that is not such a file, in one line.
    """
    if _URL.match(str(source)):
        raise ValueError(f"only files are read, not URLs: {str(source)[:200]}")
    path = Path(source)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a folder without access, a null byte
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"cannot read {path}: Permission denied")
    if status.st_size == 0:
        raise ValueError(f"{path} is empty")
    return path


def sha256(files: Iterable[Path]) -> str:
    """Return the SHA-256 over the contents of files, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name, sync it, and rename it: a file of that name is always whole.

    Raises:
        OSError: the folder cannot be written, or the disk is full; a file that was there is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's list of files, so that a file created or renamed there outlives a power cut."""
    with suppress(OSError):  # some network file systems have no such step
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically. NaN and infinity raise ValueError."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, remedy: str) -> Any:
    """Return the document of a JSON file.

    Args:
        path: of the file.
        remedy: what to do when the file is missing or damaged, for the error message.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path} is missing or damaged: {remedy}") from None
