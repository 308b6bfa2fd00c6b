"""The command that trains a model of the garden; it resumes when it is started again::

python -m avis.garden.training --preset cpu --start-from models/garden-tiny --out models/next/garden-tiny
"""

import math
import os
import sys
from pathlib import Path

import torch

from avis.cli import ArgumentParser, run_command
from avis.garden.training.run import TrainingConfig, run_training
from avis.garden.training.stages import PRESETS


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input."""
    args = _parser().parse_args(argv)
    config = TrainingConfig(
        preset=args.preset,
        out=args.out,
        run=args.run / f"{args.preset}-{args.seed}",
        start_from=args.start_from,
        seed=args.seed,
        minutes=args.minutes,
        device=args.device,
        num_processes=args.processes,
        num_workers=args.workers,
    )
    return run_command(lambda: run_training(config))


def _parser() -> ArgumentParser:
    has_cuda = torch.cuda.is_available()
    parser = ArgumentParser(
        prog="python -m avis.garden.training",
        description="Train a model of the garden. The same command resumes a run that was stopped.",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="the schedule (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write when training is finished")
    parser.add_argument("--run", type=Path, default=Path("runs/garden"), help="folder of the resumable state")
    parser.add_argument("--start-from", type=Path, help="checkpoint folder whose weights to begin with")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="pause after this long (default: never)")
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=1 if has_cuda else min(2, os.cpu_count() or 1),
        help="that train together, on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=14 if has_cuda else 0,
        help="extra processes that draw images (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
