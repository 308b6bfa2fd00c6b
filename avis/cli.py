"""The parts that all command lines share: the parser class, and one line on stderr for bad input."""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line and takes no abbreviated flags.

    Subcommands get the same class.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the mistake on stderr and exit with 2."""
        self.exit(2, f"error: {printable(message)} (see --help)\n")


def run_command(command: Callable[[], int | None], interrupted: str = "the same command resumes") -> int:
    """Run a command and return its exit status: 2 with one line for bad input, 130 for Ctrl-C.

    Args:
        command: raises ValueError, OSError or MemoryError with one line for bad input; returns a status or None for 0.
        interrupted: printed after Ctrl-C, unless the KeyboardInterrupt has a message of its own; may be empty.

    Returns:
        The exit status. Other exceptions are bugs and pass.
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
        print(": ".join(filter(None, ["interrupted", *map(str, stop.args or [interrupted])])), file=sys.stderr)
        return 130


def printable(text: str) -> str:
    """Return a text, stripped, without characters that would move the cursor or change a terminal's colours."""
    return replace_unprintable(text.strip())


def replace_unprintable(text: str) -> str:
    """Return a text with U+FFFD for every control character but the line break."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
