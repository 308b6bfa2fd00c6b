"""`materialise.py export` and `check` on a made-up release: round trips, refusals, differences."""

import hashlib
import subprocess

import pytest
from made_up_fork import MESSAGE, MODEL, MODEL_TEXT, OVERLAY, Fork


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """Return a made-up repository with an overlay of one file and no patches."""
    return Fork(tmp_path, monkeypatch)


def test_export_after_apply_is_byte_identical(fork):
    """Guards against files that export and apply write differently, which would fill every later diff."""
    fork.with_two_patches()
    fork.apply()
    before = fork.queue_files()
    assert fork.run("export")[0] == 0 and fork.queue_files() == before
    assert fork.run("check")[0] == 0


def test_patches_have_no_context_and_nothing_that_varies(fork):
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
    """Guards against lost work: uncommitted edits, new files, commits that were not exported."""
    fork.apply()
    fork.write(f"overlay/{OVERLAY}", "ours = 2\n")  # something to apply
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
    """Guards against removing a user's files or repository in the place of the tree."""
    (fork.root / "notes.txt").write_text("mine\n")
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and "notes.txt" in lines[0]
    subprocess.run(["git", "init", "-q", str(fork.root)], check=True)
    code, lines = fork.run("apply", capsys)
    assert code == 2 and len(lines) == 1 and ".git" in lines[0]
    assert (fork.root / "notes.txt").exists()


def test_export_refuses(fork, capsys):
    """Guards against an export that apply could not reproduce, or that overwrites changes in fork/."""
    fork.apply()
    start = fork.history.head(fork.root)

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


# ---- check -------------------------------------------------------------------------------------------------


def test_check_without_a_tree_says_so(fork, capsys):
    """Guards against a check that reports agreement although there is no tree to compare with."""
    fork.with_two_patches()
    capsys.readouterr()
    assert fork.run("check")[0] == 0
    assert "no tree yet" in capsys.readouterr().out


def test_check_reports_drift(fork, capsys):
    """Guards against a commit of fork/ without the edits that were tested in the tree, and the reverse."""
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
