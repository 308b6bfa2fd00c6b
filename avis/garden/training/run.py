"""Runs a training to its end or to a pause, in one process or in several::

run_training(TrainingConfig(preset="cpu", out=Path("models/next/garden-tiny"), run=Path("runs/garden/cpu-0")))
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from avis.garden.training.trainer import STATE_FILE, Trainer
from avis.processes import end_with_parent


@dataclass(frozen=True)
class TrainingConfig:
    """What the command line asks for.

    Attributes:
        preset: a name in `stages.PRESETS`.
        out: checkpoint folder to write when training is finished.
        run: folder of the resumable state.
        start_from: checkpoint folder whose weights to begin with.
        seed: of weights and data.
        minutes: training pauses after them.
        device: "cpu" or "cuda".
        num_processes: that train together, on the CPU.
        num_workers: extra processes that draw images.
    """

    preset: str
    out: Path
    run: Path
    start_from: Path | None = None
    seed: int = 0
    minutes: float = math.inf
    device: str = "cpu"
    num_processes: int = 1
    num_workers: int = 0


def run_training(config: TrainingConfig) -> None:
    """Train in as many processes as the config says, and write the model.

    Raises:
        ValueError: the config is out of range, or the run's state is of another preset, seed or schedule.
        OSError: a folder cannot be written.
    """
    for name, value, least in (("processes", config.num_processes, 1), ("workers", config.num_workers, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not config.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {config.minutes}")
    if config.start_from and not config.start_from.is_dir():
        raise ValueError(f"--start-from: no such folder: {config.start_from}")
    config.run.mkdir(parents=True, exist_ok=True)
    (config.run / "rendezvous").unlink(missing_ok=True)
    if config.num_processes == 1:
        train_in_process(0, config)
        return
    try:
        torch.multiprocessing.spawn(train_in_process, (config,), nprocs=config.num_processes)
    except torch.multiprocessing.ProcessRaisedException as error:
        # Its message is the process's traceback, whose last line says what is wrong.
        raise ValueError(str(error).strip().splitlines()[-1]) from error


def train_in_process(process_index: int, config: TrainingConfig) -> None:
    """Train as one of `config.num_processes`.

    Args:
        process_index: of this process, from 0.
        config: of the training.

    Raises:
        ValueError: the run's state is of another preset, seed or schedule.
    """
    if config.device == "cpu":
        torch.set_num_threads(1)  # matrices are small: processes use two cores, threads hardly do
    if config.num_processes > 1:
        end_with_parent()
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{config.run.resolve()}/rendezvous",
            rank=process_index,
            world_size=config.num_processes,
        )
    has_state = (config.run / STATE_FILE).exists()
    trainer = Trainer(
        preset=config.preset,
        seed=config.seed,
        device=config.device,
        run=config.run,
        process_index=process_index,
        num_processes=config.num_processes,
        start_from=None if has_state else config.start_from,
    )
    if has_state:
        trainer.load_state()
    is_finished = trainer.train(config.minutes, config.num_workers)
    if process_index == 0:
        # A pause writes into the run's folder: half a training does not replace a finished model.
        out = config.out if is_finished else config.run / "model"
        trainer.export(out)
        word = "finished" if is_finished else "paused"
        print(f"{word}: {out} ({trainer.seconds / 60:.0f} min of training so far)")
