"""Every patch of the fork is needed: without it the package still imports, and the test in its header fails.

The patches are the commits of the fork's history that have a `Fails-without:` line.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORK = ROOT / "transformers"

pytestmark = pytest.mark.slow


def git(*arguments: str, **kwargs) -> str:
    return subprocess.run(["git", "-C", str(FORK), *arguments], check=True, stdout=subprocess.PIPE, **kwargs).stdout


def patches() -> list[tuple[str, str, list[str]]]:
    """Return (commit, subject, tests) of every commit with a `Fails-without:` line, oldest first."""
    log = git("log", "--reverse", "--format=%H%x00%s%x00%b%x01", text=True)
    found = []
    for entry in log.split("\x01"):
        if match := re.search(r"^Fails-without: (.+)$", entry, re.MULTILINE):
            commit, subject, _ = entry.strip().split("\x00")
            found.append((commit, subject, match.group(1).replace(",", " ").split()))
    return found


PATCHES = patches() if (FORK / ".git").is_dir() else []


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copy the fork's package with all patches applied."""
    folder = tmp_path_factory.mktemp("fork")
    archive = git("archive", "HEAD", "src/transformers")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def run_tests(tree: Path, *tests: str) -> subprocess.CompletedProcess:
    return python(tree, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)


def test_the_fork_has_patches_and_their_tests_pass(tree):
    """Guards against a history without patches (nothing below would run) and against tests that fail with the patch."""
    assert len(PATCHES) >= 5
    result = run_tests(tree, *sorted({test for _, _, tests in PATCHES for test in tests}))
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize(
    "commit, tests", [(c, t) for c, _, t in PATCHES], ids=[s.replace(" ", "-") for _, s, _ in PATCHES]
)
def test_patch_is_needed(tree, commit, tests):
    """Guards against patches that do nothing, and against tests that pass without their patch."""
    touched = [tree / name for name in git("diff", "--name-only", f"{commit}~", commit, text=True).split()]
    before = {path: path.read_bytes() for path in touched}  # applying again without context could change other lines
    change = git("diff", "-U0", f"{commit}~", commit)
    subprocess.run(["git", "apply", "--unidiff-zero", "--reverse", "-"], input=change, cwd=tree, check=True)
    try:
        module = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
        imported = python(tree, "-c", f"import {module} as m; print(m.__file__)")
        assert imported.returncode == 0 and str(tree) in imported.stdout, imported.stderr[-3000:]
        for test in tests:
            result = run_tests(tree, test)
            assert result.returncode == 1, (
                f"pytest ended with {result.returncode} on {test}, want 1 (failed):\n{result.stdout[-3000:]}"
            )
    finally:
        for path, content in before.items():
            path.write_bytes(content)
