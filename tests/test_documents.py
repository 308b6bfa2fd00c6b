"""Every command on every page: run with its smallest arguments, or, where that would need a download, a GPU or hours,
parsed by its own program. What else the pages promise is in `test_pages.py`.

`PROGRAMS` has a line for every program that a page may name; a command of any other program fails.
"""

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pages import PAGES, ROOT, code_blocks, prose, read_page

PYTHON = {"python", "python3", ".venv/bin/python"}


@dataclass(frozen=True)
class Command:
    """One command as a page has it. `program`: a module, or a file of the repository."""

    page: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        words = self.words
        if words[0] in PYTHON:
            return words[2] if words[1] == "-m" else words[1]
        return " ".join(words[:2]) if words[0] in ("bash", "git", "pip") else words[0]

    @property
    def arguments(self) -> list[str]:
        """What follows the program."""
        if self.words[0] in PYTHON:
            return list(self.words[3 if self.words[1] == "-m" else 2 :])
        return list(self.words[2:])


Runner = Callable[[Command, Path], None]


def commands_in(text: str, page: str = "") -> list[Command]:
    """Return the commands of a page: the lines of its fenced blocks of bash, and every inline `python ..`."""
    found = []
    blocks = code_blocks(text, "bash", "sh", "shell", "console")
    # Some word has to follow the program: a mere `demo.py` in the text is a file's name.
    inline = re.findall(r"`((?:\.venv/bin/)?python3? [^`]+|bash [^`]+|git [^`]+|pip [^`]+)`", prose(text))
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *(" ".join(one.split()) for one in inline)]:
        parser = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;<>")
        parser.whitespace_split, parser.commenters = True, "#"
        words: list[str] = []
        for word in [*parser, "&&"]:
            if set(word) <= set("&|;"):
                if words:
                    found.append(Command(page, tuple(words)))
                words = []
            elif "=" not in word or words:  # a variable set for the command is not its program
                words.append(word)
    return found


FOUND = [command for name in PAGES for command in commands_in(read_page(name), name)]
COMMANDS = list({command.words: command for command in reversed(FOUND)}.values())  # each once, of the first page


class Parsed(BaseException):
    """Raised where a program has understood its arguments, so that it does not begin its work."""


def parse(command: Command, monkeypatch) -> None:
    """Have the command's own program parse its arguments. Fails on those that it refuses, and when it has no parser."""
    real = argparse.ArgumentParser.parse_known_args

    def parse_args(self, args=None, namespace=None):
        _, unknown = real(self, args, namespace)
        if unknown:
            self.error(f"unknown: {unknown}")
        raise Parsed

    def parse_known_args(self, args=None, namespace=None):  # of a program that passes the others on
        real(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.setattr(sys, "argv", [command.program, *command.arguments])
    monkeypatch.chdir(ROOT)
    if command.words[1] != "-m":  # Python itself puts the folder of a file here, where its siblings are found
        monkeypatch.syspath_prepend(str((ROOT / command.program).parent))
    with pytest.raises(Parsed):
        if command.words[1] == "-m":
            runpy.run_module(command.program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / command.program), run_name="__main__")


def passes(*words: str, timeout: int = 900) -> None:
    """Run a program from the root; it has to end with 0."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def replaced(arguments: list[str], **values: object) -> list[str]:
    """The arguments with other values for these flags, of which one that is missing is put at the end."""
    arguments = list(arguments)
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if flag in arguments:
            start = arguments.index(flag)
            end = start + 1
            while end < len(arguments) and not arguments[end].startswith("--"):
                end += 1
            arguments[start:end] = []
        arguments += [flag, *map(str, value if isinstance(value, list) else [value])]
    return arguments


# ---- Each program with its smallest arguments. `tmp` is an empty folder.


def demo(command: Command, tmp: Path) -> None:
    """Run with the bundled model and image in place of the reader's, few tokens, and all output in `tmp`."""
    arguments = [{"photo.jpg": "example.jpg"}.get(word, word) for word in command.arguments]
    if arguments in (["--help"], ["-h"]):
        passes(sys.executable, "demo.py", *arguments)
        return
    small: dict[str, object] = {"max_new_tokens": 8, "device": "cpu"}
    if "--model-path" in arguments:
        small["model_path"] = "models/garden-tiny"
    if "--policy-path" in arguments:
        small["policy_path"] = "policy_checkpoint.pt"
    if "--save-kept" in arguments:
        small["save_kept"] = tmp / "kept.png"
    if "--input" in arguments:
        questions = tmp / "questions.jsonl"
        shutil.copy(ROOT / "example.jpg", tmp)
        questions.write_text('{"image": "example.jpg", "prompt": "How many?"}\n')
        small |= {"input": questions, "output": tmp / "answers.jsonl"}
    passes(sys.executable, "demo.py", *replaced(arguments, **small))


def benchmark_plots(command: Command, tmp: Path) -> None:
    """Draw a published report in place of the reader's own."""
    report = "avis/evaluation/results/speed/mid.json"
    passes(sys.executable, "-m", command.program, report, *replaced(command.arguments[1:], folder=tmp))
    assert len(list(tmp.glob("speed_mid_*.png"))) == 4


def pytest_flags(command: Command, tmp: Path) -> None:
    passes(sys.executable, "-m", "pytest", "--markers", *command.arguments)
    for path in (word for word in command.arguments if word.startswith("tests/")):
        assert (ROOT / path).is_file()


def ruff(command: Command, tmp: Path) -> None:
    known = ("check", "format")
    assert command.arguments[0] in known and "pyproject.toml" in command.arguments
    paths = [word for word in command.arguments[1:] if not word.startswith("--") and word != "pyproject.toml"]
    assert paths and all((ROOT / path).exists() for path in paths)
    passes(sys.executable, "-m", "ruff", *command.arguments[: -len(paths)], "tests/test_documents.py")


def setup(command: Command, tmp: Path) -> None:
    """Check the arguments and the syntax: CI has just run it."""
    assert command.arguments in ([], ["--current-env"])
    passes("bash", "-n", "setup.sh")


def git_in_fork(command: Command, tmp: Path) -> None:
    """Run in a clone, so that nothing is committed here; with a change, since git refuses to commit none."""
    assert command.words[:3] == ("git", "-C", "transformers")
    fork = tmp / "transformers"
    passes("git", "clone", "-q", "--no-checkout", "--shared", str(ROOT / "transformers"), str(fork))
    passes("git", "-C", str(fork), "reset", "-q", "--mixed")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    passes("git", *who, "-C", str(fork), *command.words[3:], "-q", "-m", "all files removed")


def runs_module(**small: object) -> Runner:
    """Return a way to run a module's command with these arguments in place of its own; `TMP` is the empty folder."""

    def run(command: Command, tmp: Path) -> None:
        values = {name: in_folder(value, tmp) for name, value in small.items()}
        passes(sys.executable, "-m", command.program, *replaced(command.arguments, **values))

    return run


def runs_file(**small: object) -> Runner:
    """Return the same for a program that is a file."""

    def run(command: Command, tmp: Path) -> None:
        values = {name: in_folder(value, tmp) for name, value in small.items()}
        passes(sys.executable, command.program, *replaced(command.arguments, **values))

    return run


def in_folder(value: object, tmp: Path) -> object:
    return value.replace("TMP", str(tmp)) if isinstance(value, str) else value


TINY_SPEED = {"geometry": "tiny", "device": "cpu", "visual_tokens": 64, "rho": 0, "rollouts": 1, "rounds": 1}
TINY_SPEED |= {"new_tokens": 4, "pairs": 0}
TINY_STEPS = {"geometry": "tiny", "rollouts": 1, "new_tokens": 4, "repeats": 1}

# A program's way to be run, whether that takes long, and None where its arguments are only parsed.
PROGRAMS: dict[str, tuple[Runner | None, bool]] = {
    ".venv/bin/pip": (None, False),  # a download of gigabytes
    "accelerate": (None, False),  # needs several devices
    "avis.evaluation.adapters.vlmevalkit": (None, False),  # needs VLMEvalKit; run in test_adapters.py
    "avis.evaluation.benchmark": (runs_module(**TINY_SPEED, out="TMP/speed.json"), True),
    "avis.evaluation.benchmark.plots": (benchmark_plots, False),
    "avis.evaluation.figures": (runs_module(out="TMP"), True),
    "avis.evaluation.run": (runs_module(limit=1, processes=1, out="TMP/r.jsonl.gz"), True),
    "avis.evaluation.tables": (None, False),  # reads everything that is committed; run in the evaluation's tests
    "avis.garden.example": (runs_module(out="TMP"), False),
    "avis.garden.make": (runs_module(limit=1, processes=1, out="TMP/split"), False),
    "avis.garden.sheet": (runs_module(out="TMP/sheet.png"), True),
    "avis.garden.training": (None, False),  # minutes at least; run in the garden's tests
    "bash setup.sh": (setup, False),
    "coverage": (None, False),  # the whole suite; run by .ci/run
    "demo.py": (demo, True),
    "docs/lab-notebook/digits.py": (None, False),  # reads the state of a training
    "docs/lab-notebook/few_rows.py": (runs_file(geometry="tiny", rows=1), False),
    "docs/lab-notebook/fresh_pages.py": (runs_file(rows=8), False),
    "docs/lab-notebook/onednn_steps.py": (runs_file(**TINY_STEPS), False),
    "docs/lab-notebook/rollout_batches.py": (runs_file(resamples=40), False),
    "docs/lab-notebook/scoring_time.py": (runs_file(geometry="tiny", sides=4), False),
    "docs/lab-notebook/step_time.py": (runs_file(**TINY_STEPS, visual_tokens=64), False),
    "docs/lab-notebook/trace_errors.py": (runs_file(scenes=1), False),
    "docs/lab-notebook/video_memory.py": (runs_file(geometry="tiny", video_tokens=1024), False),
    "docs/lab-notebook/votes.py": (runs_file(run="TMP", batches=2, scenes=1, problems=4), False),
    "git -C": (git_in_fork, True),
    "grep": (None, False),
    "lmms_eval": (None, False),  # needs lmms-eval; run in test_adapters.py where it is installed
    "mypy": (None, False),  # reads the whole project; run by .ci/run
    "policy.training": (None, False),  # rollouts by the hundred; run in the policy's tests
    "policy.training.calibrate": (None, False),
    "policy.training.collect": (None, False),
    "policy.training.estimate": (runs_module(), False),
    "policy.training.fit": (None, False),
    "policy.training.overhead": (None, False),
    "policy.training.tau": (None, False),
    "pytest": (pytest_flags, True),
    "ruff": (ruff, False),
    "transformers/fork/materialise.py": (None, False),  # changes the tree; run in test_materialise.py
}
NO_PARSER = {".venv/bin/pip", "accelerate", "bash setup.sh", "coverage", "git -C", "grep", "lmms_eval", "mypy"}
NO_PARSER |= {"pytest", "ruff"}


def shown(command: Command) -> str:
    return " ".join(command.words)[:70]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=shown)
def test_every_command_is_of_a_known_program_and_parses(command, monkeypatch):
    """Guards against: a documented flag that was renamed, and a program that no one runs before it is documented."""
    assert command.program in PROGRAMS, f"{command.page}: no line in PROGRAMS for {shlex.join(command.words)}"
    if command.program not in NO_PARSER:
        parse(command, monkeypatch)


def runs(slow: bool) -> list[Command]:
    return [c for c in COMMANDS if (known := PROGRAMS.get(c.program)) and known[0] and known[1] is slow]


@pytest.mark.parametrize("command", runs(slow=False), ids=shown)
def test_quick_commands_run(command, tmp_path):
    """Guards against: a documented command that its program understands and then fails on."""
    PROGRAMS[command.program][0](command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", runs(slow=True), ids=shown)
def test_slow_commands_run(command, tmp_path):
    """Guards against: the same, where it takes longer."""
    PROGRAMS[command.program][0](command, tmp_path)


def test_commands_are_found():
    """Guards against: a page whose commands are not seen, so that every test above passes on nothing."""
    pages = {name for name in PAGES if code_blocks(read_page(name), "bash")}
    assert {command.page for command in FOUND} >= pages > {"README.md", "CONTRIBUTING.md", "docs/cli.md"}
    programs = {command.program for command in COMMANDS}
    assert {"demo.py", "bash setup.sh", "pytest", "avis.garden.make", "avis.garden.training"} <= programs
    text = (
        "Text `python -m a.b --c 1` and `demo.py`.\n\n   ```bash\n   A=1 bash setup.sh && .venv/bin/python x.py \\\n"
        '      --say "a # b" # not this\n   ```\n\n```python\nprint(1)\n```\n'
    )
    assert [c.words for c in commands_in(text)] == [
        ("bash", "setup.sh"),
        (".venv/bin/python", "x.py", "--say", "a # b"),
        ("python", "-m", "a.b", "--c", "1"),
    ]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "line",
    [
        "python -m avis.garden.make --splits test --out x",
        "python demo.py --kdv-ration 0.75",
        "python -m avis.garden.training --preset huge --out x",
        "python -m avis.garden.nothing",
    ],
)
def test_wrong_commands_are_noticed(line, monkeypatch):
    """Guards against: a check that no command fails."""
    with pytest.raises((SystemExit, ImportError)):
        parse(Command("", tuple(line.split())), monkeypatch)
