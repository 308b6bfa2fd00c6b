"""Fitting the policy to a model: which angle prunes enough, how hard is what, and how often does reasoning pay?

    python -m policy.training --model-path models/garden-tiny --data garden --dev garden:dev --max-new-tokens 160

does all of it; `policy.training.tau`, `.collect`, `.fit` and `.calibrate` are its steps. Each step leaves one JSON
report, which names the command, the seed, the versions, the hash of the weights, and the number of items.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document under another name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(part, path)


def read_json(path: Path, lacks: str) -> Any:
    """The document of a file. Raises ValueError, saying what is lacking, when it is not there or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path} is not there or damaged: {lacks}") from None


def report(step: str, args: argparse.Namespace, seed: int, weights: str, n: int) -> dict[str, Any]:
    """What every report begins with."""
    from avis.provenance import versions

    given = {name.replace("_", "-"): value for name, value in vars(args).items() if value is not None}
    command = " ".join([f"python -m policy.training.{step}", *(f"--{name} {value}" for name, value in given.items())])
    return {
        "step": step,
        "command": command,
        "seed": seed,
        "versions": versions(),
        "weights_sha256": weights,
        "n": n,
    }


def command_line(parser: argparse.ArgumentParser, step: Callable[[argparse.Namespace], None], argv: list[str] | None):
    """Parse, run, and tell bad input in one line. Returns the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    args = parser.parse_args(argv)
    try:
        step(args)
    except (ValueError, OSError, MemoryError, BrokenProcessPool) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {reason[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0
