"""Measure a sweep, and print its document; see `docs/speed.md`::

python -m avis.evaluation.benchmark --geometry tiny --out runs/tiny.json
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from avis.cli import ArgumentParser, run_command
from avis.evaluation.benchmark.geometry import GEOMETRIES, token_grid
from avis.evaluation.benchmark.measure import measure
from avis.evaluation.benchmark.summary import summarize
from avis.evaluation.benchmark.sweep import BUNDLED_MIX, Sweep
from avis.files import write_json
from avis.loading import advise_on_memory

_EXAMPLES = """examples:
  python -m avis.evaluation.benchmark --geometry tiny --visual-tokens 256 --rho 0,0.75 --rollouts 1,5 --new-tokens 16
  python -m avis.evaluation.benchmark --geometry mid --rho 0,0.75 --rollouts 1,5,7 --new-tokens 64 --out runs/mid.json
  python -m avis.evaluation.benchmark --geometry 7b --device cuda --visual-tokens 1024 --pairs 100 --out runs/7b.json
"""


def numbers(kind: type, least: float, most: float) -> Callable[[str], list]:
    """Return a reader of numbers with commas between them, which returns them ascending, each once."""

    def read(text: str) -> list:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"numbers with commas between them, got {text!r}") from None
        if not all(least <= value <= most for value in values):
            raise argparse.ArgumentTypeError(f"numbers from {least} to {most}, got {text!r}")
        return sorted(set(values))

    return read


def image_sizes(text: str) -> list[int]:
    """Return numbers of visual tokens, ascending."""
    values = numbers(int, 1, 16384)(text)
    try:
        for value in values:
            token_grid(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return values


def rollout_mix(text: str) -> dict[int, float]:
    """Return {K: share} of `K:share,K:share`."""
    try:
        mix = {int(k): float(share) for k, share in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"K:share with commas between them, got {text!r}") from None
    if min(mix) < 1 or min(mix.values()) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"K is at least 1 and shares sum to 1, got {text!r}")
    return mix


def build_parser() -> ArgumentParser:
    """Return the command line's parser."""
    parser = ArgumentParser(
        prog="python -m avis.evaluation.benchmark",
        description="Measure the speed of a Qwen2.5-VL with random weights, by stage.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Sweep()
    add = parser.add_argument_group("model").add_argument
    add("--geometry", choices=GEOMETRIES, default=default.geometry, help=f"its shapes (default: {default.geometry})")
    add("--device", choices=("cpu", "cuda"), default=default.device, help=f"default: {default.device}")
    add("--seed", type=int, default=default.seed, help=f"of weights, prompts, sampling (default: {default.seed})")
    add = parser.add_argument_group("rounds").add_argument
    add(
        "--visual-tokens", type=image_sizes, default=default.visual_tokens, metavar="N,N", help="default: 256,1024,4096"
    )
    add("--rho", type=numbers(float, 0, 1), default=default.rho, help="fractions pruned (default: 0,0.5,0.75,0.9)")
    add("--rollouts", type=numbers(int, 1, 64), default=default.rollouts, metavar="K,K", help="default: 1,3,5,7")
    add("--new-tokens", type=int, default=default.new_tokens, help=f"of a rollout (default: {default.new_tokens})")
    add("--rounds", type=int, default=default.rounds, help=f"measurements of each peer (default: {default.rounds})")
    add = parser.add_argument_group("other measurements").add_argument
    add(
        "--video-tokens",
        type=int,
        default=default.video_tokens,
        help=f"of the video whose peak memory is measured; 0: none (default: {default.video_tokens})",
    )
    add("--pairs", type=int, default=default.pairs, help=f"questions of the latency table (default: {default.pairs})")
    mix = ",".join(f"{k}:{share}" for k, share in BUNDLED_MIX.items())
    add("--k-mix", type=rollout_mix, default=default.k_mix, help=f"K:share of its AVIS-like row (default: {mix})")
    add = parser.add_argument_group("output").add_argument
    add(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="the document; the same command resumes from FILE.jsonl beside it (default: none, printed only)",
    )
    return parser


def run(args: argparse.Namespace, command: str) -> None:
    """Measure, print the document, and write it to `--out`.

    Raises:
        ValueError, OSError, MemoryError: with one line.
    """
    sweep = Sweep(**{field.name: getattr(args, field.name) for field in fields(Sweep)})
    if args.out and args.out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {args.out}")  # .jsonl is the file of its measurements
    with tempfile.TemporaryDirectory() as folder, advise_on_memory("use a smaller geometry or fewer visual tokens"):
        lines = measure(sweep, args.out.with_suffix(".jsonl") if args.out else Path(folder) / "sweep.jsonl")
    document: dict[str, Any] = {"command": command} | summarize(lines)
    if args.out:
        write_json(args.out, document)
    print(json.dumps(document, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    command = f"python -m avis.evaluation.benchmark {shlex.join(argv)}"
    resumes = "the same command resumes" if args.out else "without --out nothing is kept"
    return run_command(lambda: run(args, command), interrupted=resumes)


if __name__ == "__main__":
    sys.exit(main())
