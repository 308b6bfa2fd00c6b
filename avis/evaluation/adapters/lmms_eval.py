"""AVIS as a chat model of lmms-eval, found through the entry point group `lmms_eval.models` under the name `avis`::

    lmms-eval eval --model avis --tasks mmstar --batch_size 1 \
        --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,enable_kdv=true,kdv_ratio=0.75,num_rollouts=5

Every field of `AvisConfig` is a model argument. A task's own `generation_kwargs` are not used: a task that asks a plain
model for 16 tokens would cut off a thought. Written for the interface of lmms-eval 0.7.3.
"""

import os
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from avis.config import AvisConfig
from avis.evaluation.adapters.asker import Asker, exit_on_error

MANIFEST = ModelManifest(model_id="avis", chat_class_path="avis.evaluation.adapters.lmms_eval.Avis")


class Avis(lmms):
    """lmms-eval's chat model over `AvisPipeline`: images and videos, one question at a time."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "auto",
        system_prompt: str | None = None,
        policy_path: str | None = None,
        records: str | None = None,
        **config_fields: Any,
    ):
        """Load the model. Bad arguments, and a Transformers that is not the fork, end the program with one line and 2.

        Args:
            pretrained: Qwen2.5-VL folder or hub name.
            batch_size: 1.
            max_batch_size: not used.
            device: see `avis.loading.load_model`.
            dtype: see `load_model`.
            attn_implementation: see `load_model`.
            system_prompt: of every chat that has none; a text or a file's name.
            policy_path: a policy checkpoint, which chooses K.
            records: a JSONL file for every answer's record, from which the same command resumes; None: none is written.
            **config_fields: fields of `AvisConfig`.
        """
        super().__init__()
        exit_on_error(partial(self._read_arguments, batch_size, config_fields))
        if device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.asker = Asker(
            "lmms-eval",
            pretrained,
            self.avis_config,
            records=records,
            system_prompt=self._resolve_system_prompt(system_prompt),
            policy_path=policy_path,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
        )

    def _read_arguments(self, batch_size: int | str, config_fields: dict[str, Any]) -> None:
        if str(batch_size) != "1":
            raise ValueError(f"batch_size must be 1, got {batch_size}: AVIS answers one question at a time")
        unknown = config_fields.keys() - AvisConfig.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(f"unknown model argument {min(unknown)}")
        self.avis_config = AvisConfig(**config_fields)

    @property
    def device(self):
        """The model's device, where lmms-eval gathers counts."""
        return self.asker.pipeline.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return the voted answer of each request, in their order; empty where all rollouts abstain."""
        results = []
        for request in tqdm(requests, desc="AVIS", disable=self.rank != 0):
            context, doc_to_messages, generation, doc_id, task, split = request.args
            key = {"dataset": task, "split": split, "id": doc_id}
            query = partial(self._query, doc_to_messages, self.task_dict[task][split], doc_id)
            record = self.asker.ask(key, doc_id, query)
            text = record.get("answer") or ""
            counts = TokenCounts(record.get("prompt_tokens"), record.get("new_tokens", 0))
            results.append(GenerationResult(text, counts))
            self.cache_hook.add_partial("generate_until", (context, generation), text)
        return results

    def _query(self, doc_to_messages, docs, doc_id: int) -> tuple[list[dict], AvisConfig]:
        messages = ChatMessages(messages=doc_to_messages(docs[doc_id])).to_hf_messages()
        return messages, self.avis_config

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise NotImplementedError("AVIS answers tasks of one round")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks that need log-likelihoods."""
        raise NotImplementedError("AVIS votes on sampled answers and gives no log-likelihoods")
