# Longer than the bound: it is split together with materialise.py, in the issue about two bases.
"""Tests of `transformers/fork/materialise.py`, on a made-up release of three files; no network."""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "transformers/fork/materialise.py"
MODEL = "src/pkg/model.py"
MODEL_TEXT = "".join(f"line_{n} = {n}\n" for n in range(1, 21))
OVERLAY = "src/pkg/ours.py"
MESSAGE = "{}\n\nWhy-not-outside: inside upstream's function\nFails-without: tests/test_x.py::test_it\n"


class Killed(BaseException):
    """Stands for a kill: nothing in materialise.py may catch it."""


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """The module, with a fake release, aimed at a made-up repository in tmp_path."""
    return Fork(tmp_path, monkeypatch)


class Fork:
    """A made-up repository: `root` is its transformers/ folder; `m` the module under test."""

    def __init__(self, folder: Path, monkeypatch):
        spec = importlib.util.spec_from_file_location("materialise", SCRIPT)
        self.m = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name.
        monkeypatch.setitem(sys.modules, "materialise", self.m)
        spec.loader.exec_module(self.m)
        self.folder, self.root = folder, folder / "repo/transformers"
        (self.root / "fork").mkdir(parents=True)
        (folder / "repo/tests").mkdir()
        (folder / "repo/tests/test_x.py").write_text("def test_it():\n    pass\n")
        self.sdist = fake_sdist(folder)
        self.pin(self.m.sha256(self.sdist))
        (self.root / "fork/series").write_text(self.m.SERIES_HEAD)
        self.downloads = 0
        monkeypatch.setattr(self.m, "download", self.download)
        self.write(f"overlay/{OVERLAY}", "ours = 1\n")

    def pin(self, sha256: str) -> None:
        self.write("upstream.toml", f'# the pin\nname = "fake"\nversion = "1.0"\nsha256 = "{sha256}"\n')

    def download(self, upstream, folder):
        self.downloads += 1
        return Path(shutil.copy(self.sdist, folder))

    def write(self, name: str, text: str) -> None:
        path = self.root / "fork" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, command: str, capsys=None) -> tuple[int, list[str]]:
        """Run one command; returns its exit code and the lines on stderr."""
        code = self.m.main([command], self.root)
        return code, capsys.readouterr().err.splitlines() if capsys else []

    def apply(self) -> None:
        assert self.run("apply")[0] == 0

    def git(self, *args: str) -> str:
        return self.m.git(self.root, *args).decode()

    def commit(self, message: str, **texts: str) -> None:
        """Commit in the tree; texts by path, with __ for / and _py for .py."""
        for name, text in texts.items():
            path = self.root / (name.replace("__", "/").removesuffix("_py") + ".py")
            path.write_text(text)
        self.m.commit(self.root, message)

    def edit_model(self, subject: str, old: str, new: str) -> None:
        """Commit one change of upstream's model.py."""
        text = (self.root / MODEL).read_text()
        assert old in text
        (self.root / MODEL).write_text(text.replace(old, new))
        self.m.commit(self.root, MESSAGE.format(subject))

    def with_two_patches(self) -> None:
        """Apply, commit two patches (the second one only inserts), export, and start from there afresh."""
        self.apply()
        self.edit_model("Change line 3", "line_3 = 3\n", "line_3 = 33\nline_3b = 0\n")
        self.edit_model("Insert after line 9", "line_9 = 9\n", "line_9 = 9\nline_9b = 0\n")
        assert self.run("export")[0] == 0
        self.wipe()

    def wipe(self) -> None:
        """Remove the tree, as in a fresh clone."""
        for path in self.root.iterdir():
            if path.name != "fork":
                self.m.remove(path)

    def save(self) -> None:
        shutil.copytree(self.root, self.folder / "saved")

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.folder / "saved", self.root)

    def queue_files(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files("fork").items() if "/.cache/" not in name}

    def tree_files(self) -> dict[str, bytes]:
        return {n: data for n, data in self.files(".").items() if not n.startswith(("fork/", ".git/"))}

    def files(self, folder: str) -> dict[str, bytes]:
        files = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}


def fake_sdist(folder: Path) -> Path:
    """A source distribution with a model file, a tests folder to leave out, and egg-info to leave out."""
    path = folder / "fake-1.0.tar.gz"
    members = {
        "setup.py": "print()\n",
        MODEL: MODEL_TEXT,
        "src/pkg/__init__.py": "",
        "src/fake.egg-info/PKG-INFO": "x\n",
        "tests/test_upstream.py": "x\n",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"fake-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


# ---------------------------------------------------------------- apply


def test_apply_makes_tree_and_history(fork):
    """Guards against a tree that lacks patches or overlay, or carries what nobody needs."""
    fork.with_two_patches()
    fork.apply()
    assert set(fork.tree_files()) == {"setup.py", MODEL, "src/pkg/__init__.py", OVERLAY}
    assert "line_3b" in (fork.root / MODEL).read_text() and "line_9b" in (fork.root / MODEL).read_text()
    subjects = fork.git("log", "--reverse", "--format=%s").splitlines()
    assert subjects == ["upstream", "Change line 3", "Insert after line 9", "overlay"]
    assert not fork.m.edits(fork.root)


def test_apply_again_is_up_to_date_and_needs_no_network(fork, capsys):
    """Guards against a re-run that rebuilds, or downloads what it has."""
    fork.with_two_patches()
    fork.apply()
    made = (fork.root / MODEL).stat().st_mtime_ns
    capsys.readouterr()
    fork.apply()
    assert capsys.readouterr().out.startswith("up to date")
    assert (fork.root / MODEL).stat().st_mtime_ns == made
    assert fork.downloads == 1


def test_apply_follows_a_changed_queue(fork):
    """Guards against a tree that stays behind when fork/ was changed, as by a pull."""
    fork.apply()
    fork.write(f"overlay/{OVERLAY}", "ours = 2\n")
    fork.apply()
    assert (fork.root / OVERLAY).read_text() == "ours = 2\n"


def test_leavings_of_an_install_are_no_edits(fork):
    """Guards against an editable install or a Python run making the tree look edited."""
    fork.apply()
    for name in ("src/fake.egg-info/PKG-INFO", "src/pkg/__pycache__/model.pyc", "build/lib/x.py"):
        (fork.root / name).parent.mkdir(parents=True)
        (fork.root / name).write_text("x")
    assert fork.run("check")[0] == 0
    fork.apply()


def test_commit_ids_do_not_depend_on_git_settings(fork, tmp_path, monkeypatch):
    """Guards against a user's git configuration, hooks or environment changing what is made."""
    fork.with_two_patches()
    fork.apply()
    first = fork.m.head(fork.root)
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    (home / "hooks/pre-commit").write_text("#!/bin/sh\nexit 1\n")
    (home / "hooks/pre-commit").chmod(0o755)
    (home / "ignore").write_text("*.py\n")
    (home / ".gitconfig").write_text(
        f"[core]\nautocrlf = true\nhooksPath = {home}/hooks\nexcludesFile = {home}/ignore\n"
        "[commit]\ngpgSign = true\n[user]\nname = Someone\n[diff]\nnoprefix = true\ncontext = 7\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00+0000")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    fork.wipe()
    fork.apply()
    assert fork.m.head(fork.root) == first
    before = fork.queue_files()
    assert fork.run("export")[0] == 0
    assert fork.queue_files() == before


def test_wrong_hash(fork, capsys):
    """Guards against building on a source distribution that is not the pinned one."""
    fork.pin("0" * 64)
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "sha256" in lines[0]
    assert not fork.tree_files() and not (fork.root / "fork/.cache/fake-1.0.tar.gz").exists()


def test_damaged_cache_is_fetched_again(fork):
    """Guards against a truncated download that makes every later run fail."""
    (fork.root / "fork/.cache").mkdir()
    (fork.root / "fork/.cache/fake-1.0.tar.gz").write_bytes(fork.sdist.read_bytes()[:100])
    fork.apply()
    assert fork.m.sha256(fork.root / "fork/.cache/fake-1.0.tar.gz") == fork.m.sha256(fork.sdist)


def test_bad_pin_file(fork, capsys):
    """Guards against a traceback for an upstream.toml without its keys."""
    fork.write("upstream.toml", 'name = "fake"\n')
    code, lines = fork.run("apply", capsys)
    assert code == 2 and lines == ["materialise.py apply: upstream.toml lacks version, sha256"]


def test_unknown_command(fork, capsys):
    """Guards against a usage dump, or a wrong exit code, for a mistyped command."""
    with pytest.raises(SystemExit) as stop:
        fork.run("aply")
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


# ---------------------------------------------------------------- the queue's faults


@pytest.mark.parametrize("command", ["apply", "check"])
@pytest.mark.parametrize("field", ["Subject", "Why-not-outside", "Fails-without"])
def test_patch_without_header_field(fork, capsys, command, field):
    """Guards against a patch that nobody justified."""
    fork.with_two_patches()
    path = next((fork.root / "fork/patches").glob("0001*"))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(field)))
    code, lines = fork.run(command, capsys)
    assert code == 2 and len(lines) == 1 and path.name in lines[0] and field in lines[0]


@pytest.mark.parametrize("command", ["apply", "check"])
def test_unlisted_and_missing_patch(fork, capsys, command):
    """Guards against a patch that is silently not applied: one line for each problem."""
    fork.with_two_patches()
    patches = fork.root / "fork/patches"
    next(patches.glob("0001*")).rename(patches / "stray.patch")
    code, lines = fork.run(command, capsys)
    assert code == 2 and len(lines) == 2
    assert "0001-change-line-3.patch: listed" in lines[0] and "stray.patch: in patches/" in lines[1]


def test_overlay_onto_upstream_file(fork, capsys):
    """Guards against the overlay hiding a change of upstream's file from the patches."""
    fork.write(f"overlay/{MODEL}", "mine\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and MODEL in lines[0]
    assert not fork.tree_files()


def test_overlay_onto_upstream_file_is_seen_by_check(fork, capsys):
    """Guards against check passing a queue that apply refuses."""
    fork.apply()
    fork.write(f"overlay/{MODEL}", "mine\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and len(lines) == 1 and f"overlay/{MODEL}" in lines[0]


def test_zero_context_patch_never_lands_in_the_wrong_place(fork, capsys):
    """Guards against a dropped or reordered patch shifting a later insertion to other lines, silently."""
    fork.with_two_patches()
    (fork.root / "fork/series").write_text("0002-insert-after-line-9.patch\n")
    next((fork.root / "fork/patches").glob("0001*")).unlink()
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "was not exported from" in lines[0]


def test_patch_that_does_not_apply(fork, capsys):
    """Guards against a traceback for a damaged patch."""
    fork.with_two_patches()
    path = next((fork.root / "fork/patches").glob("0001*"))
    path.write_text(path.read_text().replace("-line_3 = 3", "-line_3 = 4"))
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "does not apply" in lines[0]


def test_named_test_must_exist(fork, capsys):
    """Guards against headers that name a test which was renamed or never written."""
    fork.with_two_patches()
    (fork.root.parent / "tests/test_x.py").write_text("def test_it_all():\n    pass\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and len(lines) == 2 and "tests/test_x.py::test_it" in lines[0]


# ---------------------------------------------------------------- interrupted runs


def kill_at(fork, monkeypatch, step: int) -> None:
    """Make the given step (a git run, a rename, a removal, a file written) raise Killed instead."""
    count = iter(range(step + 1))

    def killed_at_step(real):
        def stand_in(*args, **kwargs):
            if next(count, step) == step:
                raise Killed
            return real(*args, **kwargs)

        return stand_in

    for owner, name in [
        (fork.m, "git"),
        (fork.m, "remove"),
        (fork.m, "download"),
        (fork.m.os, "replace"),
        (Path, "write_bytes"),
        (Path, "touch"),
    ]:
        monkeypatch.setattr(owner, name, killed_at_step(getattr(owner, name)))


@pytest.mark.parametrize("before", ["nothing", "an older tree"])
def test_apply_heals_an_apply_killed_at_any_step(fork, before):
    """Guards against a half-made tree that later runs take for whole, or refuse to touch."""
    fork.with_two_patches()
    fork.apply()
    want, want_head, step = fork.tree_files(), fork.m.head(fork.root), 0
    if before == "nothing":
        fork.wipe()
        shutil.rmtree(fork.root / "fork/.cache")
    else:
        fork.write(f"overlay/{OVERLAY}", "older = 1\n")
        fork.write("overlay/src/pkg/gone.py", "gone = 1\n")
        fork.apply()
        (fork.root / "fork/overlay/src/pkg/gone.py").unlink()
        fork.write(f"overlay/{OVERLAY}", "ours = 1\n")
    fork.save()
    while True:
        fork.restore()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(fork, patch, step)
            try:
                fork.apply()
                break
            except Killed:
                pass
        if (fork.root / ".git").exists():
            assert not fork.m.edits(fork.root)  # what has a history is a whole tree, old or new
        fork.apply()
        assert fork.tree_files() == want and fork.m.head(fork.root) == want_head
        assert sorted(os.listdir(fork.root / "fork/.cache")) == ["fake-1.0.tar.gz", "lock"]
        step += 1
    assert step > 15


def test_export_heals_an_export_killed_at_any_step(fork, capsys):
    """Guards against half-written patches that apply would take, and so lose the commits behind them."""
    fork.with_two_patches()
    fork.apply()
    fork.edit_model("Change line 15", "line_15 = 15\n", "line_15 = 0\n")
    fork.commit("ours\n", src__pkg__more_py="more = 1\n")
    fork.save()
    assert fork.run("export")[0] == 0
    want, step = fork.queue_files(), 0
    while True:
        fork.restore()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(fork, patch, step)
            try:
                fork.run("export")
                break
            except Killed:
                pass
        code, _ = fork.run("apply", capsys)
        assert code == 2 or fork.queue_files() == want
        assert fork.run("export")[0] == 0 and fork.queue_files() == want
        fork.apply()
        step += 1
    assert step > 5


# ---------------------------------------------------------------- edits


def test_export_after_apply_is_byte_identical(fork):
    """Guards against export and apply disagreeing, which would make every later diff noise."""
    fork.with_two_patches()
    fork.apply()
    before = fork.queue_files()
    assert fork.run("export")[0] == 0 and fork.queue_files() == before
    assert fork.run("check")[0] == 0


def test_patches_hold_nothing_that_varies_and_no_context(fork):
    """Guards against upstream's lines, dates or commit ids in the patch files."""
    fork.with_two_patches()
    blob = [hashlib.sha1(f"blob {len(t)}\0{t}".encode()).hexdigest() for t in model_versions()]
    assert (fork.root / "fork/patches/0001-change-line-3.patch").read_text() == (
        "Subject: Change line 3\nWhy-not-outside: inside upstream's function\n"
        "Fails-without: tests/test_x.py::test_it\n\n"
        f"diff --git a/{MODEL} b/{MODEL}\nindex {blob[0]}..{blob[1]} 100644\n--- a/{MODEL}\n+++ b/{MODEL}\n"
        "@@ -3 +3,2 @@\n-line_3 = 3\n+line_3 = 33\n+line_3b = 0\n"
    )
    insertion = (fork.root / "fork/patches/0002-insert-after-line-9.patch").read_text()
    assert insertion.endswith("@@ -10,0 +11 @@\n+line_9b = 0\n")


def model_versions() -> tuple[str, str]:
    return MODEL_TEXT, MODEL_TEXT.replace("line_3 = 3\n", "line_3 = 33\nline_3b = 0\n")


def test_round_trip_of_edits(fork):
    """Guards against losing or reordering commits: edit, commit, export, apply elsewhere, same tree."""
    fork.with_two_patches()
    fork.apply()
    fork.edit_model("Change line 15", "line_15 = 15\n", "line_15 = 0\n")  # stands after the overlay commit
    fork.commit("ours, edited\n", src__pkg__ours_py="ours = 3\n", src__pkg__more_py="more = 1\n")
    assert fork.run("export")[0] == 0
    want = fork.tree_files()
    fork.apply()  # up to date: the commits stay as the developer made them
    assert fork.git("log", "-1", "--format=%s").strip() == "ours, edited"
    fork.wipe()
    fork.apply()
    assert fork.tree_files() == want
    assert (fork.root / "fork/series").read_text().splitlines()[1:] == [
        "0001-change-line-3.patch",
        "0002-insert-after-line-9.patch",
        "0003-change-line-15.patch",
    ]
    assert fork.run("check")[0] == 0


def test_export_removes_what_the_tree_lost(fork):
    """Guards against stale patches and overlay files that come back with the next apply."""
    fork.with_two_patches()
    fork.apply()
    fork.git("reset", "-q", "--hard", "HEAD~2")
    fork.commit("another file\n", src__pkg__more_py="more = 1\n")
    assert fork.run("export")[0] == 0
    names = [name for name in fork.queue_files() if "/patches/" in name or "/overlay/" in name]
    assert sorted(names) == ["fork/overlay/src/pkg/more.py", "fork/patches/0001-change-line-3.patch"]


def test_apply_refuses_to_destroy_edits(fork, capsys):
    """Guards against losing work: uncommitted edits, new files, commits that were not exported."""
    fork.apply()
    fork.write(f"overlay/{OVERLAY}", "ours = 2\n")  # there is something to apply
    (fork.root / MODEL).write_text("edited\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "uncommitted" in lines[0]
    fork.git("checkout", "-q", "--", MODEL)
    (fork.root / "src/pkg/new.py").write_text("new\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "src/pkg/new.py" in lines[0]
    fork.commit("new\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "commits that fork/ lacks" in lines[0]
    assert (fork.root / "src/pkg/new.py").read_text() == "new\n"


def test_apply_refuses_a_tree_that_it_did_not_make(fork, capsys):
    """Guards against deleting somebody's files, or somebody's repository, in the tree's place."""
    (fork.root / "notes.txt").write_text("mine\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "notes.txt" in lines[0]
    subprocess.run(["git", "init", "-q", str(fork.root)], check=True)
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and ".git" in lines[0]
    assert (fork.root / "notes.txt").exists()


def test_export_refuses(fork, capsys):
    """Guards against exporting what apply could not make again, or over changes made in fork/."""
    fork.apply()
    start = fork.m.head(fork.root)

    def refused(part: str) -> None:
        before = fork.queue_files()
        code, lines = fork.run("export", capsys)
        assert code == 2 and len(lines) == 1 and part in lines[0], lines
        assert fork.queue_files() == before
        fork.git("reset", "-q", "--hard", start)

    (fork.root / MODEL).write_text("edited\n")
    refused("uncommitted")
    fork.commit("no header\n", src__pkg__model_py="edited\n")
    refused("lacks Why-not-outside, Fails-without")
    fork.commit(MESSAGE.format("both"), src__pkg__model_py="edited\n", src__pkg__ours_py="edited\n")
    refused("make two commits")
    (fork.root / MODEL).chmod(0o755)
    fork.commit(MESSAGE.format("mode"))
    refused("mode")
    (fork.root / MODEL).write_bytes(b"\0\1\2")
    fork.commit(MESSAGE.format("binary"))
    refused("binary")
    fork.git("commit", "-q", "--amend", "-m", "rewritten", "--allow-empty")
    fork.git("checkout", "-q", "--orphan", "other")
    fork.commit("another upstream\n")
    refused("on top of its upstream commit")
    fork.git("checkout", "-q", "-f", "main")
    fork.write(f"overlay/{OVERLAY}", "changed in fork/\n")
    refused("fork/ was changed")


# ---------------------------------------------------------------- check


def test_check_without_a_tree_says_so(fork, capsys):
    """Guards against a check that reads as a comparison when there was nothing to compare."""
    fork.with_two_patches()
    capsys.readouterr()
    assert fork.run("check")[0] == 0
    assert "no tree yet" in capsys.readouterr().out


def test_check_reports_drift(fork, capsys):
    """Guards against committing fork/ without the edits that were tested in the tree, and the reverse."""
    fork.with_two_patches()
    fork.apply()
    (fork.root / OVERLAY).write_text("edited\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and len(lines) == 1 and "uncommitted" in lines[0]
    fork.commit("edited\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and lines == [f"materialise.py check: overlay/{OVERLAY}: differs from the tree"]
    assert fork.run("export")[0] == 0 and fork.run("check")[0] == 0
    fork.write("overlay/src/pkg/more.py", "more = 1\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and lines and len(lines) == 1 and "more.py: only in fork/" in lines[0]
    fork.apply()
    assert fork.run("check")[0] == 0
