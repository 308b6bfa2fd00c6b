"""Trains a model through the stages of a preset; seeded, and resumable from one file."""

import json
import math
import os
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from avis.files import write_json
from avis.garden.labels import LABEL_CLASSES
from avis.garden.model import new_model, new_processor, save_model_folder
from avis.garden.scenes import rng_for
from avis.garden.training.data import BatchEncoder, StageDataset, patchify
from avis.garden.training.distributed import agree, average, weighted_least_squares
from avis.garden.training.losses import (
    alignment_loss,
    dense_label_loss,
    one_hot_labels,
    response_loss,
    token_weights,
)
from avis.garden.training.optimisers import Optimisers
from avis.garden.training.stages import PRESETS, Stage
from avis.garden.training.weights import warm_start

STATE_FILE = "state.pt"
_SAVE_SECONDS = 120
Tensors = dict[str, torch.Tensor]


class Trainer:
    """Model, optimisers and place in the schedule; saved and loaded as one file.

    Attributes:
        model: in training.
        heads: linear, from features to the dense labels' logits.
        label_embeddings: (sum(LABEL_CLASSES), D); those of a token's labels add up to what stands in for its features.
        residual_std: (D,), standard deviation of the features about that sum; 0 before they were fitted.
        stage_index: the stage in progress.
        batch_index: batches of that stage that are done.
        seconds: of training so far.
    """

    def __init__(
        self,
        preset: str,
        seed: int,
        device: str,
        run: Path,
        process_index: int = 0,
        num_processes: int = 1,
        start_from: Path | None = None,
    ):
        """Make a new model.

        Args:
            preset: a name in `stages.PRESETS`.
            seed: of weights and data.
            device: "cpu" or "cuda".
            run: folder of the resumable state and the log.
            process_index: of this process.
            num_processes: that train together.
            start_from: checkpoint folder whose weights to begin with.
        """
        self.preset, self.stages, self.seed, self.device, self.run = preset, PRESETS[preset], seed, device, run
        self.process_index, self.num_processes = process_index, num_processes
        self.processor = new_processor(is_second=any(stage.see for stage in self.stages))
        self.tokenizer = self.processor.tokenizer
        self.model = new_model(self.tokenizer, seed)
        self.encoder = BatchEncoder(self.processor, self.model.config)
        self.started_from = str(start_from) if start_from else None
        if start_from:
            warm_start(self.model, self.tokenizer, start_from)
        self.model.to(device)
        width = self.model.config.text_config.hidden_size
        self.heads = torch.nn.Linear(width, sum(LABEL_CLASSES)).to(device)
        self.label_embeddings = torch.nn.Parameter(torch.zeros(sum(LABEL_CLASSES), width, device=device))
        self.residual_std = torch.zeros(width, device=device)
        self.optimisers = Optimisers(self.model, self.heads, self.label_embeddings)
        self.stage_index, self.batch_index, self.seconds = 0, 0, 0.0
        self._counted_until = 0.0  # up to when `seconds` counts

    # ------------------------------------------------------------------------------------------- state and folders

    @property
    def schedule(self) -> list[dict]:
        """The stages as they stand in files: plain dictionaries and lists."""
        return json.loads(json.dumps([asdict(stage) for stage in self.stages]))

    @property
    def is_main(self) -> bool:
        """Whether this process saves, logs and shows progress."""
        return self.process_index == 0

    def save_state(self) -> None:
        """Write everything that a resumed run needs; the main process does it for all."""
        if not self.is_main:
            return
        state = {
            "preset": self.preset,
            "seed": self.seed,
            "started_from": self.started_from,
            "stages": self.schedule,
            "stage": self.stage_index,
            "batch": self.batch_index,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "label_embeddings": self.label_embeddings.detach(),
            "residual_std": self.residual_std,
            "optimisers": self.optimisers.state_dict(),
        }
        part = self.run / f"{STATE_FILE}.part"
        torch.save(state, part)
        os.replace(part, self.run / STATE_FILE)

    def load_state(self) -> None:
        """Read what `save_state` wrote.

        Raises:
            ValueError: the state is of another preset, seed or schedule.
        """
        file = self.run / STATE_FILE
        state = torch.load(file, map_location=self.device, weights_only=True)
        if (state["preset"], state["seed"]) != (self.preset, self.seed):
            raise ValueError(f"{file} belongs to preset {state['preset']}, seed {state['seed']}")
        if "optimisers" not in state:
            raise ValueError(f"{file} was begun by an older version, with AdamW alone: choose another folder")
        begun = slice(state["stage"] + bool(state["batch"]))  # stages that have not begun may be changed
        if state["stages"][begun] != self.schedule[begun]:
            raise ValueError(f"{file} was begun with other stages than preset {self.preset} has now")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.label_embeddings.data.copy_(state["label_embeddings"])
        self.residual_std.copy_(state["residual_std"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.started_from = state["started_from"]
        self.stage_index, self.batch_index, self.seconds = state["stage"], state["batch"], state["seconds"]

    def export(self, out: Path) -> None:
        """Write the model as an ordinary checkpoint folder, with a record of its training."""
        save_model_folder(self.model, self.processor, out)
        record = {
            "preset": self.preset,
            "seed": self.seed,
            "processes": self.num_processes,
            "started_from": self.started_from,
            "seconds": round(self.seconds),
            "torch": torch.__version__,
            "finished": self.stage_index == len(self.stages),
            "stages": self.schedule,
        }
        write_json(out / "training.json", record)

    # ------------------------------------------------------------------------------------------ features and losses

    def encode_images(self, batch: Tensors) -> torch.Tensor:
        """Return the vision encoder's features of a batch's images, (tokens, D)."""
        image = self.processor.image_processor
        sizes = batch["sizes"].tolist()
        pixels = batch["pixels"].split([math.prod(size) for size in sizes])
        patches = [
            patchify(flat.view(size), image.image_mean, image.image_std)
            for flat, size in zip(pixels, sizes, strict=True)
        ]
        return self.model.visual(torch.cat(patches), grid_thw=batch["grid"], batch_windows=True)

    def embed_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of each token's label embeddings: (tokens, labels) to (tokens, D)."""
        starts = labels.new_tensor([sum(LABEL_CLASSES[:n]) for n in range(len(LABEL_CLASSES))])
        return F.embedding(labels + starts, self.label_embeddings).sum(1)

    def draw_noise(self, like: torch.Tensor) -> torch.Tensor:
        """Return standard normal numbers of this batch, the same in a run that was resumed."""
        key = (2000 + self.seed, self.stage_index, self.batch_index, self.process_index)
        generator = torch.Generator().manual_seed(int(rng_for("train", *key).integers(2**31)))
        return torch.randn(like.shape, generator=generator).to(like)

    def loss(self, stage: Stage, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the loss of a batch, and what progress shows of it.

        Args:
            stage: whose weights count.
            batch: see `BatchEncoder.encode_batch`.
        """
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        labels = batch["labels"]
        embedded = self.embed_labels(labels)
        if not stage.has_images:
            features = embedded + 0.5 * self.residual_std * self.draw_noise(embedded)
            return self._text_loss(stage, batch, features)
        features = self.encode_images(batch)
        dense_loss, shown = dense_label_loss(self.heads(features), labels)
        vision_loss = (stage.dense_loss_weight if stage.text_lr else 1.0) * dense_loss
        if stage.alignment_weight:
            alignment = alignment_loss(features, embedded.detach(), labels)
            vision_loss = vision_loss + stage.alignment_weight * alignment
            shown["alignment"] = alignment.detach()
        if not stage.text_lr:
            return vision_loss, shown
        text_loss, shown_of_text = self._text_loss(stage, batch, features)
        return text_loss + vision_loss, {**shown_of_text, **shown}

    def _text_loss(self, stage: Stage, batch: Tensors, features: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """Return the loss of all responses, the placeholders' embeddings replaced by features (tokens, D)."""
        ids, config = batch["ids"], self.model.config
        embeds = self.model.get_input_embeddings()(ids)
        is_visual = (ids == config.image_token_id) | (ids == config.video_token_id)
        embeds = embeds.masked_scatter(is_visual[..., None], features.to(embeds.dtype))
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": batch["mask"]},
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state
        is_target = batch["is_target"][:, 1:]
        return response_loss(
            self.model.lm_head(hidden[:, :-1][is_target]).float(),
            ids[:, 1:][is_target],
            eos_token_id=self.tokenizer.eos_token_id,
            separator_id=self.tokenizer.convert_tokens_to_ids(";"),
            conclusion_weight=stage.conclusion_weight,
        )

    # --------------------------------------------------------------------- fitting encoder and labels to each other

    def prepare_stage(self, stage: Stage) -> None:
        """Fit the label embeddings before their first stage, and the vision encoder after their last."""
        if not stage.has_images and not self.residual_std.any():
            self.fit_label_embeddings(stage)
        elif stage.has_images and self.stage_index and not self.stages[self.stage_index - 1].has_images:
            self.fit_vision_encoder(stage)

    @torch.no_grad()
    def fit_label_embeddings(self, stage: Stage, num_rows: int = 480) -> None:
        """Fit the label embeddings to the vision encoder's features, by least squares."""
        inputs, labels = self.collect_merger_inputs(stage, num_rows)
        last = self.model.visual.merger.mlp[-1]
        features = F.linear(inputs[:, :-1], last.weight, last.bias)
        weights = token_weights(labels)[:, None]
        found = weighted_least_squares(one_hot_labels(labels), features, weights, self.num_processes)
        self.label_embeddings.data.copy_(found)
        variance = (weights * (features - self.embed_labels(labels)) ** 2).sum(0) / weights.sum()
        average([variance], self.num_processes)
        self.residual_std.copy_(variance.sqrt())

    @torch.no_grad()
    def fit_vision_encoder(self, stage: Stage, num_rows: int = 480) -> None:
        """Fit the encoder's last layer to the label embeddings, and the heads to the new features, by least squares."""
        inputs, labels = self.collect_merger_inputs(stage, num_rows)
        weights = token_weights(labels)[:, None]
        found = weighted_least_squares(inputs, self.embed_labels(labels), weights, self.num_processes)
        last = self.model.visual.merger.mlp[-1]
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])
        features = F.pad(inputs @ found, (0, 1), value=1.0)
        # The logit of a label that is certain is 8 above the others.
        found = 8 * weighted_least_squares(features, one_hot_labels(labels), weights, self.num_processes)
        self.heads.weight.copy_(found[:-1].T)
        self.heads.bias.copy_(found[-1])

    @torch.no_grad()
    def collect_merger_inputs(self, stage: Stage, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images with a stage's sizes and levels.

        Returns:
            The input of the encoder's last layer with a column of ones, (tokens, D + 1), and the labels.
        """
        source = replace(stage, has_images=True, num_questions=1, batch_size=8, num_rows=num_rows)
        dataset = StageDataset(source, 90 + self.stage_index, self.seed, 0, self.process_index, self.num_processes)
        encoder = self.model.visual
        inputs: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        hook = encoder.merger.mlp[-1].register_forward_pre_hook(lambda module, read: inputs.append(read[0].float()))
        for rows in tqdm(dataset, total=num_rows // 8, desc="fitting", mininterval=5, disable=not self.is_main):
            encoded = self.encoder.encode_batch(rows, has_text=False)
            batch = {name: tensor.to(self.device) for name, tensor in encoded.items()}
            self.encode_images(batch)
            # The encoder has its tokens window after window until its very end.
            order, _ = encoder.get_window_index(batch["grid"])
            inputs[-1] = inputs[-1][torch.argsort(order)]
            labels.append(batch["labels"])
        hook.remove()
        return F.pad(torch.cat(inputs), (0, 1), value=1.0), torch.cat(labels)

    # --------------------------------------------------------------------------------------------------- the loop

    def train(self, minutes: float, num_workers: int) -> bool:
        """Train to the end of the schedule, saving every two minutes.

        Args:
            minutes: of this call; training pauses after them.
            num_workers: extra processes that draw images.

        Returns:
            Whether the schedule is finished.
        """
        self._counted_until = time.monotonic()
        deadline = self._counted_until + 60 * minutes
        self.model.train()
        while self.stage_index < len(self.stages):
            stage = self.stages[self.stage_index]
            if not self.batch_index:
                self.prepare_stage(stage)
            if not self._train_stage(stage, deadline, num_workers):
                return False
            self._count_seconds(time.monotonic())
            self.stage_index, self.batch_index = self.stage_index + 1, 0
            self.save_state()
        return True

    def _count_seconds(self, now: float) -> None:
        self.seconds += now - self._counted_until
        self._counted_until = now

    def _train_stage(self, stage: Stage, deadline: float, num_workers: int) -> bool:
        """Train the rest of a stage; return whether it is finished."""
        dataset = StageDataset(
            stage, self.stage_index, self.seed, self.batch_index, self.process_index, self.num_processes
        )
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            collate_fn=partial(self.encoder.encode_batch, has_text=stage.text_lr > 0),
        )
        progress = tqdm(
            loader,
            initial=self.batch_index,
            total=stage.num_batches,
            desc=stage.name,
            mininterval=5,
            disable=not self.is_main,
        )
        means: Tensors = {}
        for batch in progress:
            shown = self.step(stage, batch)
            self.batch_index += 1
            for name, value in shown.items():
                value = torch.nan_to_num(value, nan=float(means.get(name, 0.0)))  # the batch has no such label
                means[name] = 0.98 * means.get(name, value) + 0.02 * value
            if self.batch_index % 20 == 0:  # reading them waits for the device
                progress.set_postfix({name: f"{float(value):.2f}" for name, value in means.items()}, refresh=False)
            now = time.monotonic()
            if self.batch_index % 100 == 0 and self.is_main:
                self._log(stage, now, means)
            is_over = now > deadline
            if agree(is_over or now - self._counted_until > _SAVE_SECONDS, self.num_processes):
                self._count_seconds(now)
                self.save_state()
                if agree(is_over, self.num_processes):
                    return False
        return True

    def _log(self, stage: Stage, now: float, means: Tensors) -> None:
        """Append a line to the run's log."""
        line = {
            "stage": stage.name,
            "rows": self.batch_index * stage.batch_size,
            "seconds": self.seconds + now - self._counted_until,
            **{name: round(float(value), 4) for name, value in means.items()},
        }
        with (self.run / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def step(self, stage: Stage, batch: Tensors) -> Tensors:
        """Train on one batch; return what progress shows of it."""
        self.optimisers.set_learning_rates(stage, self.batch_index)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss, shown = self.loss(stage, batch)
        self.optimisers.zero_grad()
        loss.backward()
        parameters = self.optimisers.parameters_with_gradients()
        average([parameter.grad for parameter in parameters], self.num_processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimisers.step()
        return shown
