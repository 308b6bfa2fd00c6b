"""Measure a model on single examples: every way of pruning, one greedy and K sampled rollouts each::

evaluator = Evaluator("models/garden-tiny", "policy_checkpoint.pt", recipe, ["garden"])
record = evaluator.measure(source_number=0, index=7)
"""

import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers.models.qwen2_5_vl.key_diversity import keep_count
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from avis.answers import answers_match
from avis.config import AvisConfig
from avis.evaluation.recipe import PruningRun, Recipe, pruning_runs, resolve_amount
from avis.garden.source import GardenSource, open_source
from avis.inputs import pixel_bounds
from avis.loading import load_model
from avis.messages import SIZE_KEYS
from avis.outputs import AvisOutput
from avis.pipeline import answer
from avis.provenance import quick_fingerprint, versions, weights_sha256
from avis.questions import Label
from avis.session import VisionCache
from avis.voting import confidence_weight
from policy.policy_model import PolicyModel

TOKEN = 28  # pixels a side of a merged visual token
# FLOPs depend on these parts of the language model's configuration.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "layer_types",
)


def downsampled_pixels(grids: Sequence[tuple[int, int, int]], wanted: int) -> int:
    """Return the `max_pixels` that brings images as close as their sides allow to a number of visual tokens in all.

    Args:
        grids: (t, h, w) in merged tokens, of the images as they are.
        wanted: tokens; at least one a frame is left. The smaller of two equally close counts is taken.
    """

    def count_tokens(pixels: int) -> int:
        sides = [smart_resize(h * TOKEN, w * TOKEN, TOKEN, TOKEN * TOKEN, pixels) for _, h, w in grids]
        return sum(t * (h // TOKEN) * (w // TOKEN) for (t, _, _), (h, w) in zip(grids, sides, strict=True))

    budgets = [TOKEN * TOKEN * n for n in range(1, max(h * w for _, h, w in grids) + 1)]
    return min(budgets, key=lambda pixels: (abs(count_tokens(pixels) - wanted), pixels))


@dataclass(frozen=True, eq=False)
class _Example:
    """One example that is being measured.

    Attributes:
        index: of the question in its source.
        messages: the chat.
        label: the right answer and what else is known.
        vision_cache: its images and videos in full size, encoded.
    """

    index: int
    messages: list[dict]
    label: Label
    vision_cache: VisionCache


class Evaluator:
    """A loaded model with the examples and the ways of pruning that it is measured with.

    Attributes:
        sources: sets of questions, in the order of `tasks`.
        model: the measured model.
        processor: the model's.
        policy: chooses K; None: rows that need it were left out.
        recipe: what to measure.
        runs: the ways of pruning, in the order in which they are measured.
        note: a warning about the policy, for the user; None: there is none.
    """

    def __init__(
        self,
        model_path: str,
        policy_path: str | None,
        recipe: Recipe,
        tasks: Sequence[str],
        device: str | None = None,
    ):
        """Load the model and the policy, and open the sources.

        Args:
            model_path: as in `load_model`.
            policy_path: of a policy checkpoint.
            recipe: what to measure.
            tasks: names of sources, as in `open_source`.
            device: as in `load_model`; None: each process's own GPU, else the CPU.

        Raises:
            ValueError, OSError, MemoryError: with one line.
        """
        device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        if device == "cpu" or not torch.cuda.is_available():
            torch.set_num_threads(1)  # the same sums whatever else the machine does; processes are what scales
            torch.set_flush_denormal(True)
        self.sources = [open_source(name, recipe.split) for name in tasks]
        self.model, self.processor = load_model(model_path, device)
        self.policy = PolicyModel(policy_path, self.model.device) if policy_path else None
        self.recipe, self.runs = recipe, pruning_runs(recipe.rows)
        self._model_path = model_path
        self.note: str | None = None
        if self.policy:
            self.note = self.policy.check(
                self.model.config.vision_config.out_hidden_size, quick_fingerprint(model_path)
            )
        if self.note:  # printed once by the program, not by every process for every answer
            warnings.filterwarnings("ignore", message=re.escape(self.note))

    def describe(self) -> dict[str, Any]:
        """Return everything that the numbers depend on, JSON-ready: "config" in the header of a results file."""
        base = AvisConfig(**self.recipe.settings)
        rows = [{name: value for name, value in asdict(row).items() if value is not None} for row in self.recipe.rows]
        # A garden split is fixed by its name and the versions; a file is not.
        sources = {one.name: None if isinstance(one, GardenSource) else one.sha256 for one in self.sources}
        policy = self.policy and {
            "sha256": self.policy.sha256,
            "tau": self.policy.tau,
            "rho": self.policy.rho,
            "fitted_on": self.policy.weights_sha256,
        }
        text_config = self.model.config.get_text_config()
        return {
            "recipe": self.recipe.name,
            "rows": rows,
            "seeds": list(self.recipe.seeds),
            "settings": self.recipe.settings,
            "sources": sources,
            "model": Path(self._model_path).name,
            "weights_sha256": weights_sha256(self._model_path),
            "policy": policy,
            "versions": versions(),
            "backend": {
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "device": self.model.device.type,
                "attention": self.model.config._attn_implementation,
                "threads": torch.get_num_threads(),
            },
            "pixel_bounds": {
                "image": list(pixel_bounds(self.processor.image_processor, base)),
                "video": list(pixel_bounds(self.processor.video_processor, base)),
            },
            "text_config": {name: getattr(text_config, name) for name in _SHAPE},
        }

    def measure(self, source_number: int, index: int) -> dict[str, Any]:
        """Return the record of one example.

        Args:
            source_number: place of its source in `sources`.
            index: of the question in the source.

        Raises:
            ValueError, OSError, MemoryError: as `answer` does, or for a question without an answer.
        """
        source = self.sources[source_number]
        question = source.question(index)
        label = question.label
        if label is None:
            raise ValueError(f"{source.name} {index} has no answer")
        with tempfile.TemporaryDirectory() as folder:
            messages = question.messages(source.media(index, Path(folder)))
            example = _Example(index, messages, label, VisionCache())
            runs = self._measure_runs(example)
            record: dict[str, Any] = {
                "source": source.name,
                "item": index,
                "task": label.task,
                "medium": label.medium,
                "level": label.level,
                "see": label.see,
                "think": label.think,
                "form": label.form,
                "scene": label.scene,
                "truth": label.truth,
                "answerable": label.answerable,
            }
            if self.policy:
                record["policy"] = self._run_policy(example, self.policy)
        return record | {"runs": runs}

    def _measure_runs(self, example: _Example) -> dict[str, list[dict[str, Any]]]:
        base = AvisConfig(**self.recipe.settings, vote_stop="off")
        runs: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs:
            if run.row.pruner == "downsample":
                kept = runs[run.name.removesuffix(" downsample")][0]["kept"] if run.row.tau else None
                config = self._downsample(run, base, example.vision_cache, kept)
                smaller = replace(example, messages=_without_sizes(example.messages))
                runs[run.name] = self._measure_run(run, config, smaller, VisionCache())
            else:
                config = run.configure(base, self.policy)
                runs[run.name] = self._measure_run(run, config, example, example.vision_cache)
            for record in runs[run.name]:
                record["visual"] = [len(item.embeds) for item in example.vision_cache.items]
        return runs

    def _downsample(
        self, run: PruningRun, base: AvisConfig, vision_cache: VisionCache, kept: list[int] | None
    ) -> AvisConfig:
        """Return the configuration that shows images with as many tokens as were kept, or as rho keeps."""
        grids = [item.grid for item in vision_cache.items]
        if kept:
            wanted = sum(kept)
        else:
            rho = resolve_amount(run.row.rho, self.policy.rho if self.policy else None)
            wanted = sum(keep_count(t * h * w, rho) for t, h, w in grids)
        return replace(base, min_pixels=TOKEN * TOKEN, max_pixels=downsampled_pixels(grids, wanted))

    def _measure_run(
        self, run: PruningRun, config: AvisConfig, example: _Example, vision_cache: VisionCache
    ) -> list[dict[str, Any]]:
        """Return a record for each seed: rollout 0 is the greedy one, the others are sampled."""
        records: list[dict[str, Any]] = []
        greedy: AvisOutput | None = None
        for seed in self.recipe.seeds:
            seeded = replace(config, seed=seed)
            if greedy is None or run.row.pruner == "random":  # only random pruning depends on the seed
                greedy = self._answer(example, seeded, vision_cache)
            outputs = [greedy]
            if run.sampled:
                sampling = replace(seeded, num_rollouts=run.sampled)
                outputs.append(self._answer(example, sampling, vision_cache))
            rollouts = [rollout for output in outputs for rollout in output.rollouts]
            records.append(
                {
                    "kept": [item.kept for item in greedy.items],
                    "read": greedy.kept_tokens,
                    "vision": greedy.flops["vision"],
                    "answers": [rollout.answer for rollout in rollouts],
                    "right": [_is_right(rollout.answer, example.label) for rollout in rollouts],
                    # The weight of a rollout in a vote by confidence.
                    "confidence": [
                        round(confidence_weight(cast(float, rollout.mean_logprob)), 4) for rollout in rollouts
                    ],
                    "tokens": [rollout.tokens for rollout in rollouts],
                    "finished": [int(rollout.finished) for rollout in rollouts],
                    "seconds": [round(sum(output.seconds.values()), 3) for output in outputs],
                }
            )
        return records

    def _run_policy(self, example: _Example, policy: PolicyModel) -> dict[str, Any]:
        """Return the outcome of full AVIS as a user runs it, early stop included: the offline vote is checked by it."""
        config = AvisConfig(
            **self.recipe.settings,
            enable_kdv=True,
            kdv_threshold=policy.tau,
            vote_stop="decided",
            seed=self.recipe.seeds[0],
        )
        output = self._answer(example, config, example.vision_cache, policy)
        return {
            "p": None if output.p is None else round(output.p, 4),
            "bin": output.bin,
            "rollouts": output.num_rollouts,
            "answer": output.answer,
            "right": _is_right(output.answer, example.label),
            "tokens": [rollout.tokens for rollout in output.rollouts],
        }

    def _answer(
        self, example: _Example, config: AvisConfig, vision_cache: VisionCache, policy: PolicyModel | None = None
    ) -> AvisOutput:
        return answer(
            self.model,
            self.processor,
            example.messages,
            config,
            query_index=example.index,
            vision_cache=vision_cache,
            policy=policy,
        )


def _without_sizes(messages: list[dict]) -> list[dict]:
    """Return a chat whose images and videos have no size of their own, which would win over the configuration's."""
    bare = []
    for turn in messages:
        content = turn["content"]
        if not isinstance(content, str):
            content = [{key: part[key] for key in part if key not in SIZE_KEYS} for part in content]
        bare.append(turn | {"content": content})
    return bare


def _is_right(found: str | None, label: Label) -> int:
    return int(answers_match(found, label.truth, label.options))
