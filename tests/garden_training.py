"""What the tests of the garden's models and training share: one processor, and trainers of tiny schedules."""

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from avis.garden.model import new_processor
from avis.garden.scenes import rng_for
from avis.garden.training import data, trainer
from avis.garden.training.data import PackedRow, draw_row
from avis.garden.training.stages import PRESETS, Stage
from avis.garden.training.trainer import STATE_FILE, Trainer

EASY = (0.5, 0.3, 0.2, 0.0, 0.0)
TINY = ((5, 5), (6, 5))
MINI = Stage("finetune", 9, 3, TINY, (0.4, 0.3, 0.3), EASY, 3, 4e-4, 1.5e-3, 0.3)
# The two stages of the preset "mini": five tiny batches each.
VISION = Stage("vision", 10, 2, TINY, (1.0, 0.0, 0.0), EASY, 1, 1.5e-3, 0.0, 1.0, decay_fraction=0.3, min_lr_ratio=0.3)
FINETUNE = Stage("finetune", 10, 2, TINY, (0.6, 0.2, 0.2), EASY, 2, 4e-4, 1.5e-3, 0.3, decay_fraction=0.9)


@lru_cache(maxsize=2)
def garden_processor(is_second: bool = False) -> Qwen2_5_VLProcessor:
    """Return the processor made anew (seconds); the shipped one is compared with it."""
    return new_processor(is_second)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts) -> dict:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def shrink_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pairs and videos of small stages at tiny sizes; training has sizes of their own for them."""
    monkeypatch.setattr(data, "SMALL", TINY)


def row_of(medium: str, number: int, num_questions: int = 4, size: tuple[int, int] = (6, 5), **change) -> PackedRow:
    """Return a row as training draws it."""
    return draw_row(rng_for("train", 900, number), replace(MINI, num_questions=num_questions, **change), medium, size)


def trainer_factory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that makes trainers of the preset "mini", on a clock of 50 seconds a tick."""
    monkeypatch.setitem(PRESETS, "mini", (VISION, FINETUNE))
    monkeypatch.setattr(trainer, "new_processor", garden_processor)
    ticks = iter(range(0, 10**9, 50))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def make(run: str, seed: int = 0, killed_at: int | None = None, start_from: Path | None = None) -> Trainer:
        folder = tmp_path / run
        folder.mkdir(exist_ok=True)
        made = Trainer("mini", seed, "cpu", folder, start_from=start_from)
        if (folder / STATE_FILE).exists():
            made.load_state()
        if killed_at is not None:
            loss, calls = made.loss, iter(range(1, 100))

            def dies(*args):
                if next(calls) == killed_at:
                    raise KeyboardInterrupt
                return loss(*args)

            made.loss = dies
        return made

    return make


def enlarge(model: Qwen2_5_VLForConditionalGeneration):
    """Give the model weights with which every token matters: fresh ones hide a wrong position or mask."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            std = 1.2 / parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * std


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return everything that training changes, by name."""
    heads = {f"heads.{name}": value for name, value in trainer.heads.state_dict().items()}
    fitted = {"label_embeddings": trainer.label_embeddings.detach(), "residual_std": trainer.residual_std}
    return {**trainer.model.state_dict(), **heads, **fitted}
