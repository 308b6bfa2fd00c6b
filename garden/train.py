"""Trains the bundled model from nothing: one command, resumable, seeded.

Stages. *see*: the vision tower alone learns what each merged visual token shows (kind, wear, and place in reading order
of the animal under it), so that language training does not start blind. *speak*: the whole model learns to answer on
small pictures, the first stage's targets kept as a small auxiliary loss. *grow* and *ripen*: the same on pictures up to
full size, each with the learning rate going to zero. No visual token is ever dropped in training::

    python -m garden.train --preset cpu --out models/garden-tiny
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from garden.model import new_model, new_processor
from garden.questions import make_item
from garden.render import frames, render
from garden.scenes import KINDS, MAX_ANIMALS, TOKEN, WEARS, dense_labels, rng_for
from policy.prompts import with_instruction

CLASSES = (len(KINDS) + 1, len(WEARS) + 1, MAX_ANIMALS + 1)
CLIP = 4  # frames of a training clip: two steps of the vision tower's time
SMALL = ((5, 5), (6, 6), (5, 7), (7, 5), (8, 6), (6, 8), (7, 7), (8, 8))
LARGE = ((8, 8), (10, 8), (8, 10), (10, 10), (12, 10), (10, 13), (14, 10), (12, 14), (14, 18), (18, 14))
MIXED = SMALL[:4] + LARGE


@dataclass(frozen=True)
class Stage:
    """One stretch of training: pictures (columns, rows in tokens), animals, and learning rates.

    `video`: share of batches that are small clips instead. `decay`: share of the stage, at its end, over which the
    rates fall to `floor` times themselves.
    """

    name: str
    samples: int
    batch: int
    sizes: tuple[tuple[int, int], ...]
    most: int
    vision_rate: float
    text_rate: float
    dense_weight: float
    video: float = 0.0
    decay: float = 0.0
    floor: float = 0.0


PRESETS = {
    "cpu": (
        Stage("see", 36_000, 32, SMALL, 6, 1.5e-3, 0.0, 1.0, decay=0.3, floor=0.3),
        Stage("speak", 48_000, 32, SMALL, 6, 4e-4, 1.5e-3, 0.3),
        Stage("grow", 20_800, 16, MIXED, 8, 3e-4, 1e-3, 0.3, video=0.15, decay=0.9),
        Stage("ripen", 13_600, 16, MIXED, 8, 2e-4, 7e-4, 0.3, video=0.1, decay=1.0),
    ),
    "gpu": (
        Stage("see", 400_000, 256, SMALL + LARGE, 8, 1.5e-3, 0.0, 1.0, decay=0.3, floor=0.3),
        Stage("speak", 1_200_000, 256, SMALL, 6, 5e-4, 1.5e-3, 0.3),
        Stage("grow", 600_000, 128, LARGE, 8, 4e-4, 1e-3, 0.3, video=0.15, decay=0.8),
    ),
}


def soften(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What files do to pictures: some are resized to another size and back, some saved as JPEG."""
    if rng.random() < 0.3:
        factor = float(rng.uniform(0.7, 1.1))
        small = picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.BICUBIC)
        picture = small.resize(picture.size, Image.BICUBIC)
    if rng.random() < 0.3:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
        picture = Image.open(buffer).convert("RGB")
    return picture


class Batches(IterableDataset):
    """Batches of one stage from batch number `start` on; row `i` of batch `b` is drawn from (seed, stage, b, i) alone.

    Of every batch this process (`rank` of `world`) makes its own rows only.

    Yields:
        (pixels (B, T, H, W, 3) uint8, T = 1 for pictures and `CLIP` for clips; dense labels (B, H/28, W/28, 3);
        prompts; responses).
    """

    def __init__(self, stage: Stage, number: int, seed: int, start: int, rank: int = 0, world: int = 1):
        self.stage, self.number, self.seed, self.start = stage, number, seed, start
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[tuple]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        total = self.stage.samples // self.stage.batch
        for batch in range(self.start + first, total, step):
            yield self.make(batch)

    def make(self, batch: int) -> tuple:
        key = (1000 + self.seed, self.number, batch)
        rng = rng_for("train", *key)
        count = CLIP if rng.random() < self.stage.video else 1
        sizes = self.stage.sizes if count == 1 else SMALL
        columns, rows = sizes[int(rng.integers(len(sizes)))]
        most = min(self.stage.most, max(1, (columns * TOKEN // 66) * (rows * TOKEN // 66)))
        made = []
        for row in range(self.rank, self.stage.batch, self.world):
            rng = rng_for("train", *key, row)
            task = "count" if rng.random() < 0.8 else "attribute"
            item = make_item(rng, task, columns * TOKEN, rows * TOKEN, most)
            thinking = bool(rng.random() < 0.9)
            shown = [render(item.scene)] if count == 1 else frames(item.scene, count)
            shown = np.stack([np.asarray(soften(picture, rng)) for picture in shown])
            prompt, response = with_instruction(item.question, thinking), item.response(thinking)
            made.append((shown, dense_labels(item.scene), prompt, response))
        pixels, dense, prompts, responses = zip(*made, strict=True)
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(dense)), list(prompts), list(responses)


def patchify(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Pictures as the vision tower takes them, as the image processor would make them (sizes multiples of 28).

    Args:
        pixels: (B, T, H, W, 3) uint8; T is 1 (a picture) or even.

    Returns:
        (B * max(1, T/2) * H/14 * W/14, 1176) float32, 2 x 2 merge groups together.
    """
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 2, -1, -1, -1)  # a still picture is two equal frames
    batch, count, height, width, _ = pixels.shape
    x = (pixels.float() / 255 - pixels.new_tensor(mean, dtype=torch.float)) / pixels.new_tensor(std, dtype=torch.float)
    x = x.reshape(batch, count // 2, 2, height // 28, 2, 14, width // 28, 2, 14, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # B, time, row, column, 2, 2, channel, 2, 14, 14
    return x.reshape(batch * count // 2 * height * width // 196, -1)


def batched_attention(self, hidden_states, cu_seqlens, rotary_pos_emb=None, position_embeddings=None, **kwargs):
    """The vision attention with windows of one length run as one call; for training speed on pictures of one size."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    length = hidden_states.shape[0]
    q, k, v = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    owner = torch.repeat_interleave(lengths, lengths)
    out = torch.empty_like(v)
    for size in lengths.unique().tolist():
        rows = (owner == size).nonzero()[:, 0]
        parts = [x[rows].reshape(-1, size, self.num_heads, x.shape[-1]).transpose(1, 2) for x in (q, k, v)]
        joined = F.scaled_dot_product_attention(*parts, scale=self.scaling).transpose(1, 2)
        out = out.index_copy(0, rows, joined.reshape(len(rows), self.num_heads, -1))
    return self.proj(out.reshape(length, -1))


class Trainer:
    """Model, heads of the dense targets, optimiser and place in the schedule; saved and loaded as one file."""

    def __init__(self, preset: str, seed: int, device: str, run: Path, rank: int = 0, world: int = 1):
        self.preset, self.stages, self.seed, self.device, self.run = preset, PRESETS[preset], seed, device, run
        self.rank, self.world = rank, world
        self.processor = new_processor()
        self.tokenizer = self.processor.tokenizer
        self.model = new_model(self.tokenizer, seed).to(device)
        width = self.model.config.text_config.hidden_size
        self.heads = torch.nn.Linear(width, sum(CLASSES)).to(device)
        for block in self.model.visual.blocks:
            block.attn.forward = MethodType(batched_attention, block.attn)
        vision = list(self.model.visual.parameters()) + list(self.heads.parameters())
        seen = {id(p) for p in vision}
        text = [p for p in self.model.parameters() if id(p) not in seen]
        groups = [dict(params=vision), dict(params=text)]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
        self.stage, self.batch, self.seconds = 0, 0, 0.0

    @property
    def state_file(self) -> Path:
        return self.run / "state.pt"

    @property
    def schedule(self) -> list[dict]:
        """The stages as they stand in files: plain dictionaries and lists."""
        return json.loads(json.dumps([asdict(stage) for stage in self.stages]))

    def save(self) -> None:
        if self.rank:
            return
        state = dict(
            preset=self.preset,
            seed=self.seed,
            stages=self.schedule,
            stage=self.stage,
            batch=self.batch,
            seconds=self.seconds,
            model=self.model.state_dict(),
            heads=self.heads.state_dict(),
            optimiser=self.optimiser.state_dict(),
        )
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.state_file)

    def load(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        if (state["preset"], state["seed"]) != (self.preset, self.seed):
            raise ValueError(f"{self.state_file} belongs to preset {state['preset']}, seed {state['seed']}")
        begun = slice(state["stage"] + 1)  # what is still to come may be changed
        if state["stages"][begun] != self.schedule[begun]:
            raise ValueError(f"{self.state_file} was begun with other stages than preset {self.preset} has now")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.stage, self.batch, self.seconds = state["stage"], state["batch"], state["seconds"]

    def set_rates(self, stage: Stage) -> None:
        total = stage.samples // stage.batch
        warm = min(1.0, (self.batch + 1) / 200)
        left = (total - self.batch) / max(1, int(stage.decay * total))
        falling = 1.0
        if stage.decay and left < 1.0:
            falling = stage.floor + (1 - stage.floor) * 0.5 * (1 - math.cos(math.pi * left))
        rates = (stage.vision_rate, stage.text_rate)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * warm * falling

    def dense_loss(self, features: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """Cross-entropy over kind, wear and order of every token (bare ground counts a fifth); accuracy on animals."""
        labels = dense.reshape(-1, 3)
        weight = torch.where(labels[:, 0] > 0, 1.0, 0.2)
        loss, right = 0.0, []
        for part, target in zip(self.heads(features).split(CLASSES, dim=-1), labels.unbind(-1), strict=True):
            loss = loss + (F.cross_entropy(part, target, reduction="none") * weight).sum() / weight.sum()
            right.append((part.argmax(-1) == target)[target > 0].float().mean().item())
        return loss, right

    def encode(self, prompts: list[str], responses: list[str], kind: str, visual: int) -> tuple[torch.Tensor, ...]:
        """Token ids, right-padded, with `visual` placeholders of the kind each, and a mask of what is to be learned."""
        pad, image = self.tokenizer.pad_token_id, getattr(self.model.config, f"{kind}_token_id")
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": prompt}]}]
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            head = self.tokenizer(text).input_ids
            at = head.index(image)
            head = head[:at] + [image] * visual + head[at + 1 :]
            tail = self.tokenizer(response).input_ids + [self.tokenizer.eos_token_id]
            rows.append((head, tail))
        longest = max(len(h) + len(t) for h, t in rows)
        ids = torch.full((len(rows), longest), pad)
        learn = torch.zeros_like(ids, dtype=torch.bool)
        mask = torch.zeros_like(ids)
        for i, (head, tail) in enumerate(rows):
            ids[i, : len(head) + len(tail)] = torch.tensor(head + tail)
            mask[i, : len(head) + len(tail)] = 1
            learn[i, len(head) : len(head) + len(tail)] = True
        return ids, mask, learn

    def loss(self, stage: Stage, pixels, dense, prompts, responses) -> tuple[torch.Tensor, dict[str, float]]:
        image = self.processor.image_processor
        batch, count, height, width, _ = pixels.shape
        patches = patchify(pixels.to(self.device), image.image_mean, image.image_std)
        steps, kind = max(1, count // 2), "image" if count == 1 else "video"
        grid = torch.tensor([[steps, height // 14, width // 14]] * batch, device=self.device)
        dense = dense[:, None].expand(-1, steps, -1, -1, -1)
        features = self.model.visual(patches, grid_thw=grid)
        dense_loss, right = self.dense_loss(features, dense.to(self.device))
        seen = dict(zip(("kind", "wear", "order"), right, strict=True))
        if not stage.text_rate:
            return dense_loss, seen
        encoded = self.encode(prompts, responses, kind, features.shape[0] // batch)
        ids, mask, learn = (x.to(self.device) for x in encoded)
        embeds = self.model.get_input_embeddings()(ids)
        placeholder = getattr(self.model.config, f"{kind}_token_id")
        embeds = embeds.masked_scatter((ids == placeholder)[..., None], features.to(embeds.dtype))
        positions, _ = self.model.model.get_rope_index(ids, attention_mask=mask, **{f"{kind}_grid_thw": grid})
        hidden = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        where = learn[:, 1:]
        logits = self.model.lm_head(hidden[:, :-1][where])
        targets = ids[:, 1:][where]
        text_loss = F.cross_entropy(logits, targets)
        wrong = torch.zeros_like(ids[:, 1:])
        wrong[where] = (logits.argmax(-1) != targets).long()
        exact = (wrong.sum(1) == 0).float().mean().item()
        return text_loss + stage.dense_weight * dense_loss, {"loss": text_loss.item(), "exact": exact, **seen}

    def train(self, minutes: float, workers: int) -> bool:
        """Go on until the schedule's end (True) or for `minutes` of this call; saves every two minutes."""
        begin = saved = time.monotonic()
        log = (self.run / "log.jsonl").open("a")
        self.model.train()
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            batches = Batches(stage, self.stage, self.seed, self.batch, self.rank, self.world)
            loader = DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
            total = stage.samples // stage.batch
            bar = tqdm(loader, initial=self.batch, total=total, desc=stage.name, mininterval=5, disable=self.rank > 0)
            mean: dict[str, float] = {}
            for batch in bar:
                self.set_rates(stage)
                with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                    loss, seen = self.loss(stage, *batch)
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                params = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
                if self.world > 1:
                    self.average([p.grad for p in params])
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                self.optimiser.step()
                self.batch += 1
                for key, value in seen.items():
                    mean[key] = 0.98 * mean.get(key, value) + 0.02 * value
                bar.set_postfix({key: f"{value:.3f}" for key, value in mean.items()}, refresh=False)
                now = time.monotonic()
                if self.batch % 100 == 0 and self.rank == 0:
                    line = dict(stage=stage.name, samples=self.batch * stage.batch, seconds=self.seconds + now - saved)
                    log.write(json.dumps({**line, **{k: round(v, 4) for k, v in mean.items()}}) + "\n")
                    log.flush()
                due = now - begin > 60 * minutes
                if self.agreed(due or now - saved > 120):
                    self.seconds, saved = self.seconds + now - saved, now
                    self.save()
                    if self.agreed(due):
                        return False
            self.stage, self.batch = self.stage + 1, 0
        self.seconds += time.monotonic() - saved
        self.save()
        return True

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.div_(self.world).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def agreed(self, yes: bool) -> bool:
        """Whether the first process says yes: clocks differ, but all must save and stop at the same batch."""
        if self.world == 1:
            return yes
        word = torch.tensor([float(yes)])
        torch.distributed.broadcast(word, src=0)
        return bool(word.item())

    def export(self, out: Path) -> None:
        """Write the model as an ordinary checkpoint folder, in shards small enough for any host."""
        self.model.save_pretrained(out, max_shard_size="14MB", safe_serialization=True)
        self.processor.save_pretrained(out)
        record = dict(
            preset=self.preset,
            seed=self.seed,
            processes=self.world,
            seconds=round(self.seconds),
            torch=torch.__version__,
            finished=self.stage == len(self.stages),
            stages=self.schedule,
        )
        (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def work(rank: int, args: argparse.Namespace, run: Path) -> None:
    """One training process: `rank` of `args.processes`."""
    if args.device == "cpu":
        torch.set_num_threads(1)  # small matrices: processes use two cores, threads hardly do
    if args.processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{run.resolve()}/rendezvous", rank=rank, world_size=args.processes
        )
    trainer = Trainer(args.preset, args.seed, args.device, run, rank, args.processes)
    if trainer.state_file.exists():
        trainer.load()
    done = trainer.train(args.minutes, args.workers)
    if rank == 0:
        # A pause leaves the model in the run's folder: what ships is not overwritten by half a training.
        out = args.out if done else run / "model"
        trainer.export(out)
        print(f"{'finished' if done else 'paused'}: {out} ({trainer.seconds / 60:.0f} min of training so far)")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Train the bundled model. Killed and started again, it goes on.")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (resumably) after this long")
    parser.add_argument("--run", type=Path, default=Path("runs/garden"), help="where the resumable state is kept")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--processes", type=int, default=1 if cuda else min(2, os.cpu_count()), help="CPU processes")
    parser.add_argument("--workers", type=int, default=14 if cuda else 0, help="extra processes that draw pictures")
    args = parser.parse_args()
    run = args.run / f"{args.preset}-{args.seed}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "rendezvous").unlink(missing_ok=True)
    if args.processes > 1:
        torch.multiprocessing.spawn(work, (args, run), nprocs=args.processes)
    else:
        work(0, args, run)


if __name__ == "__main__":
    main()
