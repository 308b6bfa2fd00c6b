"""`materialise.py apply` on a made-up release: tree and history, faults of the queue, interrupted runs."""

import os
import shutil
from pathlib import Path

import pytest
from made_up_fork import MODEL, OVERLAY, Fork


class Killed(BaseException):
    """Stands for a kill: no program may catch it."""


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """Return a made-up repository with an overlay of one file and no patches."""
    return Fork(tmp_path, monkeypatch)


# ---- apply -------------------------------------------------------------------------------------------------


def test_apply_makes_tree_and_history(fork):
    """Guards against a tree that lacks patches or overlay, or has files that no installation needs."""
    fork.with_two_patches()
    fork.apply()
    assert set(fork.tree_files()) == {"setup.py", MODEL, "src/pkg/__init__.py", OVERLAY}
    assert "line_3b" in (fork.root / MODEL).read_text() and "line_9b" in (fork.root / MODEL).read_text()
    subjects = fork.git("log", "--reverse", "--format=%s").splitlines()
    assert subjects == ["upstream", "Change line 3", "Insert after line 9", "overlay"]
    assert not fork.history.edits(fork.root)


def test_apply_again_is_up_to_date_and_needs_no_network(fork, capsys):
    """Guards against a second run that builds or downloads again."""
    fork.with_two_patches()
    fork.apply()
    made = (fork.root / MODEL).stat().st_mtime_ns
    capsys.readouterr()
    fork.apply()
    assert capsys.readouterr().out.startswith("up to date")
    assert (fork.root / MODEL).stat().st_mtime_ns == made
    assert fork.downloads == 1


def test_apply_follows_a_changed_queue(fork):
    """Guards against an outdated tree after fork/ has changed, as by a pull."""
    fork.apply()
    fork.write(f"overlay/{OVERLAY}", "ours = 2\n")
    fork.apply()
    assert (fork.root / OVERLAY).read_text() == "ours = 2\n"


def test_files_of_an_installation_are_no_edits(fork):
    """Guards against edits reported because of an editable install or a running Python."""
    fork.apply()
    for name in ("src/fake.egg-info/PKG-INFO", "src/pkg/__pycache__/model.pyc", "build/lib/x.py"):
        (fork.root / name).parent.mkdir(parents=True)
        (fork.root / name).write_text("x")
    assert fork.run("check")[0] == 0
    fork.apply()


def test_commit_ids_do_not_depend_on_git_settings(fork, tmp_path, monkeypatch):
    """Guards against a tree that depends on a user's git configuration, hooks or environment."""
    fork.with_two_patches()
    fork.apply()
    first = fork.history.head(fork.root)
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
    assert fork.history.head(fork.root) == first
    before = fork.queue_files()
    assert fork.run("export")[0] == 0
    assert fork.queue_files() == before


def test_wrong_hash(fork, capsys):
    """Guards against building on a source distribution that is not the pinned one."""
    fork.pin("0" * 64)
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "sha256" in lines[0]
    assert not fork.tree_files() and not (fork.root / "fork/.cache/fake-1.0.tar.gz").exists()


def test_damaged_cache_is_downloaded_again(fork):
    """Guards against a truncated download that makes all later runs fail."""
    (fork.root / "fork/.cache").mkdir()
    (fork.root / "fork/.cache/fake-1.0.tar.gz").write_bytes(fork.sdist.read_bytes()[:100])
    fork.apply()
    assert fork.program.sha256(fork.root / "fork/.cache/fake-1.0.tar.gz") == fork.program.sha256(fork.sdist)


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


# ---- faults of the queue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["apply", "check"])
@pytest.mark.parametrize("field", ["Subject", "Why-not-outside", "Fails-without"])
def test_patch_without_header_field(fork, capsys, command, field):
    """Guards against a patch without a justification."""
    fork.with_two_patches()
    path = next((fork.root / "fork/patches").glob("0001*"))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(field)))
    code, lines = fork.run(command, capsys)
    assert code == 2 and len(lines) == 1 and path.name in lines[0] and field in lines[0]


@pytest.mark.parametrize("command", ["apply", "check"])
def test_unlisted_and_missing_patch(fork, capsys, command):
    """Guards against a patch that is silently left out: one line for each problem."""
    fork.with_two_patches()
    patches = fork.root / "fork/patches"
    next(patches.glob("0001*")).rename(patches / "stray.patch")
    code, lines = fork.run(command, capsys)
    assert code == 2 and len(lines) == 2
    assert "0001-change-line-3.patch: listed" in lines[0] and "stray.patch: in patches/" in lines[1]


def test_overlay_onto_upstream_file(fork, capsys):
    """Guards against a change of upstream's file that is in the overlay and in no patch."""
    fork.write(f"overlay/{MODEL}", "mine\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and MODEL in lines[0]
    assert not fork.tree_files()


def test_check_reports_overlay_onto_upstream_file(fork, capsys):
    """Guards against a check that accepts a queue which apply refuses."""
    fork.apply()
    fork.write(f"overlay/{MODEL}", "mine\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and len(lines) == 1 and f"overlay/{MODEL}" in lines[0]


def test_zero_context_patch_never_changes_other_lines(fork, capsys):
    """Guards against a missing or reordered patch that silently moves a later insertion to other lines."""
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
    """Guards against headers that name a test which was renamed or does not exist."""
    fork.with_two_patches()
    (fork.root.parent / "tests/test_x.py").write_text("def test_it_all():\n    pass\n")
    code, lines = fork.run("check", capsys)
    assert code == 2 and len(lines) == 2 and "tests/test_x.py::test_it" in lines[0]


# ---- interrupted runs --------------------------------------------------------------------------------------


def kill_at(fork, monkeypatch, step: int) -> None:
    """Raise Killed in place of the given step: a run of git, a rename, a removal, or a written file."""
    count = iter(range(step + 1))

    def killed_at_step(real):
        def stand_in(*args, **kwargs):
            if next(count, step) == step:
                raise Killed
            return real(*args, **kwargs)

        return stand_in

    for owner, name in [
        (fork.program, "git"),
        (fork.history, "git"),
        (fork.program, "remove"),
        (fork.program, "download"),
        (os, "replace"),
        (Path, "write_bytes"),
        (Path, "touch"),
    ]:
        monkeypatch.setattr(owner, name, killed_at_step(getattr(owner, name)))


@pytest.mark.parametrize("before", ["nothing", "an older tree"])
def test_apply_heals_an_apply_killed_at_any_step(fork, before):
    """Guards against an incomplete tree that later runs accept as complete, or refuse to replace."""
    fork.with_two_patches()
    fork.apply()
    want, want_head, step = fork.tree_files(), fork.history.head(fork.root), 0
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
            assert not fork.history.edits(fork.root)  # a tree with a history is complete, old or new
        fork.apply()
        assert fork.tree_files() == want and fork.history.head(fork.root) == want_head
        assert sorted(os.listdir(fork.root / "fork/.cache")) == ["fake-1.0.tar.gz", "lock"]
        step += 1
    assert step > 15


def test_export_heals_an_export_killed_at_any_step(fork, capsys):
    """Guards against incomplete patches that apply would accept, which would lose the commits behind them."""
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
