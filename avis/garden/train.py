"""Trains the bundled model: one command, resumable, seeded.

Stages. *see*: the vision tower alone learns what each merged visual token shows (`scenes.LABELS`), so that language
training does not start blind. *recite*, *reason*: the language model alone learns to reason; in place of the tower's
features it reads what these would be for each token's true labels (`Trainer.palette`, a least-squares fit), so that no
picture has to be drawn. *look*: the tower alone, its features drawn towards the palette, as the language model has come
to read it. *grow*: the whole model, up to full size, labels and palette kept as auxiliary losses. *ripen*: full size,
the learning rate going to zero. No visual token is ever dropped in training.

Several questions are asked about each picture in one row: question and response of each see the picture and themselves
only, at the positions that they would have alone, so that the picture is paid for once::

    python -m avis.garden.train --preset cpu --out models/garden-tiny
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLProcessor

from avis.garden.model import new_model, new_processor
from avis.garden.render import frames, render
from avis.garden.scenes import CLASSES, LABELS, dense_labels, rng_for
from avis.garden.tasks import IMAGE, IMAGES, SIZES, TASKS, VIDEO, Item, ask, make_item
from avis.garden.tasks.base import Extras
from avis.prompts import answer_format_for, with_instruction

TINY = ((5, 5), (6, 5), (5, 6), (6, 6))
SMALL = ((5, 5), (6, 6), (5, 7), (7, 5), (8, 6), (6, 8), (7, 7), (8, 8), (9, 7), (7, 9))
MIDDLE = ((8, 8), (10, 8), (8, 10), (10, 10), (12, 10), (10, 13), (14, 10), (12, 14), (14, 14))
FULL = SIZES["image"]
EASY, ALL = (0.4, 0.35, 0.25, 0.0, 0.0), (0.27, 0.25, 0.23, 0.15, 0.10)
TASK_WEIGHT = {"read": 1.5, "price": 2.5, "hops": 1.5, "odd": 0.7}  # the others: 1


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    `pictures`: how many, `batch` of them at a time, of `sizes` (columns, rows in merged tokens); `media`: shares of
    pictures, pairs of pictures and clips; `levels`: shares of levels 1 to 5; `questions`: how many about each. `decay`:
    share of the stage, at its end, over which the rates fall to `floor` times themselves. `eyes`: False for the
    language model alone, on labels; `match_weight`: of the features' distance from the palette. `choices`: share of
    multiple choice; `conclusion`: what a token after a trace's last semicolon (value, letter, answer) counts, where
    any other counts 1; `extras`: chance of tags, and of a sign, that the first question does not need. `profile`: in
    whose words an answer is asked for (`avis.prompts`), "vl-rethinker" for one in a box.
    """

    name: str
    pictures: int
    batch: int
    sizes: tuple[tuple[int, int], ...]
    media: tuple[float, float, float]
    levels: tuple[float, ...]
    questions: int
    vision_rate: float
    text_rate: float
    dense_weight: float
    decay: float = 0.0
    floor: float = 0.0
    match_weight: float = 0.0
    eyes: bool = True
    choices: float = 0.5
    conclusion: float = 1.0
    extras: float = 0.5
    profile: str = "avis"


BLIND = dict(eyes=False, choices=0.8, conclusion=5.0)  # the letter of an option is what is learned last
RIPE = dict(match_weight=0.2, conclusion=2.0)
PRESETS = {
    "cpu": (
        Stage("recite", 19_200, 8, TINY, (1.0, 0.0, 0.0), EASY, 6, 0.0, 2e-3, 0.0, **BLIND),
        Stage("reason", 8_800, 8, SMALL + MIDDLE + FULL[:4], (0.6, 0.15, 0.25), ALL, 6, 0.0, 1.5e-3, 0.0, **BLIND),
        Stage("look", 4_000, 8, MIDDLE + FULL, (0.72, 0.08, 0.2), ALL, 1, 6e-4, 0.0, 1.0, match_weight=1.0, extras=0.8),
        Stage("ripen", 7_600, 4, FULL, (0.56, 0.14, 0.3), ALL, 6, 4e-4, 1.2e-3, 0.3, decay=1.0, **RIPE),
    ),
    # Another backbone for the bundled policy: warm-started, with another seed, and answering in a box.
    "boxed": (
        Stage("boxed", 2_400, 4, FULL, (0.56, 0.14, 0.3), ALL, 6, 2e-4, 1.2e-3, 0.0, decay=1.0, profile="vl-rethinker"),
    ),
    "gpu": (
        Stage("see", 60_000, 128, SMALL + MIDDLE, (0.75, 0.0, 0.25), ALL, 1, 1.5e-3, 0.0, 1.0),
        Stage("recite", 300_000, 96, TINY, (1.0, 0.0, 0.0), EASY, 6, 0.0, 2e-3, 0.0, **BLIND),
        Stage("reason", 300_000, 96, SMALL + MIDDLE + FULL[:4], (0.6, 0.15, 0.25), ALL, 6, 0.0, 2e-3, 0.0, **BLIND),
        Stage(
            "look", 150_000, 128, MIDDLE + FULL, (0.72, 0.08, 0.2), ALL, 1, 1e-3, 0.0, 1.0, match_weight=1.0, extras=0.8
        ),
        Stage("grow", 150_000, 96, MIDDLE + FULL[:4], (0.6, 0.12, 0.28), ALL, 6, 6e-4, 1.5e-3, 0.3, match_weight=0.2),
        Stage("ripen", 300_000, 96, FULL, (0.56, 0.14, 0.3), ALL, 6, 5e-4, 1.2e-3, 0.3, decay=0.9, **RIPE),
    ),
}


@dataclass(frozen=True)
class Pack:
    """What is shown, (T, H, W, 3) uint8 each (two for a pair, T > 1 for a clip; none in a stage without eyes), dense
    labels, and what is asked."""

    shown: list[np.ndarray]
    dense: list[np.ndarray]
    medium: str
    asked: list[tuple[str, str]]


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


def make_pack(rng: np.random.Generator, stage: Stage, medium: str, size: tuple[int, int]) -> Pack:
    """One picture, pair or clip with questions of several tasks about it, all drawn from `rng`."""
    tasks = {"image": IMAGE, "images": IMAGES, "video": VIDEO}[medium]
    weights = np.array([TASK_WEIGHT.get(task.name, 1.0) for task in tasks])
    level = 1 + int(rng.choice(5, p=stage.levels))

    def drawn(weights: np.ndarray) -> str:
        return tasks[int(rng.choice(len(tasks), p=weights / weights.sum()))].name

    extras = Extras(bool(rng.random() < stage.extras), bool(rng.random() < stage.extras))
    first = make_item(rng, drawn(weights), level, _form(rng, stage), size, extras)
    items: list[Item] = [first]
    if first.task == "hops":
        # Who hops stays in place: what can be asked of a picture can be asked of such a clip.
        tasks = (TASKS["hops"], TASKS["count"])
        weights = np.array([0.7, 0.3])
    while len(items) < stage.questions:
        # Whatever does not fit this scene is drawn again; the first task always has more to ask, or is asked again.
        for _ in range(6):
            more = ask(rng, first, drawn(weights), _form(rng, stage))
            if more:
                break
        items.append(more or first)
    asked, profile = [], answer_format_for("", stage.profile)
    for item in items:
        thinking = bool(rng.random() < 0.9)
        prompt = with_instruction(item.question, thinking, profile)
        asked.append((prompt, item.response(thinking, boxed="\\boxed" in profile.thinking)))
    shown = []
    for scene in first.scenes if stage.eyes else ():
        pictures = frames(scene) if scene.seconds else [render(scene)]
        shown.append(np.stack([np.asarray(soften(picture, rng)) for picture in pictures]))
    return Pack(shown, [dense_labels(scene) for scene in first.scenes], medium, asked)


def _form(rng: np.random.Generator, stage: Stage) -> str:
    return "choice" if rng.random() < stage.choices else "free"


class Batches(IterableDataset):
    """Batches of one stage from batch number `start` on; row `i` of batch `b` is drawn from (seed, stage, b, i) alone.

    Of every batch this process (`rank` of `world`) makes its own rows only. Yields lists of `Pack`.
    """

    def __init__(self, stage: Stage, number: int, seed: int, start: int, rank: int = 0, world: int = 1):
        self.stage, self.number, self.seed, self.start = stage, number, seed, start
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[Pack]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        total = self.stage.pictures // self.stage.batch
        for batch in range(self.start + first, total, step):
            yield self.make(batch)

    def make(self, batch: int) -> list[Pack]:
        key = (1000 + self.seed, self.number, batch)
        rng = rng_for("train", *key)
        # One medium and size a batch: rows of equal length waste no padding.
        medium = str(rng.choice(("image", "images", "video"), p=self.stage.media))
        sizes = self.stage.sizes
        if medium != "image":
            # A pair costs twice what a picture does, a clip several times: both are smaller.
            sizes = SIZES[medium] if sizes == FULL else SMALL
        size = sizes[int(rng.integers(len(sizes)))]
        rows = range(self.rank, self.stage.batch, self.world)
        return [make_pack(rng_for("train", *key, row), self.stage, medium, size) for row in rows]


class Encoder:
    """Makes packs into a batch's tensors; it needs no model, so that the processes that draw pictures can do it."""

    def __init__(self, processor: Qwen2_5_VLProcessor, config: Qwen2_5_VLConfig):
        self.processor, self.config = processor, config

    def batch(self, packs: list[Pack], text: bool = True) -> dict[str, torch.Tensor]:
        """All that `Trainer.loss` takes: labels (tokens, 8); where something is shown, pixels (uint8, flat: of one
        picture or clip after the other), sizes (items, 4) of them as (T, H, W, 3), and grid (items, 3); where there is
        `text`, what `rows` makes."""
        shown = [pictures for pack in packs for pictures in pack.shown]
        dense = [labels for pack in packs for labels in pack.dense]
        made = dict(labels=torch.from_numpy(np.concatenate([d.reshape(-1, len(LABELS)) for d in dense])))
        if shown:
            made |= dict(
                pixels=torch.from_numpy(np.concatenate([pictures.reshape(-1) for pictures in shown])),
                sizes=torch.tensor([pictures.shape for pictures in shown]),
                grid=torch.tensor([[d.shape[0], 2 * d.shape[1], 2 * d.shape[2]] for d in dense]),
            )
        return made | self.rows(packs) if text else made

    def encode(self, pack: Pack, visual: list[int]) -> tuple[list[int], list[list[int]], list[int]]:
        """Token ids: of what all questions share (with `visual` placeholders an item), of each question with its
        response, and how many of these are the question's."""
        kind = "video" if pack.medium == "video" else "image"
        placeholder = getattr(self.config, f"{kind}_token_id")
        content = [{"type": kind} for _ in visual] + [{"type": "text", "text": "\0"}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, after = text.split("\0")
        shared, left = [], list(visual)
        for token in self.processor.tokenizer(before).input_ids:
            shared += [token] * left.pop(0) if token == placeholder else [token]
        blocks, asked = [], []
        for prompt, response in pack.asked:
            head = self.processor.tokenizer(prompt + after).input_ids
            blocks.append(head + self.processor.tokenizer(response).input_ids + [self.processor.tokenizer.eos_token_id])
            asked.append(len(head))
        return shared, blocks, asked

    def rows(self, packs: list[Pack]) -> dict[str, torch.Tensor]:
        """The language model's input: ids and learn (B, S), positions (3, B, S), mask (B, 1, S, S), added to scores."""
        encoded = []
        for pack in packs:
            visual = [dense.shape[0] * dense.shape[1] * dense.shape[2] for dense in pack.dense]
            encoded.append((pack, *self.encode(pack, visual)))
        longest = max(len(shared) + sum(map(len, blocks)) for _, shared, blocks, _ in encoded)
        size = (len(packs), longest)
        ids = torch.full(size, self.processor.tokenizer.pad_token_id)
        learn = torch.zeros(size, dtype=torch.bool)
        owner = torch.full(size, -1)  # 0: shared by all questions, n: of question n, -1: padding
        positions = torch.zeros(3, *size, dtype=torch.long)
        for row, (pack, shared, blocks, asked) in enumerate(encoded):
            grids = torch.tensor([[d.shape[0], 2 * d.shape[1], 2 * d.shape[2]] for d in pack.dense])
            kind = "video" if pack.medium == "video" else "image"
            at, ids_shared = len(shared), torch.tensor([shared])
            where, _ = Qwen2_5_VLModel.get_rope_index(self, ids_shared, **{f"{kind}_grid_thw": grids})
            ids[row, :at], owner[row, :at], positions[:, row, :at] = ids_shared[0], 0, where[:, 0]
            following = int(where.max()) + 1
            for number, (block, head) in enumerate(zip(blocks, asked, strict=True), start=1):
                end = at + len(block)
                ids[row, at:end], owner[row, at:end] = torch.tensor(block), number
                positions[:, row, at:end] = following + torch.arange(len(block))
                learn[row, at + head : end] = True
                at = end
        seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        order = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill_(~(seen & order), -torch.inf)[:, None]
        return dict(ids=ids, learn=learn, positions=positions, mask=mask)


def patchify(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """A picture or clip as the vision tower takes it, as the processor would make it (sizes multiples of 28).

    Args:
        pixels: (T, H, W, 3) uint8; T is 1 (a picture) or even.

    Returns:
        (max(1, T/2) * H/14 * W/14, 1176) float32, 2 x 2 merge groups together.
    """
    if len(pixels) == 1:
        pixels = pixels.expand(2, -1, -1, -1)  # a still picture is two equal frames
    count, height, width, _ = pixels.shape
    x = (pixels.float() / 255 - pixels.new_tensor(mean, dtype=torch.float)) / pixels.new_tensor(std, dtype=torch.float)
    x = x.reshape(count // 2, 2, height // 28, 2, 14, width // 28, 2, 14, 3)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # time, row, column, 2, 2, channel, 2, 14, 14
    return x.reshape(count // 2 * height * width // 196, -1)


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


def weights_of(labels: torch.Tensor) -> torch.Tensor:
    """What tokens count for, (tokens,): those that lie on something 1, the ground a fifth."""
    return torch.where(labels.amax(1) > 0, 1.0, 0.2)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    """(tokens, 8) to (tokens, sum(CLASSES)) float32, one class of each label set."""
    parts = [F.one_hot(part, count) for part, count in zip(labels.unbind(-1), CLASSES, strict=True)]
    return torch.cat(parts, dim=-1).float()


class Trainer:
    """Model, heads of the dense targets, optimiser and place in the schedule; saved and loaded as one file."""

    def __init__(
        self, preset: str, seed: int, device: str, run: Path, rank: int = 0, world: int = 1, start: Path | None = None
    ):
        self.preset, self.stages, self.seed, self.device, self.run = preset, PRESETS[preset], seed, device, run
        self.rank, self.world = rank, world
        self.processor = new_processor()
        self.tokenizer = self.processor.tokenizer
        self.model = new_model(self.tokenizer, seed)
        self.encoder = Encoder(self.processor, self.model.config)
        self.started_from = str(start) if start else None
        if start:
            self.warm_start(start)
        self.model.to(device)
        width = self.model.config.text_config.hidden_size
        self.heads = torch.nn.Linear(width, sum(CLASSES)).to(device)
        self.palette = torch.nn.Parameter(torch.zeros(sum(CLASSES), width, device=device))
        self.spread = torch.zeros(width, device=device)  # of features about their labels' sum in the palette
        for block in self.model.visual.blocks:
            block.attn.forward = MethodType(batched_attention, block.attn)
        vision = list(self.model.visual.parameters())
        seen = {id(p) for p in vision}
        text = [p for p in self.model.parameters() if id(p) not in seen]
        groups = [dict(params=vision), dict(params=text), dict(params=list(self.heads.parameters()))]
        groups.append(dict(params=[self.palette], weight_decay=0.0))
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
            started_from=self.started_from,
            stages=self.schedule,
            stage=self.stage,
            batch=self.batch,
            seconds=self.seconds,
            model=self.model.state_dict(),
            heads=self.heads.state_dict(),
            palette=self.palette.detach(),
            spread=self.spread,
            optimiser=self.optimiser.state_dict(),
        )
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.state_file)

    def load(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        if (state["preset"], state["seed"]) != (self.preset, self.seed):
            raise ValueError(f"{self.state_file} belongs to preset {state['preset']}, seed {state['seed']}")
        begun = slice(state["stage"] + bool(state["batch"]))  # what is still to come may be changed
        if state["stages"][begun] != self.schedule[begun]:
            raise ValueError(f"{self.state_file} was begun with other stages than preset {self.preset} has now")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.palette.data.copy_(state["palette"])
        self.spread.copy_(state["spread"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.started_from = state["started_from"]
        self.stage, self.batch, self.seconds = state["stage"], state["batch"], state["seconds"]

    def set_rates(self, stage: Stage) -> None:
        total = stage.pictures // stage.batch
        warm = min(1.0, (self.batch + 1) / 50)
        left = (total - self.batch) / max(1, int(stage.decay * total))
        falling = 1.0
        if stage.decay and left < 1.0:
            falling = stage.floor + (1 - stage.floor) * 0.5 * (1 - math.cos(math.pi * left))
        own = 0.0 if stage.eyes else stage.text_rate
        rates = (stage.vision_rate, stage.text_rate, 5 * stage.vision_rate, own)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * warm * falling

    def warm_start(self, folder: Path) -> None:
        """Begin with the weights of a checkpoint of the same shape; words it knows keep their embeddings.

        Raises:
            ValueError: when its layers have other shapes.
        """
        loaded = {}
        for file in sorted(folder.glob("*.safetensors")):
            loaded |= load_file(file)
        own = self.model.state_dict()
        # Names in files are those of the released checkpoints; the model's own are one level deeper.
        names = {n.replace("model.visual.", "visual.").replace("model.language_model.", "model."): n for n in own}
        old, new = AutoTokenizer.from_pretrained(folder).get_vocab(), self.tokenizer.get_vocab()
        shared = [(new[word], old[word]) for word in new if word in old]
        into, out_of = (torch.tensor(ids) for ids in zip(*shared, strict=True))
        for name, tensor in loaded.items():
            target = own[names[name]]
            if name.startswith(("model.embed_tokens", "lm_head")):
                target[into] = tensor[out_of]
            elif target.shape != tensor.shape:
                raise ValueError(f"{name} of {folder} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
            else:
                target.copy_(tensor)

    def dense_loss(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy over the labels of every token (where there is nothing, a fifth); accuracy where there is.

        Args:
            features: (N, D). labels: (N, 8), see `scenes.dense_labels`.
        """
        weight = weights_of(labels)
        loss, right = 0.0, {}
        parts = self.heads(features).split(CLASSES, dim=-1)
        for name, part, target in zip(LABELS, parts, labels.unbind(-1), strict=True):
            losses = F.cross_entropy(part.float(), target, reduction="none")
            # Few tokens lie on letters, tags or movers: they count more.
            own = weight * torch.where(target > 0, 4.0 if name in ("glyph", "place", "price", "move") else 1.0, 1.0)
            loss = loss + (losses * own).sum() / own.sum().clamp_min(1)
            right[name] = (part.argmax(-1) == target)[target > 0].float().mean()
        return loss, right

    def features(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the vision tower makes of a batch's pictures, (tokens, D)."""
        image = self.processor.image_processor
        sizes = rows["sizes"].tolist()
        pixels = rows["pixels"].split([math.prod(size) for size in sizes])
        patches = [
            patchify(flat.view(size), image.image_mean, image.image_std)
            for flat, size in zip(pixels, sizes, strict=True)
        ]
        return self.model.visual(torch.cat(patches), grid_thw=rows["grid"])

    def described(self, labels: torch.Tensor) -> torch.Tensor:
        """The features that the palette has for labels: (tokens, 8) to (tokens, D)."""
        starts = labels.new_tensor([sum(CLASSES[:n]) for n in range(len(CLASSES))])
        return F.embedding(labels + starts, self.palette).sum(1)

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers of this batch, the same in a run that was resumed."""
        key = (2000 + self.seed, self.stage, self.batch, self.rank)
        generator = torch.Generator().manual_seed(int(rng_for("train", *key).integers(2**31)))
        return torch.randn(like.shape, generator=generator).to(like)

    @torch.no_grad()
    def survey(self, stage: Stage, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tower's last layer reads of pictures with a stage's sizes and levels, and a 1, (tokens, D + 1); and
        the tokens' labels, (tokens, 8)."""
        source = replace(stage, eyes=True, questions=1, batch=8, pictures=pictures)
        batches = Batches(source, 90 + self.stage, self.seed, 0, self.rank, self.world)
        tower, inputs, labels = self.model.visual, [], []
        hook = tower.merger.mlp[-1].register_forward_pre_hook(lambda module, read: inputs.append(read[0].float()))
        for packs in tqdm(batches, total=pictures // 8, desc="survey", mininterval=5, disable=self.rank > 0):
            rows = {name: tensor.to(self.device) for name, tensor in self.encoder.batch(packs, text=False).items()}
            self.features(rows)
            # The tower has its tokens window after window until its very end.
            order, _ = tower.get_window_index(rows["grid"])
            inputs[-1] = inputs[-1][torch.argsort(order)]
            labels.append(rows["labels"])
        hook.remove()
        return F.pad(torch.cat(inputs), (0, 1), value=1.0), torch.cat(labels)

    def least_squares(self, inputs: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The matrix that makes outputs (tokens, M) of inputs (tokens, N), over the tokens of all processes."""
        weighted = inputs * weights_of(labels)[:, None]
        inner, outer = weighted.T @ inputs, weighted.T @ outputs
        if self.world > 1:
            self.average([inner, outer])
        return torch.linalg.solve(inner + 1e-4 * inner.trace() / len(inner) * torch.eye(len(inner)).to(inner), outer)

    @torch.no_grad()
    def fit_palette(self, stage: Stage, pictures: int = 480) -> None:
        """Fit the palette to the features that the tower has."""
        inputs, labels = self.survey(stage, pictures)
        last = self.model.visual.merger.mlp[-1]
        features, which = F.linear(inputs[:, :-1], last.weight, last.bias), one_hot(labels)
        self.palette.data.copy_(self.least_squares(which, features, labels))
        weight = weights_of(labels)[:, None]
        spread = (weight * (features - self.described(labels)) ** 2).sum(0) / weight.sum()
        if self.world > 1:
            self.average([spread])
        self.spread.copy_(spread.sqrt())

    @torch.no_grad()
    def fit_tower(self, stage: Stage, pictures: int = 480) -> None:
        """Fit the tower's last layer to the palette, and the heads to the features that it then has."""
        inputs, labels = self.survey(stage, pictures)
        found = self.least_squares(inputs, self.described(labels), labels)
        last = self.model.visual.merger.mlp[-1]
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])
        features = F.pad(inputs @ found, (0, 1), value=1.0)
        found = 8 * self.least_squares(features, one_hot(labels), labels)  # logits: where it is sure, 8 above the rest
        self.heads.weight.copy_(found[:-1].T)
        self.heads.bias.copy_(found[-1])

    def loss(self, stage: Stage, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch from `Encoder.batch`, and what to show of it."""
        rows = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        described = self.described(rows["labels"])
        if stage.eyes:
            features = self.features(rows)
            dense_loss, seen = self.dense_loss(features, rows["labels"])
            aside = (stage.dense_weight if stage.text_rate else 1.0) * dense_loss
            if stage.match_weight:
                weight = weights_of(rows["labels"])[:, None]
                apart = (weight * (features - described.detach()) ** 2).sum() / weight.sum()
                match = apart / described.detach().var(0).sum()
                aside, seen = aside + stage.match_weight * match, {**seen, "match": match.detach()}
            if not stage.text_rate:
                return aside, seen
        else:
            features, aside, seen = described + 0.5 * self.spread * self.noise(described), 0.0, {}
        ids, config = rows["ids"], self.model.config
        embeds = self.model.get_input_embeddings()(ids)
        visual = (ids == config.image_token_id) | (ids == config.video_token_id)
        embeds = embeds.masked_scatter(visual[..., None], features.to(embeds.dtype))
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": rows["mask"]},
            position_ids=rows["positions"],
            use_cache=False,
        ).last_hidden_state
        where = rows["learn"][:, 1:]
        logits = self.model.lm_head(hidden[:, :-1][where]).float()
        targets = ids[:, 1:][where]
        losses = F.cross_entropy(logits, targets, reduction="none")
        right = logits.argmax(-1) == targets
        # A response is right when every token of it is; each ends with the end token.
        ends = targets == self.tokenizer.eos_token_id
        number = torch.cumsum(ends, 0) - ends.long()
        wrong = torch.zeros(int(ends.sum()), device=self.device).index_add_(0, number, (~right).float())
        weight = torch.where(self.concluding(targets, number), stage.conclusion, 1.0)
        return (weight * losses).sum() / weight.sum() + aside, {
            "loss": losses.detach().mean(), "exact": (wrong == 0).float().mean(), **seen
        }  # fmt: skip

    def concluding(self, targets: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Which tokens of responses follow the trace's last semicolon, all where there is no trace.

        Args:
            targets: (tokens,), response after response. number: (tokens,), of the response, from 0.
        """
        breaks = (targets == self.tokenizer.convert_tokens_to_ids(";")).long()
        passed = torch.cumsum(breaks, 0)  # over all responses so far
        by_its_end = torch.zeros_like(passed).scatter_reduce_(0, number, passed, "amax", include_self=True)
        return (passed == by_its_end[number]) & (breaks == 0)

    def train(self, minutes: float, workers: int) -> bool:
        """Go on until the schedule's end (True) or for `minutes` of this call; saves every two minutes."""
        begin = saved = time.monotonic()
        log = (self.run / "log.jsonl").open("a")
        self.model.train()
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            if not self.batch:
                self.change_over(stage)
            batches = Batches(stage, self.stage, self.seed, self.batch, self.rank, self.world)
            loader = DataLoader(
                batches,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                collate_fn=partial(self.encoder.batch, text=stage.text_rate > 0),
            )
            total = stage.pictures // stage.batch
            bar = tqdm(loader, initial=self.batch, total=total, desc=stage.name, mininterval=5, disable=self.rank > 0)
            mean: dict[str, torch.Tensor] = {}
            for batch in bar:
                self.set_rates(stage)
                with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                    loss, seen = self.loss(stage, batch)
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                params = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
                if self.world > 1:
                    self.average([p.grad for p in params])
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                self.optimiser.step()
                self.batch += 1
                for key, value in seen.items():
                    value = torch.nan_to_num(value, nan=float(mean.get(key, 0.0)))  # none in this batch: no news
                    mean[key] = 0.98 * mean.get(key, value) + 0.02 * value
                if self.batch % 20 == 0:  # reading them waits for the device
                    bar.set_postfix({key: f"{float(value):.2f}" for key, value in mean.items()}, refresh=False)
                now = time.monotonic()
                if self.batch % 100 == 0 and self.rank == 0:
                    line = dict(stage=stage.name, pictures=self.batch * stage.batch, seconds=self.seconds + now - saved)
                    log.write(json.dumps({**line, **{k: round(float(v), 4) for k, v in mean.items()}}) + "\n")
                    log.flush()
                due = now - begin > 60 * minutes
                if self.agreed(due or now - saved > 120):
                    self.seconds, saved = self.seconds + now - saved, now
                    self.save()
                    if self.agreed(due):
                        return False
            now = time.monotonic()
            self.stage, self.batch, self.seconds, saved = self.stage + 1, 0, self.seconds + now - saved, now
            self.save()
        return True

    def change_over(self, stage: Stage) -> None:
        """Before a stage: the palette is the tower's where it is first read, the tower is the palette's afterwards."""
        if not stage.eyes and not self.spread.any():
            self.fit_palette(stage)
        elif stage.eyes and self.stage and not self.stages[self.stage - 1].eyes:
            self.fit_tower(stage)

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
        self.model.save_pretrained(out, max_shard_size="15MB", safe_serialization=True)
        self.processor.save_pretrained(out)
        record = dict(
            preset=self.preset,
            seed=self.seed,
            processes=self.world,
            started_from=self.started_from,
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
    begun = (run / "state.pt").exists()
    start = None if begun else args.start_from
    trainer = Trainer(args.preset, args.seed, args.device, run, rank, args.processes, start)
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
    parser.add_argument("--start-from", type=Path, help="checkpoint folder whose weights to begin with")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--processes", type=int, default=1 if cuda else min(2, os.cpu_count() or 1), help="CPU processes"
    )
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
