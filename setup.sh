#!/usr/bin/env bash
# Sets the project up: the patched Transformers tree, an environment with the tested versions, a last check.
#
#   bash setup.sh                  installs into .venv (made when missing); cheap to run again
#   bash setup.sh --current-env    installs into the active environment, and leaves its torch as it is
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# A fresh .venv takes 5.5 GB with CUDA libraries, the downloads for it nearly 3 GB more.
NEEDED_GB=9

fail() { echo "setup.sh: $*" >&2; exit 2; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {  # the first supported one of the given names
    for PYTHON in "$@"; do
        if supported "$PYTHON"; then return; fi
    done
    fail "needs Python 3.10 to 3.13; python3 is $(python3 --version 2>&1 | head -n 1)"
}

check_disk() {
    local free_gb
    free_gb=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    [ "$free_gb" -ge "$NEEDED_GB" ] || fail "needs $NEEDED_GB GB of free disk for a fresh .venv; there are $free_gb"
}

drop_half_installed() {
    # pip writes INSTALLER after a package's files: without it the package is the leaving of a run that was cut
    # short, which pip would take for whole.
    [ -d .venv/lib ] || return 0
    find .venv/lib -maxdepth 3 -name '*.dist-info' ! -exec test -e '{}/INSTALLER' ';' -prune -exec rm -r '{}' +
}

make_venv() {
    compgen -G '.venv/lib/python3*/site-packages/torch-*.dist-info' >/dev/null || check_disk
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        find_python python3 python3.13 python3.12 python3.11 python3.10
        "$PYTHON" -m venv .venv || fail "$PYTHON cannot make a virtual environment (see above)"
    fi
    PYTHON=$ROOT/.venv/bin/python
    supported "$PYTHON" || fail ".venv has $("$PYTHON" --version), not Python 3.10 to 3.13: remove it"
}

materialise() { "$PYTHON" transformers/fork/materialise.py apply; }

install() {  # install CONSTRAINTS PROJECT
    # Path-style: with the other kind, the folder transformers/ in the repository would win over the fork in it.
    "$PYTHON" -m pip install -qq --disable-pip-version-check --constraint "$1" \
        --config-settings editable_mode=compat --editable ./transformers --editable "$2"
}

state() {  # what an installation depends on: where it is, Python, the requirements
    { echo "$ROOT"; "$PYTHON" --version; cat setup.sh pyproject.toml constraints.txt transformers/setup.py; } | cksum
}

install_into_venv() {
    local stamp=.venv/avis-setup
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ]; then return; fi
    echo "installing; the first time takes minutes"
    rm -f "$stamp"
    install constraints.txt ".[dev]"
    state > "$stamp"  # last, so that an interrupted run is done again
}

install_into_current_env() {
    CONSTRAINTS=$(mktemp)
    trap 'rm -f "$CONSTRAINTS"' EXIT
    "$PYTHON" - > "$CONSTRAINTS" <<'PYTHON_CODE'
# Prints constraints for this environment: an installed torch in range stays, with all that hangs on it; of the
# other packages, pyproject.toml's ranges decide about the installed ones, and missing ones come as tested.
import re
from importlib.metadata import PackageNotFoundError, version


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def in_range(name):
    least = re.search(rf'"{name}>=([\d.]+)"', open("pyproject.toml").read())[1]
    have = re.findall(r"\d+", installed(name) or "0")[:3]
    return [int(number) for number in have] >= [int(number) for number in least.split(".")]


keep_torch = in_range("torch")
for name in ("torch", "torchvision"):
    if keep_torch and in_range(name):
        print(f"{name}=={installed(name)}")
for name, pin in re.findall(r"^([\w-]+)(==.*)$", open("constraints.txt").read(), re.MULTILINE):
    hangs_on_torch = re.match(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$", name)
    stays = keep_torch if hangs_on_torch else installed(name)
    if not stays:
        print(name + pin)
PYTHON_CODE
    install "$CONSTRAINTS" .
}

verify() {
    local folder found want=$ROOT/transformers/src/transformers/__init__.py
    for folder in "$ROOT" /; do
        found=$(cd "$folder" && "$PYTHON" -c 'import transformers; print(transformers.__file__)' 2>&1) || true
        [ "$found" = "$want" ] || fail "in $folder \`import transformers\` gives ${found##*$'\n'}, not the fork's $want"
    done
    # torchvision does not load beside a torch that it was not built for.
    found=$("$PYTHON" -c 'import torchvision, transformers.models.qwen2_5_vl.key_diversity' 2>&1) ||
        fail "the installation is not whole: ${found##*$'\n'}"
}

cd "$ROOT"
case "$*" in
    "")
        drop_half_installed
        make_venv
        materialise
        install_into_venv
        NEXT=.venv/bin/python
        ;;
    "--current-env")
        find_python python3
        materialise
        install_into_current_env
        NEXT=python3
        ;;
    *) fail "knows no argument but --current-env, got: $*" ;;
esac
verify
echo "ready; next: $NEXT demo.py"
