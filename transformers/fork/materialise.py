"""Make the patched Transformers tree around this folder, from a pinned release and our own changes.

    python transformers/fork/materialise.py apply     # make the tree; cheap to repeat, heals an interrupted run
    python transformers/fork/materialise.py export    # write this folder from the tree's commits
    python transformers/fork/materialise.py check     # fail when the tree and this folder differ

Git tracks this folder only: `upstream.toml` (the pinned source distribution), `series` and `patches/` (changes of
upstream's files, in order) and `overlay/` (files that upstream does not have). `apply` makes the rest of
`transformers/` as a git history of its own: one commit `upstream`, one per patch, one `overlay`. docs/fork.md describes
how to edit it.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from history import (
    changed_paths,
    commit,
    git,
    head,
    list_paths,
    read_commit,
    read_stamp,
    read_tree,
    refuse_uncommitted,
    write_stamp,
)
from patch_queue import KEEP, ForkError, Patch, Queue, read_queue

# Files of an editable install and of a running Python are never part of the history.
EXCLUDE = "/fork/\n__pycache__/\n*.egg-info/\n/build/\n"


# ---- apply -------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the hash of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(upstream: dict[str, str], folder: Path) -> Path:
    """Download the source distribution with pip, which checks the hash before it runs anything in it."""
    requirement = folder / "requirement.txt"
    requirement.write_text("{name}=={version} --hash=sha256:{sha256}\n".format(**upstream), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", upstream["name"]]
    result = subprocess.run([*pip, "-d", str(folder), "-r", str(requirement)], capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["pip printed no reason"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise ForkError("cannot download {name} {version}: ".format(**upstream) + reason)
    return next(folder.glob("*.tar.gz"))


def get_archive(upstream: dict[str, str], cache: Path, scratch: Path) -> Path:
    """Return the pinned source distribution, from the cache or downloaded into it."""
    cached = cache / "{name}-{version}.tar.gz".format(**upstream)
    if not cached.exists() or sha256(cached) != upstream["sha256"]:
        archive = download(upstream, scratch)
        if sha256(archive) != upstream["sha256"]:
            raise ForkError(f"{cached.name} has sha256 {sha256(archive)}, not the one that upstream.toml pins")
        os.replace(archive, cached)
    return cached


def unpack(archive: Path, tree: Path) -> None:
    """Unpack the kept part of a source distribution: plain files with plain modes only."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[1:]
            is_kept = member.isfile() and parts and parts[0] in KEEP and ".." not in parts
            if is_kept and not any(part.endswith(".egg-info") for part in parts):
                path = tree.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
                path.chmod(0o755 if member.mode & 0o100 else 0o644)


def build(queue: Queue, archive: Path, tree: Path) -> None:
    """Make the whole tree, its history and its stamp in an empty folder."""
    unpack(archive, tree)
    git(tree, "init", "-q", "--template=", "--initial-branch=main", "--object-format=sha1")
    git(tree, "config", "core.autocrlf", "false")  # for later edits by a user with other settings
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/exclude").write_text(EXCLUDE, encoding="utf-8")
    base = commit(tree, "upstream\n")
    theirs = list_paths(tree, base)
    for patch in queue.patches:
        apply_patch(tree, patch, theirs)
    if clash := sorted(theirs & set(queue.overlay)):
        raise ForkError(*(f"overlay/{path}: upstream has this file; it takes a patch" for path in clash))
    for path, content in queue.overlay.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    if queue.overlay:
        commit(tree, "overlay\n")
    write_stamp(tree, head=head(tree), base=base, sha256=queue.upstream["sha256"], queue=queue.fingerprint)


def apply_patch(tree: Path, patch: Patch, theirs: set[str]) -> None:
    """Apply and commit one patch.

    A hunk without context changes other lines without an error when the text differs. The contents before and after
    must therefore be those that the patch was exported from.
    """
    try:
        git(tree, "apply", "--unidiff-zero", "--index", "--whitespace=nowarn", "-", stdin=patch.diff)
    except ForkError as error:
        raise ForkError(f"{patch.name}: does not apply: {error}") from None
    commit_id = commit(tree, patch.message)
    if added := sorted(changed_paths(tree, commit_id) - theirs):
        raise ForkError(f"{patch.name}: {added[0]} is not upstream's; new files belong in overlay/")
    if read_commit(tree, commit_id, 0).blobs != patch.blobs:
        raise ForkError(f"{patch.name}: was not exported from this release and the patches before it")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def swap(root: Path, staged: Path, scratch: Path) -> None:
    """Replace the old tree by the staged one: `.git` is removed first and added last."""
    if (root / ".git").exists():
        os.replace(root / ".git", scratch / "old.git")
    for old in sorted(root.iterdir()):
        if old.name != "fork":
            remove(old)
    for new in sorted(staged.iterdir(), key=lambda path: path.name == ".git"):
        os.replace(new, root / new.name)


def refuse_to_destroy(root: Path, marker: Path) -> None:
    """Raise ForkError when a new tree would destroy files or commits that only the old tree has."""
    if not (root / ".git").exists():
        strangers = sorted(path.name for path in root.iterdir() if path.name != "fork")
        if strangers and not marker.exists():
            raise ForkError(f"transformers/{strangers[0]} was not made by apply: move it away")
        return
    stamp = read_stamp(root)
    refuse_uncommitted(root)
    if not stamp["queue"]:
        raise ForkError("an export was interrupted: run export again")
    if head(root) != stamp["head"]:
        raise ForkError(
            "the tree has commits that fork/ lacks: export them, "
            f"or discard them with git -C transformers reset --hard {stamp['head'][:12]}"
        )


def apply(root: Path) -> str:
    """Make the tree around `root/fork` unless it is up to date, and return a line that says which.

    The marker file exists while trees are swapped. A tree without `.git` beside the marker is the rest of an
    interrupted run, and nothing in it has to be preserved.

    Raises:
        ForkError: the queue is faulty, or a new tree would destroy edits.
    """
    cache = root / "fork/.cache"
    cache.mkdir(exist_ok=True)
    scratch, marker = cache / "scratch", cache / "swapping"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove(scratch)
        if (root / ".git").exists():
            remove(marker)
        refuse_to_destroy(root, marker)
        queue = read_queue(root)
        if (root / ".git").exists() and read_stamp(root)["queue"] == queue.fingerprint:
            return f"up to date: {queue}"
        staged = scratch / "tree"
        staged.mkdir(parents=True)
        build(queue, get_archive(queue.upstream, cache, scratch), staged)
        marker.touch()
        swap(root, staged, scratch)
        remove(marker)
        remove(scratch)
    return f"made: {queue}"


# ---- export and check --------------------------------------------------------------------------------------


def export(root: Path) -> str:
    """Write `series`, `patches/` and `overlay/` from the tree's commits, and return a line that says so.

    Raises:
        ForkError: the commits cannot be exported, or `fork/` has changed since the tree was made; nothing is written.
    """
    queue, stamp = read_tree(root), read_stamp(root)
    if stamp["queue"] and stamp["queue"] != read_queue(root).fingerprint:
        raise ForkError("fork/ was changed since the tree was made: put that aside, export, then merge it")
    write_stamp(root, **{**stamp, "queue": ""})  # after an interruption from here on, only export can run
    for folder in ("patches", "overlay"):
        remove(root / "fork" / folder)
    for name, content in queue.files.items():
        path = root / "fork" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_stamp(root, **{**stamp, "queue": queue.fingerprint, "head": head(root)})
    return f"exported: {queue}"


def check(root: Path) -> str:
    """Compare the tree with `fork/` and look for faults, change nothing, and return a line about the comparison."""
    queue = read_queue(root)
    problems = [line for patch in queue.patches for line in missing_tests(patch, root.parent)]
    has_tree = (root / ".git").exists()
    if has_tree:
        problems += differences(root, queue)
    if problems:
        raise ForkError(*problems)
    return f"{'tree and queue agree' if has_tree else 'the queue is sound; no tree yet to compare with'}: {queue}"


def missing_tests(patch: Patch, repository: Path) -> list[str]:
    """Return a line for each test that the patch's header names and the repository lacks."""
    problems = []
    for name in patch.fields["Fails-without"].split(","):
        path, _, test = name.strip().partition("::")
        function = test.rpartition("::")[2].partition("[")[0]
        file = repository / path
        if not (function and file.is_file() and f"def {function}(" in file.read_text(encoding="utf-8")):
            problems.append(f"{patch.name}: Fails-without names {name.strip()}, which does not exist")
    return problems


def differences(root: Path, queue: Queue) -> list[str]:
    """Return a line for each file of `fork/` that export would write differently."""
    try:
        want = read_tree(root).files
    except ForkError as error:
        return str(error).splitlines()
    have = {**queue.files, "series": (root / "fork/series").read_bytes()}
    problems = [f"{name}: only in fork/, not in the tree" for name in sorted(have.keys() - want.keys())]
    problems += [f"{name}: only in the tree, not in fork/" for name in sorted(want.keys() - have.keys())]
    common = sorted(want.keys() & have.keys())
    return problems + [f"{name}: differs from the tree" for name in common if want[name] != have[name]]


# ---- Command line ------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str):
        self.exit(2, f"materialise.py: {message}\n")


def main(argv: list[str], root: Path) -> int:
    """Run one command on the tree `root`, the folder around `fork/`, and return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"apply": apply, "export": export, "check": check}
    parser.add_argument("command", choices=commands)
    command = parser.parse_args(argv).command
    try:
        print(commands[command](root))
    except (ForkError, OSError) as error:
        for problem in str(error).splitlines():
            print(f"materialise.py {command}: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parents[1]))
