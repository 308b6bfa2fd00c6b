# Longer than the bound: the issue about two bases halves it, and moves what it does with git to git's own commands.
"""Makes the patched Transformers tree around this folder from a pinned release and our own changes.

Kept in git is this folder only: `upstream.toml` (the pinned source distribution), `series` and
`patches/` (changes to upstream's files, in order) and `overlay/` (files that upstream does not have).
`apply` makes the rest of `transformers/` from them, as a small git history of its own: one commit
`upstream`, one per patch, one `overlay`.

    python transformers/fork/materialise.py apply

Edit in five steps:
  1. apply                  makes the tree; re-running is cheap, and heals an interrupted run
  2. edit files in transformers/src, run the tests
  3. commit there           git -C transformers commit: a new commit, or amend/rebase an older one.
                            Changes to upstream's files need a message of this form:
                                <what it does, one line>

                                Why-not-outside: <why it cannot live in our own files>
                                Fails-without: tests/<file>.py::<test>
                            Files that upstream lacks go into commits of their own, any message.
  4. export                 writes series, patches/ and overlay/ from those commits
  5. check                  fails on drift between the tree and this folder; then commit this folder

Moving to another release: export, move `transformers/.git` away, empty `series` and `patches/`, edit
`upstream.toml`, remove the old tree, apply; then fetch the old history and `git cherry-pick` its patch
commits (a real three-way merge), and export.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

# What is taken from the source distribution; its test helpers are not needed to build or to run.
KEEP = ("LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py", "src")
# What an editable install and a running Python leave in the tree; never part of its history.
EXCLUDE = "/fork/\n__pycache__/\n*.egg-info/\n/build/\n"
SERIES_HEAD = "# The patches in the order in which they are applied. Written by `materialise.py export`.\n"
FIELDS = ("Subject", "Why-not-outside", "Fails-without")
# Fixed, so that the same queue always makes the same commit ids.
WHO = {"NAME": "fork", "EMAIL": "fork@avis.invalid", "DATE": "2026-01-16T12:00:00+0000"}
IDENTITY = {f"GIT_{role}_{key}": WHO[key] for role in ("AUTHOR", "COMMITTER") for key in WHO}
# Nobody's git settings may change a byte of what is made here.
SETTINGS = {
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.excludesFile": os.devnull,
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
DIFF = (
    "diff-tree -r -p -U0 --no-commit-id --no-renames --full-index --no-color --no-ext-diff --no-textconv "
    "--diff-algorithm=myers --no-indent-heuristic --inter-hunk-context=0 --src-prefix=a/ --dst-prefix=b/"
).split()


class ForkError(Exception):
    """What is wrong with the queue or the tree: one line per problem."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Patch:
    """One file of `patches/`: a header, and a diff without context lines."""

    name: str
    header: str
    diff: bytes

    @property
    def fields(self) -> dict[str, str]:
        """The header's `Field: value` lines."""
        return dict(re.findall(r"^([A-Z][A-Za-z-]*):[ \t]*(\S.*)$", self.header, re.MULTILINE))

    @property
    def message(self) -> str:
        """The commit message: the header, its subject without the field's name."""
        subject, _, body = self.header.partition("\n")
        return f"{subject.removeprefix('Subject:').strip()}\n\n{body.strip()}\n"

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self.header.encode() + b"\n\n" + self.diff

    @property
    def blobs(self) -> dict[str, tuple[str, str]]:
        """Per changed file the git ids of its content before and after."""
        pattern = rb"^diff --git a/(.+) b/\1\n(?:[a-z].*\n)*?index ([0-9a-f]{40})\.\.([0-9a-f]{40})"
        found = re.findall(pattern, self.diff, re.MULTILINE)
        return {path.decode(): (old.decode(), new.decode()) for path, old, new in found}

    def problems(self) -> list[str]:
        """Lines that say what the header lacks."""
        missing = [field for field in FIELDS if field not in self.fields]
        if not self.header.startswith("Subject:") and "Subject" not in missing:
            missing.insert(0, "Subject (on the first line)")
        return [f"{self.name}: the header lacks {', '.join(missing)}"] if missing else []


@dataclass(frozen=True)
class Queue:
    """What `fork/` holds: the pinned release, the patches in order, the overlay's files by path."""

    upstream: dict[str, str]
    patches: tuple[Patch, ...]
    overlay: dict[str, bytes]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what the tree looks like."""
        parts = [repr((sorted(self.upstream.items()), KEEP)).encode()]
        parts += [part for patch in self.patches for part in (patch.name.encode(), patch.content)]
        parts += [part for path, content in sorted(self.overlay.items()) for part in (path.encode(), content)]
        return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()

    @property
    def files(self) -> dict[str, bytes]:
        """The files that stand for the patches and the overlay, by path inside `fork/`."""
        series = SERIES_HEAD + "".join(f"{patch.name}\n" for patch in self.patches)
        patches = {f"patches/{patch.name}": patch.content for patch in self.patches}
        return {"series": series.encode(), **patches, **{f"overlay/{p}": c for p, c in self.overlay.items()}}

    def __str__(self) -> str:
        release = f"{self.upstream['name']} {self.upstream['version']}"
        return f"{release}, {len(self.patches)} patches, {len(self.overlay)} overlay files"


# ---------------------------------------------------------------- fork/, read from disk


def read_upstream(fork: Path) -> dict[str, str]:
    """Read `upstream.toml`. Python 3.10 has no TOML reader; the file keeps to `key = "value"` lines.

    Raises ForkError when the file or one of its three keys is missing.
    """
    try:
        text = (fork / "upstream.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ForkError("upstream.toml is missing") from None
    values = dict(re.findall(r'^(\w+) = "([^"\n]*)"\s*$', text, re.MULTILINE))
    missing = [key for key in ("name", "version", "sha256") if not values.get(key)]
    if missing:
        raise ForkError(f"upstream.toml lacks {', '.join(missing)}")
    return values


def parse_patch(name: str, content: bytes) -> Patch:
    """Split a patch file into header and diff."""
    header, mark, rest = (b"\n" + content).partition(b"\ndiff --git ")
    return Patch(name, header.decode("utf-8", "replace").strip(), mark[1:] + rest)


def read_queue(root: Path) -> Queue:
    """Read and lint `root/fork`.

    Raises ForkError, one line per problem: a listed patch that is missing, a patch file that is not
    listed or is listed twice, a header without its fields.
    """
    fork = root / "fork"
    upstream = read_upstream(fork)
    lines = (fork / "series").read_text(encoding="utf-8").splitlines() if (fork / "series").exists() else []
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    present = {path.name for path in (fork / "patches").glob("*")}
    problems = [f"{name}: listed twice in series" for name in sorted(set(listed)) if listed.count(name) > 1]
    problems += [f"{name}: listed in series, but not in patches/" for name in listed if name not in present]
    problems += [f"{name}: in patches/, but not listed in series" for name in sorted(present - set(listed))]
    patches = [parse_patch(n, (fork / "patches" / n).read_bytes()) for n in listed if n in present]
    problems += [line for patch in patches for line in patch.problems()]
    if problems:
        raise ForkError(*problems)
    return Queue(upstream, tuple(patches), read_overlay(fork / "overlay"))


def read_overlay(folder: Path) -> dict[str, bytes]:
    """The overlay's files by path, without the leavings of a Python that ran there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---------------------------------------------------------------- the tree and its git history


def git(tree: Path, *args: str, stdin: bytes | None = None) -> bytes:
    """Run git on `tree/.git` and on nothing else; returns its output.

    Raises ForkError with git's own last line when it fails.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env.update(IDENTITY, GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, LC_ALL="C")
    settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = ["git", *settings, "--git-dir=.git", "--work-tree=.", *args]
    try:
        done = subprocess.run(command, cwd=tree, env=env, input=stdin, capture_output=True)
    except FileNotFoundError:
        raise ForkError("git is not installed") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ForkError(f"git {args[0]}: {said[-1]}")
    return done.stdout


def commit(tree: Path, message: str) -> str:
    """Commit everything in `tree`; returns the commit's id."""
    git(tree, "add", "--all")
    git(tree, "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-", stdin=message.encode())
    return head(tree)


def head(tree: Path) -> str:
    """The id of the commit that is checked out."""
    return git(tree, "rev-parse", "HEAD").decode().strip()


def listing(tree: Path, treeish: str) -> set[str]:
    """The paths of a commit."""
    return set(git(tree, "ls-tree", "-r", "-z", "--name-only", treeish).decode().split("\0")) - {""}


def changed_blobs(tree: Path, commit_id: str) -> dict[str, tuple[str, str]]:
    """Per file that a commit changes the git ids of its content before and after."""
    options = "diff-tree -r -z --raw --no-abbrev --no-renames --no-commit-id".split()
    words = git(tree, *options, commit_id).decode().split("\0")[:-1]
    return {path: tuple(meta.split()[2:4]) for meta, path in zip(words[::2], words[1::2], strict=True)}


def edits(tree: Path) -> list[str]:
    """The files in the tree that differ from its last commit."""
    options = "status --porcelain -z --no-renames --untracked-files=all".split()
    return [line[3:] for line in git(tree, *options).decode().split("\0") if line]


def read_stamp(tree: Path) -> dict[str, str]:
    """What apply or export last knew: `head`, `base` (the upstream commit), its `sha256`, and `queue`.

    Raises ForkError when there is no tree, or its history is not one that apply made.
    """
    if not (tree / ".git").exists():
        raise ForkError("there is no tree yet: run apply")
    try:
        return json.loads((tree / ".git/materialised").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise ForkError("transformers/.git was not made by apply: move it away, then run apply") from None


def write_stamp(tree: Path, **stamp: str) -> None:
    """Record what the tree stands for, all or nothing."""
    new = tree / ".git/materialised.new"
    new.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(new, tree / ".git/materialised")


# ---------------------------------------------------------------- apply


def download(upstream: dict[str, str], folder: Path) -> Path:
    """Get the source distribution with pip, which checks the hash before it runs anything in it.

    Raises ForkError with pip's own line when it cannot.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text("{name}=={version} --hash=sha256:{sha256}\n".format(**upstream), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", upstream["name"]]
    done = subprocess.run([*pip, "-d", str(folder), "-r", str(requirement)], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        told = next((line for line in said if line.startswith("ERROR:")), said[-1])
        raise ForkError("cannot get {name} {version}: ".format(**upstream) + told)
    return next(folder.glob("*.tar.gz"))


def get_archive(upstream: dict[str, str], cache: Path, scratch: Path) -> Path:
    """The pinned source distribution, from the cache or else downloaded into it.

    Raises ForkError when what was downloaded does not have the pinned hash.
    """
    kept = cache / "{name}-{version}.tar.gz".format(**upstream)
    if kept.exists() and sha256(kept) == upstream["sha256"]:
        return kept
    got = download(upstream, scratch)
    if sha256(got) != upstream["sha256"]:
        raise ForkError(f"{kept.name} has sha256 {sha256(got)}, not the one that upstream.toml pins")
    os.replace(got, kept)
    return kept


def sha256(path: Path) -> str:
    """The hash of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(archive: Path, tree: Path) -> None:
    """Unpack the part of a source distribution that the fork keeps; only plain files, with plain modes."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[1:]
            wanted = member.isfile() and parts and parts[0] in KEEP and ".." not in parts
            if not wanted or any(part.endswith(".egg-info") for part in parts):
                continue
            path = tree.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())
            path.chmod(0o755 if member.mode & 0o100 else 0o644)


def build(queue: Queue, archive: Path, tree: Path) -> None:
    """Make the whole tree, history and stamp, in an empty folder.

    Raises ForkError when a patch or an overlay file does not fit the pinned release.
    """
    unpack(archive, tree)
    git(tree, "init", "-q", "--template=", "--initial-branch=main", "--object-format=sha1")
    git(tree, "config", "core.autocrlf", "false")  # for whoever edits here with other settings
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/exclude").write_text(EXCLUDE, encoding="utf-8")
    base = commit(tree, "upstream\n")
    theirs = listing(tree, base)
    for patch in queue.patches:
        apply_patch(tree, patch, theirs)
    apply_overlay(tree, queue.overlay, theirs)
    write_stamp(tree, head=head(tree), base=base, sha256=queue.upstream["sha256"], queue=queue.fingerprint)


def apply_patch(tree: Path, patch: Patch, theirs: set[str]) -> None:
    """Apply and commit one patch.

    A hunk without context lands silently in the wrong place on other text, so the contents before and
    after must be the very ones that the patch was exported from. Raises ForkError when they are not.
    """
    added = sorted(set(patch.blobs) - theirs)
    if added:
        raise ForkError(f"{patch.name}: {added[0]} is not upstream's; new files belong in overlay/")
    try:
        git(tree, "apply", "--unidiff-zero", "--index", "--whitespace=nowarn", "-", stdin=patch.diff)
    except ForkError as error:
        raise ForkError(f"{patch.name}: does not apply: {error}") from None
    if changed_blobs(tree, commit(tree, patch.message)) != patch.blobs:
        raise ForkError(f"{patch.name}: was not exported from this release and the patches before it")


def apply_overlay(tree: Path, overlay: dict[str, bytes], theirs: set[str]) -> None:
    """Add and commit our own files. Raises ForkError when one would overwrite upstream's."""
    clash = sorted(theirs & set(overlay))
    if clash:
        raise ForkError(*(f"overlay/{path}: upstream has this file; it takes a patch" for path in clash))
    for path, content in overlay.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    if overlay:
        commit(tree, "overlay\n")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def swap(root: Path, staged: Path, scratch: Path) -> None:
    """Put the staged tree in the place of the old one: `.git` goes first and comes last."""
    if (root / ".git").exists():
        os.replace(root / ".git", scratch / "old.git")
    for old in sorted(root.iterdir()):
        if old.name != "fork":
            remove(old)
    for new in sorted(staged.iterdir(), key=lambda path: path.name == ".git"):
        os.replace(new, root / new.name)


def refuse_uncommitted(tree: Path) -> None:
    """Raise ForkError when files in the tree differ from its last commit."""
    if changed := edits(tree):
        raise ForkError(
            f"the tree has uncommitted edits ({changed[0]}, {len(changed)} in all): "
            "commit them there, or put them aside with git -C transformers stash -u"
        )


def refuse_to_destroy(root: Path, marker: Path) -> None:
    """Raise ForkError when making the tree anew would destroy what only the tree has."""
    if not (root / ".git").exists():
        strangers = sorted(path.name for path in root.iterdir() if path.name != "fork")
        if strangers and not marker.exists():
            raise ForkError(f"transformers/{strangers[0]} was not made by apply: move it away")
        return
    stamp = read_stamp(root)
    refuse_uncommitted(root)
    if not stamp["queue"]:
        raise ForkError("an export was cut short: run export again")
    if head(root) != stamp["head"]:
        raise ForkError(
            "the tree has commits that fork/ lacks: export them, "
            f"or discard them with git -C transformers reset --hard {stamp['head'][:12]}"
        )


def apply(root: Path) -> str:
    """Make the tree around `root/fork`, unless it is up to date; returns a line that says which.

    The marker stands while trees are swapped: a tree without `.git` beside it was left by a run that was
    cut short, and nothing in it is anyone's. Raises ForkError when the queue is faulty, or when making the
    tree would destroy edits.
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


# ---------------------------------------------------------------- export and check


def read_tree(root: Path) -> Queue:
    """The queue that the tree's commits stand for.

    A commit that changes upstream's files is a patch; one that changes other files adds to the overlay.
    Raises ForkError, one line per problem, for uncommitted edits, a commit that does both, a patch
    without its header, a history that does not stand on the pinned release.
    """
    upstream, stamp = read_upstream(root / "fork"), read_stamp(root)
    refuse_uncommitted(root)
    if any((root / ".git" / name).exists() for name in ("rebase-merge", "rebase-apply")):
        raise ForkError("a rebase is under way in the tree: finish it")
    if stamp["sha256"] != upstream["sha256"]:
        raise ForkError("the tree was made from another release than upstream.toml pins")
    history = git(root, "rev-list", "--reverse", "--parents", "HEAD").decode().splitlines()
    if history[0] != stamp["base"] or any(len(line.split()) != 2 for line in history[1:]):
        raise ForkError("the tree's history is not a line of commits on top of its upstream commit")
    theirs = listing(root, stamp["base"])
    patches, problems = [], []
    for commit_id in (line.split()[0] for line in history[1:]):
        touched = set(changed_blobs(root, commit_id))
        if touched & theirs:
            patches.append(read_commit(root, commit_id, len(patches) + 1))
            problems += patches[-1].problems()
        if touched & theirs and touched - theirs:
            both = f"{min(touched & theirs)} (upstream's) and {min(touched - theirs)} (ours)"
            problems.append(f"{patches[-1].name}: changes {both}: make two commits of it")
    if problems:
        raise ForkError(*problems)
    ours = sorted(listing(root, "HEAD") - theirs)
    return Queue(upstream, tuple(patches), {path: git(root, "show", f"HEAD:{path}") for path in ours})


def read_commit(tree: Path, commit_id: str, number: int) -> Patch:
    """The patch that a commit stands for. Raises ForkError for what a text patch cannot carry."""
    message = git(tree, "show", "-s", "--format=%B", commit_id).decode("utf-8", "replace").strip()
    subject, _, body = message.partition("\n")
    subject = subject.removeprefix("Subject:").strip()
    slug = re.sub(r"[^a-z0-9]+", "-", subject.lower())[:50].strip("-")
    diff = git(tree, *DIFF, commit_id)
    # What git appends to a hunk's line numbers is a line of upstream's that the hunk does not need.
    diff = re.sub(rb"^(@@ [^@]* @@).*$", rb"\1", diff, flags=re.MULTILINE)
    header = f"Subject: {subject}\n{body.strip()}\n\n"
    patch = parse_patch(f"{number:04d}-{slug}.patch", header.encode() + diff)
    if patch.blobs != changed_blobs(tree, commit_id) or re.search(rb"^Binary files ", diff, re.MULTILINE):
        raise ForkError(f"{patch.name}: changes a file's mode or a binary file, which a patch cannot carry")
    return patch


def export(root: Path) -> str:
    """Write `series`, `patches/` and `overlay/` from the tree's commits; returns a line that says so.

    Raises ForkError, before anything is written, when the commits cannot be exported, or when `fork/` was
    changed since the tree was made from it.
    """
    queue, stamp = read_tree(root), read_stamp(root)
    if stamp["queue"] and stamp["queue"] != read_queue(root).fingerprint:
        raise ForkError("fork/ was changed since the tree was made: put that aside, export, then merge it")
    write_stamp(root, **{**stamp, "queue": ""})  # an export that is cut short here can only be run again
    fork, files = root / "fork", queue.files
    for folder in ("patches", "overlay"):
        for path in [path for path in (fork / folder).rglob("*") if path.is_file()]:
            if path.relative_to(fork).as_posix() not in files:
                path.unlink()
    for name, content in files.items():
        (fork / name).parent.mkdir(parents=True, exist_ok=True)
        (fork / name).write_bytes(content)
    write_stamp(root, **{**stamp, "queue": queue.fingerprint, "head": head(root)})
    return f"exported: {queue}"


def check(root: Path) -> str:
    """Look for drift and faults, change nothing; returns a line that says what was looked at.

    Raises ForkError, one line per problem.
    """
    queue = read_queue(root)
    problems = [line for patch in queue.patches for line in lost_tests(patch, root.parent)]
    made = (root / ".git").exists()
    if made:
        problems += drift(root, queue)
    if problems:
        raise ForkError(*problems)
    return f"{'tree and queue agree' if made else 'the queue is sound; no tree yet to compare with'}: {queue}"


def lost_tests(patch: Patch, repository: Path) -> list[str]:
    """Lines about the tests that a patch's header names and the repository lacks."""
    problems = []
    for name in patch.fields["Fails-without"].split(","):
        path, _, test = name.strip().partition("::")
        function = test.rpartition("::")[2].partition("[")[0]
        file = repository / path
        if not (function and file.is_file() and f"def {function}(" in file.read_text(encoding="utf-8")):
            problems.append(f"{patch.name}: Fails-without names {name.strip()}, which is not there")
    return problems


def drift(root: Path, queue: Queue) -> list[str]:
    """Lines about files of `fork/` that are not what export would write."""
    try:
        want = read_tree(root).files
    except ForkError as error:
        return str(error).splitlines()
    have = {**queue.files, "series": (root / "fork/series").read_bytes()}
    problems = [f"{name}: only in fork/, not in the tree" for name in sorted(have.keys() - want.keys())]
    problems += [f"{name}: only in the tree, not in fork/" for name in sorted(want.keys() - have.keys())]
    same = want.keys() & have.keys()
    return problems + [f"{name}: differs from the tree" for name in sorted(same) if want[name] != have[name]]


# ---------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str):
        self.exit(2, f"materialise.py: {message}\n")


def main(argv: list[str], root: Path) -> int:
    """Run one command on the tree `root`, the folder around `fork/`; returns the exit code."""
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
