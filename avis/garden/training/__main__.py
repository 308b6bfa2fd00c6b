"""The command that trains a model of the garden; it resumes when it is started again::

python -m avis.garden.training --preset cpu --start-from models/garden-tiny --out models/next/garden-tiny
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch

from avis.cli import ArgumentParser, run_command
from avis.garden.training.stages import PRESETS
from avis.garden.training.trainer import STATE_FILE, Trainer
from avis.processes import end_with_parent


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _train(args))


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


def _train(args: argparse.Namespace) -> None:
    """Train in one process or several.

    Raises:
        ValueError, OSError: with one line.
    """
    for name, value, least in (("processes", args.processes, 1), ("workers", args.workers, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not args.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {args.minutes}")
    if args.start_from and not args.start_from.is_dir():
        raise ValueError(f"--start-from: no such folder: {args.start_from}")
    run = args.run / f"{args.preset}-{args.seed}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "rendezvous").unlink(missing_ok=True)
    if args.processes == 1:
        train_in_process(0, args, run)
        return
    try:
        torch.multiprocessing.spawn(train_in_process, (args, run), nprocs=args.processes)
    except torch.multiprocessing.ProcessRaisedException as error:
        # Its message is the process's traceback; bad input is the last line.
        raise ValueError(str(error).strip().splitlines()[-1]) from error


def train_in_process(process_index: int, args: argparse.Namespace, run: Path) -> None:
    """Train as one of `args.processes`.

    Args:
        process_index: of this process, from 0.
        args: the command line.
        run: folder of the resumable state.

    Raises:
        ValueError: the run's state is of another preset, seed or schedule.
    """
    if args.device == "cpu":
        torch.set_num_threads(1)  # matrices are small: processes use two cores, threads hardly do
    if args.processes > 1:
        end_with_parent()
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{run.resolve()}/rendezvous",
            rank=process_index,
            world_size=args.processes,
        )
    has_state = (run / STATE_FILE).exists()
    start_from = None if has_state else args.start_from
    trainer = Trainer(args.preset, args.seed, args.device, run, process_index, args.processes, start_from)
    if has_state:
        trainer.load_state()
    is_finished = trainer.train(args.minutes, args.workers)
    if process_index == 0:
        # A pause writes into the run's folder: half a training does not replace a finished model.
        out = args.out if is_finished else run / "model"
        trainer.export(out)
        word = "finished" if is_finished else "paused"
        print(f"{word}: {out} ({trainer.seconds / 60:.0f} min of training so far)")


if __name__ == "__main__":
    sys.exit(main())
