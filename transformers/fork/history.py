"""The queue of our changes as commits: the git history of the patched tree in `transformers/`."""

import json
import os
import re
import subprocess
from pathlib import Path

from patch_queue import ForkError, Patch, Queue, read_upstream

# The identity is fixed, so that one queue always gives the same commit ids.
WHO = {"NAME": "fork", "EMAIL": "fork@avis.invalid", "DATE": "2026-01-16T12:00:00+0000"}
IDENTITY = {f"GIT_{role}_{key}": WHO[key] for role in ("AUTHOR", "COMMITTER") for key in WHO}
# No user's git settings may change a byte.
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


def git(tree: Path, *args: str, stdin: bytes | None = None) -> bytes:
    """Run git on the repository of `tree` and return its output; raise ForkError with git's own last line."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env.update(IDENTITY, GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, LC_ALL="C")
    settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = ["git", *settings, "--git-dir=.git", "--work-tree=.", *args]
    try:
        result = subprocess.run(command, cwd=tree, env=env, input=stdin, capture_output=True)
    except FileNotFoundError:
        raise ForkError("git is not installed") from None
    if result.returncode:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {result.returncode}"]
        raise ForkError(f"git {args[0]}: {lines[-1]}")
    return result.stdout


def git_paths(tree: Path, *args: str) -> set[str]:
    """Run a git command that lists paths, and return them."""
    return set(git(tree, args[0], "-z", *args[1:]).decode().split("\0")) - {""}


def list_paths(tree: Path, commit_id: str) -> set[str]:
    """Return the paths of all files of a commit."""
    return git_paths(tree, "ls-tree", "-r", "--name-only", commit_id)


def changed_paths(tree: Path, commit_id: str) -> set[str]:
    """Return the paths of the files that a commit changes."""
    return git_paths(tree, "diff-tree", "-r", "--name-only", "--no-renames", "--no-commit-id", commit_id)


def edits(tree: Path) -> list[str]:
    """Return the paths of the files that differ from the last commit."""
    return sorted(line[3:] for line in git_paths(tree, "status", "--porcelain", "--no-renames", "-uall"))


def commit(tree: Path, message: str) -> str:
    """Commit all changes in `tree` and return the commit's id."""
    git(tree, "add", "--all")
    git(tree, "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-", stdin=message.encode())
    return head(tree)


def head(tree: Path) -> str:
    """Return the id of the commit that is checked out."""
    return git(tree, "rev-parse", "HEAD").decode().strip()


def read_stamp(tree: Path) -> dict[str, str]:
    """Read what the last apply or export recorded: `head`, `base` (the upstream commit), its `sha256`, and `queue`."""
    if not (tree / ".git").exists():
        raise ForkError("there is no tree yet: run apply")
    try:
        return json.loads((tree / ".git/materialised").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise ForkError("transformers/.git was not made by apply: move it away, then run apply") from None


def write_stamp(tree: Path, **stamp: str) -> None:
    """Replace the stamp as a whole."""
    new = tree / ".git/materialised.new"
    new.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(new, tree / ".git/materialised")


def refuse_uncommitted(tree: Path) -> None:
    """Raise ForkError when files in the tree differ from its last commit."""
    if changed := edits(tree):
        raise ForkError(
            f"the tree has uncommitted edits ({changed[0]}, {len(changed)} in all): "
            "commit them there, or put them aside with git -C transformers stash -u"
        )


def read_tree(root: Path) -> Queue:
    """Return the queue that the tree's commits stand for.

    A commit that changes upstream's files is a patch. A commit that changes other files adds to the overlay.

    Raises:
        ForkError: uncommitted edits, a commit that does both, a patch without its header, or a history that does not
            begin with the pinned release.
    """
    upstream, stamp = read_upstream(root / "fork"), read_stamp(root)
    refuse_uncommitted(root)
    if any((root / ".git" / name).exists() for name in ("rebase-merge", "rebase-apply")):
        raise ForkError("a rebase is in progress in the tree: finish it")
    if stamp["sha256"] != upstream["sha256"]:
        raise ForkError("the tree was made from another release than upstream.toml pins")
    history = git(root, "rev-list", "--reverse", "--parents", "HEAD").decode().splitlines()
    if history[0] != stamp["base"] or any(len(line.split()) != 2 for line in history[1:]):
        raise ForkError("the tree's history is not a line of commits on top of its upstream commit")
    theirs = list_paths(root, stamp["base"])
    patches, problems = [], []
    for commit_id in (line.split()[0] for line in history[1:]):
        changed = changed_paths(root, commit_id)
        if changed & theirs:
            patches.append(read_commit(root, commit_id, len(patches) + 1))
            problems += patches[-1].problems()
        if changed & theirs and changed - theirs:
            both = f"{min(changed & theirs)} (upstream's) and {min(changed - theirs)} (ours)"
            problems.append(f"{patches[-1].name}: changes {both}: make two commits of it")
    if problems:
        raise ForkError(*problems)
    ours = sorted(list_paths(root, "HEAD") - theirs)
    return Queue(upstream, tuple(patches), {path: git(root, "show", f"HEAD:{path}") for path in ours})


def read_commit(tree: Path, commit_id: str, number: int) -> Patch:
    """Return the patch that a commit stands for; raise ForkError for a change that a text patch cannot contain."""
    message = git(tree, "show", "-s", "--format=%B", commit_id).decode("utf-8", "replace").strip()
    subject, _, body = message.partition("\n")
    subject = subject.removeprefix("Subject:").strip()
    slug = re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")
    slug = slug if len(slug) <= 50 else slug[:51].rpartition("-")[0]
    # Git appends a line of upstream's to the line numbers of a hunk, which the hunk does not need.
    diff = re.sub(rb"^(@@ [^@]* @@).*$", rb"\1", git(tree, *DIFF, commit_id), flags=re.MULTILINE)
    patch = Patch(f"{number:04d}-{slug}.patch", f"Subject: {subject}\n{body.strip()}".strip(), diff)
    if re.search(rb"^(old mode|Binary files) ", diff, re.MULTILINE):
        raise ForkError(f"{patch.name}: changes a file's mode or a binary file, which a patch cannot contain")
    return patch
