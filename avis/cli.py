"""What every command line of the project shares: one parser class, and one line for bad input."""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line and takes no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the mistake on stderr and exit with 2."""
        self.exit(2, f"error: {printable(message)} (see --help)\n")


def run_command(command: Callable[[], int | None], interrupted: str = "the same command resumes") -> int:
    """Run a command and return its exit status: 2 with one line for bad input, 130 for Ctrl-C.

    Args:
        command: raises ValueError, OSError or MemoryError with one line for bad input; returns a status or None for 0.
        interrupted: what the user is told after Ctrl-C, unless the KeyboardInterrupt has words of its own.
    """
    try:
        return command() or 0
    except BrokenProcessPool:
        print("error: a worker process died, perhaps for lack of memory: the same command resumes", file=sys.stderr)
        return 2
    except (ValueError, OSError, MemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {printable(lines[0])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(": ".join(["interrupted", *(map(str, stop.args) if stop.args else [interrupted])]), file=sys.stderr)
        return 130


def printable(text: str) -> str:
    """Return a text without characters that would move the cursor or change the colours of a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.strip())
