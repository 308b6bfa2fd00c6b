"""Draws training data: rows of scenes and questions, and batches of tensors.

Several questions are asked about each image in one packed row. Question and response of each see the image and
themselves only, at the positions that they would have alone, so that the image is encoded once::

    batches = StageDataset(stage, number=0, seed=0, start=0)
    tensors = BatchEncoder(processor, model.config).encode_batch(batches.draw_batch(0))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLProcessor

from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.render import render, render_frames
from avis.garden.scenes import Scene, level_for, rng_for
from avis.garden.tasks import (
    ALL_TASKS,
    IMAGE_TASKS,
    PAGE_TASKS,
    PAIR_TASKS,
    SECOND_SIZES,
    SECOND_TASKS,
    SIZES,
    TASKS,
    VIDEO_TASKS,
    Item,
    ask,
    companions,
    make_item,
)
from avis.garden.tasks.base import Extras, Task
from avis.garden.training.stages import FULL, SECOND_FULL, SMALL, Size, Stage
from avis.prompts import answer_format_for, with_instruction

_TASKS_OF = {"image": IMAGE_TASKS, "images": PAIR_TASKS, "video": VIDEO_TASKS}
_TASK_WEIGHTS = {"read": 1.5, "price": 2.5, "hops": 1.5, "odd": 0.7}  # the others: 1
# In the second garden what is learned early is asked less often.
_SECOND_WEIGHTS = {"exist": 0.5, "odd": 0.5, "more": 0.5, "attribute": 0.7, "compare": 0.7, "changed": 0.7}
# Sizes of pairs and videos where a stage's images are small.
_SECOND_SMALL: tuple[Size, ...] = ((8, 7), (7, 8), (8, 8), (9, 7), (7, 9))


@dataclass(frozen=True)
class PackedRow:
    """One image, pair of images or video, with several questions about it.

    Attributes:
        pixels: of each image or video, (T, H, W, 3) uint8; T > 1 for a video; empty in a stage without images.
        labels: dense labels of each, see `labels.dense_labels`.
        medium: "image", "images" or "video".
        questions: each a prompt and the response to it.
    """

    pixels: list[np.ndarray]
    labels: list[np.ndarray]
    medium: str
    questions: list[tuple[str, str]]

    @property
    def grids(self) -> list[list[int]]:
        """Of each image or video: time steps, and rows and columns of patches."""
        return [[labels.shape[0], 2 * labels.shape[1], 2 * labels.shape[2]] for labels in self.labels]

    @property
    def placeholder(self) -> str:
        """The kind of placeholder that the scene has in a prompt: "image" or "video"."""
        return "video" if self.medium == "video" else "image"


def draw_row(rng: np.random.Generator, stage: Stage, medium: str, size: Size) -> PackedRow:
    """Draw one image, pair of images or video with questions of several tasks about it.

    Args:
        rng: the row's generator.
        stage: whose shares and questions are drawn.
        medium: "image", "images" or "video".
        size: of each scene, in merged tokens.
    """
    items = _draw_items(rng, stage, medium, size)
    answer_format = answer_format_for("", stage.answer_format)
    questions = []
    for item in items:
        enable_thinking = bool(rng.random() < 0.9)
        prompt = with_instruction(item.question, enable_thinking, answer_format)
        response = item.response(enable_thinking, is_boxed="\\boxed" in answer_format.thinking)
        questions.append((prompt, response))
    scenes = items[0].scenes
    pixels = [_draw_pixels(rng, scene) for scene in scenes] if stage.has_images else []
    return PackedRow(pixels, [dense_labels(scene) for scene in scenes], medium, questions)


def _draw_items(rng: np.random.Generator, stage: Stage, medium: str, size: Size) -> list[Item]:
    """Draw a row's questions; all are about the scenes of the first."""
    if stage.see:
        return _draw_second_items(rng, stage, medium, size)
    tasks = _TASKS_OF[medium]
    weights = _weigh(tasks, _TASK_WEIGHTS)
    level = 1 + int(rng.choice(5, p=stage.levels))
    extras = _draw_extras(rng, stage)
    first = make_item(rng, _draw_task(rng, tasks, weights), level, _draw_form(rng, stage), size, extras)
    if first.task == "hops":
        # A hopping animal stays in place, so that questions about images can be asked about such a video.
        tasks = (TASKS["hops"], TASKS["count"])
        weights = np.array([0.7, 0.3])
    return _ask_others(rng, stage, first, tasks, weights)


def _draw_second_items(rng: np.random.Generator, stage: Stage, medium: str, size: Size) -> list[Item]:
    """Draw a row's questions about scenes of the second garden."""
    tasks = SECOND_TASKS[medium]
    if medium == "image":
        is_page = PAGE_TASKS != () and rng.random() < stage.page_share
        tasks = tuple(task for task in tasks if (task in PAGE_TASKS) == is_page)
    see, think = 1 + int(rng.choice(5, p=stage.see)), 1 + int(rng.choice(5, p=stage.think))
    extras = _draw_extras(rng, stage)
    task = _draw_task(rng, tasks, _weigh(tasks, _SECOND_WEIGHTS))
    level = level_for(see, min(think, ALL_TASKS[task].most_think(*size)))
    first = make_item(rng, task, level, _draw_form(rng, stage), size, extras)
    others = companions(first.task)
    return _ask_others(rng, stage, first, others, _weigh(others, _SECOND_WEIGHTS))


def _weigh(tasks: tuple[Task, ...], weights: dict[str, float]) -> np.ndarray:
    return np.array([weights.get(task.name, 1.0) for task in tasks])


def _draw_extras(rng: np.random.Generator, stage: Stage) -> Extras:
    return Extras(bool(rng.random() < stage.extras_probability), bool(rng.random() < stage.extras_probability))


def _ask_others(
    rng: np.random.Generator, stage: Stage, first: Item, tasks: tuple[Task, ...], weights: np.ndarray
) -> list[Item]:
    """Return the first question and others about its scenes, `stage.num_questions` in all."""
    items = [first]
    while len(items) < stage.num_questions:
        # A task that does not fit this scene is drawn again; in the end the first question is asked again.
        for _ in range(6):
            other = ask(rng, first, _draw_task(rng, tasks, weights), _draw_form(rng, stage))
            if other:
                break
        items.append(other or first)
    return items


def _draw_task(rng: np.random.Generator, tasks: tuple[Task, ...], weights: np.ndarray) -> str:
    return tasks[int(rng.choice(len(tasks), p=weights / weights.sum()))].name


def _draw_form(rng: np.random.Generator, stage: Stage) -> str:
    return "choice" if rng.random() < stage.choice_share else "free"


def _draw_pixels(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return a scene's frames as (T, H, W, 3) uint8."""
    images = render_frames(scene) if scene.seconds else [render(scene)]
    return np.stack([np.asarray(_augment(image, rng)) for image in images])


def _augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image as files may hold it: some are resized to another size and back, some saved as JPEG."""
    if rng.random() < 0.3:
        factor = float(rng.uniform(0.7, 1.1))
        resized = image.resize((round(image.width * factor), round(image.height * factor)), Image.BICUBIC)
        image = resized.resize(image.size, Image.BICUBIC)
    if rng.random() < 0.3:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
        image = Image.open(buffer).convert("RGB")
    return image


class StageDataset(IterableDataset):
    """The batches of one stage: lists of `PackedRow`.

    Row `i` of batch `b` is drawn from (seed, stage, b, i) alone.
    """

    def __init__(
        self, stage: Stage, number: int, seed: int, start: int, process_index: int = 0, num_processes: int = 1
    ):
        """Describe the batches; nothing is drawn yet.

        Args:
            stage: what to draw.
            number: of the stage, for its random stream.
            seed: of the training.
            start: the first batch to yield.
            process_index: of this process, which draws its own rows of every batch only.
            num_processes: that train together.
        """
        self.stage, self.number, self.seed, self.start = stage, number, seed, start
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[list[PackedRow]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(self.start + first, self.stage.num_batches, step):
            yield self.draw_batch(batch)

    def draw_batch(self, batch: int) -> list[PackedRow]:
        """Return a batch by its number in the stage."""
        key = (1000 + self.seed, self.number, batch)
        rng = rng_for(self.stage.split, *key)
        # One medium and size a batch: rows of equal length waste no padding.
        medium = str(rng.choice(("image", "images", "video"), p=self.stage.media))
        sizes = self.stage.sizes
        if medium != "image":
            # A pair costs twice as much as an image, a video several times as much: both are smaller.
            whole, small = (SECOND_SIZES, _SECOND_SMALL) if self.stage.see else (SIZES, SMALL)
            sizes = whole[medium] if sizes in (FULL, SECOND_FULL) else small
        size = sizes[int(rng.integers(len(sizes)))]
        rows = range(self.process_index, self.stage.batch_size, self.num_processes)
        return [draw_row(rng_for(self.stage.split, *key, row), self.stage, medium, size) for row in rows]


class BatchEncoder:
    """Encodes rows as tensors. It needs no model, so that the processes that draw images can do it."""

    def __init__(self, processor: Qwen2_5_VLProcessor, config: Qwen2_5_VLConfig):
        self.processor, self.config = processor, config

    def encode_batch(self, rows: list[PackedRow], has_text: bool = True) -> dict[str, torch.Tensor]:
        """Return all tensors that `Trainer.loss` takes.

        Args:
            rows: of the batch.
            has_text: whether the language model is trained.

        Returns:
            labels: (tokens, labels) int64. Where there are images: pixels, uint8, flat, one image or video after the
            other; sizes: (items, 4), their (T, H, W, 3); grid: (items, 3). With text: what `encode_text` returns.
        """
        pixels = [item for row in rows for item in row.pixels]
        labels = [item for row in rows for item in row.labels]
        flat_labels = np.concatenate([item.reshape(-1, len(LABEL_NAMES)) for item in labels])
        tensors = {"labels": torch.from_numpy(flat_labels)}
        if pixels:
            tensors["pixels"] = torch.from_numpy(np.concatenate([item.reshape(-1) for item in pixels]))
            tensors["sizes"] = torch.tensor([item.shape for item in pixels])
            tensors["grid"] = torch.tensor([grid for row in rows for grid in row.grids])
        return tensors | self.encode_text(rows) if has_text else tensors

    def encode_text(self, rows: list[PackedRow]) -> dict[str, torch.Tensor]:
        """Return the language model's input.

        Returns:
            ids: (B, S) int64; is_target: (B, S) bool, True for tokens of responses; positions: (3, B, S) int64;
            mask: (B, 1, S, S) float32, added to attention scores.
        """
        encoded = [(row, *self._encode_row(row)) for row in rows]
        longest = max(len(shared) + sum(map(len, blocks)) for _, shared, blocks, _ in encoded)
        size = (len(rows), longest)
        ids = torch.full(size, self.processor.tokenizer.pad_token_id)
        is_target = torch.zeros(size, dtype=torch.bool)
        owner = torch.full(size, -1)  # 0: shared by all questions, n: of question n, -1: padding
        positions = torch.zeros(3, *size, dtype=torch.long)
        for index, (row, shared, blocks, prompt_lengths) in enumerate(encoded):
            end = len(shared)
            shared_ids = torch.tensor([shared])
            grids = {f"{row.placeholder}_grid_thw": torch.tensor(row.grids)}
            # The method reads nothing of its object but `config`.
            shared_positions, _ = Qwen2_5_VLModel.get_rope_index(self, shared_ids, **grids)
            ids[index, :end], owner[index, :end], positions[:, index, :end] = shared_ids[0], 0, shared_positions[:, 0]
            following = int(shared_positions.max()) + 1
            for number, (block, prompt_length) in enumerate(zip(blocks, prompt_lengths, strict=True), start=1):
                begin, end = end, end + len(block)
                ids[index, begin:end], owner[index, begin:end] = torch.tensor(block), number
                positions[:, index, begin:end] = following + torch.arange(len(block))
                is_target[index, begin + prompt_length : end] = True
        is_visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        is_causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = torch.zeros(is_visible.shape).masked_fill_(~(is_visible & is_causal), -torch.inf)[:, None]
        return {"ids": ids, "is_target": is_target, "positions": positions, "mask": mask}

    def _encode_row(self, row: PackedRow) -> tuple[list[int], list[list[int]], list[int]]:
        """Return token ids: what all questions share, each question with its response, and the questions' lengths."""
        tokenizer = self.processor.tokenizer
        placeholder_id = getattr(self.config, f"{row.placeholder}_token_id")
        content = [{"type": row.placeholder} for _ in row.labels] + [{"type": "text", "text": "\0"}]
        chat = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, after = chat.split("\0")
        token_counts = [labels.shape[0] * labels.shape[1] * labels.shape[2] for labels in row.labels]
        shared: list[int] = []
        for token in tokenizer(before).input_ids:
            shared += [token] * token_counts.pop(0) if token == placeholder_id else [token]
        blocks, prompt_lengths = [], []
        for question, response in row.questions:
            prompt = tokenizer(question + after).input_ids
            blocks.append(prompt + tokenizer(response).input_ids + [tokenizer.eos_token_id])
            prompt_lengths.append(len(prompt))
        return shared, blocks, prompt_lengths


def patchify(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Return an image or video as the processor makes it for the vision encoder; its sides are multiples of 28.

    Args:
        pixels: (T, H, W, 3) uint8; T is 1 (an image) or even.
        mean: of each colour, from 0 to 1.
        std: of each colour.

    Returns:
        (max(1, T/2) * H/14 * W/14, 1176) float32, 2 x 2 merge groups together.
    """
    if len(pixels) == 1:
        pixels = pixels.expand(2, -1, -1, -1)  # an image is two equal frames
    count, height, width, _ = pixels.shape
    x = (pixels.float() / 255 - pixels.new_tensor(mean, dtype=torch.float)) / pixels.new_tensor(std, dtype=torch.float)
    x = x.reshape(count // 2, 2, height // 28, 2, 14, width // 28, 2, 14, 3)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # time, row, column, 2, 2, channel, 2, 14, 14
    return x.reshape(count // 2 * height * width // 196, -1)
