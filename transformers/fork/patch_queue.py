"""The queue of our changes as files: the pinned release, the patches and the overlay in `fork/`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

# The parts of the source distribution that an installation needs.
KEEP = ("LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py", "src")
SERIES_HEAD = "# The patches in the order in which they are applied. Written by `materialise.py export`.\n"
FIELDS = ("Subject", "Why-not-outside", "Fails-without")


class ForkError(Exception):
    """A fault of the queue or the tree, one line per problem."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Patch:
    """One file of `patches/`.

    Attributes:
        name: the name of the file.
        header: the lines before the diff: `Subject:`, a description and the other fields.
        diff: the diff, without context lines.
    """

    name: str
    header: str
    diff: bytes

    @classmethod
    def parse(cls, name: str, content: bytes) -> "Patch":
        """Split the content of a patch file into header and diff."""
        header, mark, rest = (b"\n" + content).partition(b"\ndiff --git ")
        return cls(name, header.decode("utf-8", "replace").strip(), mark[1:] + rest)

    @property
    def fields(self) -> dict[str, str]:
        """The `Field: value` lines of the header."""
        return dict(re.findall(r"^([A-Z][A-Za-z-]*):[ \t]*(\S.*)$", self.header, re.MULTILINE))

    @property
    def message(self) -> str:
        """The commit message: the header without the name of its first field."""
        subject, _, body = self.header.partition("\n")
        return f"{subject.removeprefix('Subject:').strip()}\n\n{body.strip()}\n"

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self.header.encode() + b"\n\n" + self.diff

    @property
    def blobs(self) -> list[bytes]:
        """For each changed file a line with the git ids of its content before and after."""
        return re.findall(rb"^index [0-9a-f]{40}\.\.[0-9a-f]{40}", self.diff, re.MULTILINE)

    def problems(self) -> list[str]:
        """Return a line about the fields that the header lacks, if any."""
        missing = [field for field in FIELDS if field not in self.fields]
        if not self.header.startswith("Subject:") and "Subject" not in missing:
            missing.insert(0, "Subject (on the first line)")
        return [f"{self.name}: the header lacks {', '.join(missing)}"] if missing else []


@dataclass(frozen=True)
class Queue:
    """Everything that decides the content of the tree.

    Attributes:
        upstream: the pinned release: `name`, `version` and `sha256`.
        patches: in the order of application.
        overlay: contents of our own files by path.
    """

    upstream: dict[str, str]
    patches: tuple[Patch, ...]
    overlay: dict[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of `fork/` that stand for the patches and the overlay, by path."""
        series = SERIES_HEAD + "".join(f"{patch.name}\n" for patch in self.patches)
        patches = {f"patches/{patch.name}": patch.content for patch in self.patches}
        return {"series": series.encode(), **patches, **{f"overlay/{p}": c for p, c in self.overlay.items()}}

    @property
    def fingerprint(self) -> str:
        """A hash of the pinned release, the patches and the overlay."""
        parts = (sorted(self.upstream.items()), KEEP, sorted(self.files.items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __str__(self) -> str:
        release = f"{self.upstream['name']} {self.upstream['version']}"
        return f"{release}, {len(self.patches)} patches, {len(self.overlay)} overlay files"


def read_upstream(fork: Path) -> dict[str, str]:
    """Read the `key = "value"` lines of `upstream.toml`; Python 3.10 has no TOML reader."""
    try:
        text = (fork / "upstream.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ForkError("upstream.toml is missing") from None
    values = dict(re.findall(r'^(\w+) = "([^"\n]*)"\s*$', text, re.MULTILINE))
    if missing := [key for key in ("name", "version", "sha256") if not values.get(key)]:
        raise ForkError(f"upstream.toml lacks {', '.join(missing)}")
    return values


def read_queue(root: Path) -> Queue:
    """Read the queue from `root/fork`.

    Raises:
        ForkError: a patch that is listed but missing, present but not listed, listed twice, or without its fields.
    """
    fork = root / "fork"
    upstream = read_upstream(fork)
    lines = (fork / "series").read_text(encoding="utf-8").splitlines() if (fork / "series").exists() else []
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    present = {path.name for path in (fork / "patches").glob("*")}
    problems = [f"{name}: listed twice in series" for name in sorted(set(listed)) if listed.count(name) > 1]
    problems += [f"{name}: listed in series, but not in patches/" for name in listed if name not in present]
    problems += [f"{name}: in patches/, but not listed in series" for name in sorted(present - set(listed))]
    patches = [Patch.parse(name, (fork / "patches" / name).read_bytes()) for name in listed if name in present]
    problems += [line for patch in patches for line in patch.problems()]
    if problems:
        raise ForkError(*problems)
    files = [path for path in (fork / "overlay").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    overlay = {path.relative_to(fork / "overlay").as_posix(): path.read_bytes() for path in sorted(files)}
    return Queue(upstream, tuple(patches), overlay)
