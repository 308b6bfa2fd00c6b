"""From images, videos and a question to one `AvisOutput`: AVIS's stages in order, each a function below.

    image or video + question -> processor -> prefill (keys -> kept indices -> pruned prompt -> cache)
                              -> policy -> K -> rollouts -> vote -> AvisOutput

The demo, the evaluation and the adapters all call `answer()`; `AvisPipeline` owns what `answer()` is given::

    avis = AvisPipeline.from_pretrained("models/garden-tiny", policy="policy_checkpoint.pt")
    output = avis("example.jpg", "How many wooden rabbits are wearing glasses?", enable_kdv=True, num_rollouts=5)
    print(output.answer, output.votes)

A follow-up reads its own turn alone, and gives the same answer as the whole chat asked anew::

    first = avis(messages, enable_kdv=True, return_state=True)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And dogs?"}]
    print(avis(messages, enable_kdv=True, previous=first).answer)
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.flops import mean_length
from transformers.models.qwen2_5_vl.shared_prefill import FinishedRollout, Prefill, Rollouts

from avis.answers import extract_answer, vote_key
from avis.config import AvisConfig
from avis.costs import query_flops
from avis.inputs import PIXEL_INPUTS, TIME_INPUTS, as_messages, opened_thought, pixel_bounds, prepare_inputs
from avis.loading import advise_on_memory, load_model
from avis.outputs import AvisOutput, rollout_outputs, visual_item_outputs
from avis.provenance import quick_fingerprint
from avis.session import ConversationState, VisionCache
from avis.voting import Vote, confidence_weight, is_decided, majority_vote

if TYPE_CHECKING:
    from policy.policy_model import PolicyModel


@dataclass(frozen=True, eq=False)
class _Query:
    """A resolved query.

    Attributes:
        inputs: what the processor made of the chat, on the CPU.
        pixels: its pixel values and grids.
        visual_inputs: the same with frame times.
        pruning: keyword arguments of `model.prefill`.
        opening: "<think>" when the prompt itself opened a thought.
        config: how much to spend.
        query_index: the query's number in its set.
    """

    inputs: Any
    pixels: dict[str, torch.Tensor]
    visual_inputs: dict[str, torch.Tensor]
    pruning: dict[str, Any]
    opening: str
    config: AvisConfig
    query_index: int


@dataclass(frozen=True)
class _Choice:
    """How many rollouts to run, and why: p and bin are None without a policy, and then it took no seconds."""

    num_rollouts: int
    p: float | None = None
    bin: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class _Ballot:
    """What the rollouts wrote, what was read from it, and the vote over it."""

    texts: list[str]
    answers: list[str | None]
    vote: Vote


class AvisPipeline:
    """A loaded model with its processor, policy and vision cache.

    Attributes:
        model: the language model with its vision encoder, in eval mode.
        processor: the model's.
        policy: chooses K; None: K is the configuration's.
        vision_cache: the last query's encoded images and videos.
        policy_warning: one line when the policy was fitted on another backbone; else None.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor, policy: "PolicyModel | None" = None):
        """Take what was loaded. Raises ValueError for a policy of another width."""
        self.model, self.processor, self.policy = model, processor, policy
        self.vision_cache = VisionCache()
        self.policy_warning = None if policy is None else _check_policy(policy, model)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        policy: "str | Path | PolicyModel | None" = None,
        engine: str = "transformers",
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "auto",
    ) -> "AvisPipeline":
        """Load a model and, when given, a policy.

        Args:
            path: as in `load_model`, and so are `device`, `dtype` and `attn_implementation`.
            policy: a policy checkpoint's path, or a loaded one.
            engine: "transformers", the only one so far.
            device: as in `load_model`.
            dtype: as in `load_model`.
            attn_implementation: as in `load_model`.

        Raises:
            ValueError, OSError, MemoryError: with one line, as `load_model`, and for a policy of another width.
        """
        if engine != "transformers":
            raise ValueError(f"engine must be transformers, got {engine!r:.100}")
        if isinstance(policy, (str, Path)):
            from policy.policy_model import PolicyModel, read_checkpoint

            read_checkpoint(policy)  # its errors are reported before the wait for the model
            model, processor = load_model(path, device, dtype, attn_implementation)
            policy = PolicyModel(policy, model.device)
        else:
            model, processor = load_model(path, device, dtype, attn_implementation)
        return cls(model, processor, policy)

    def __call__(
        self,
        inputs: Any,
        question: str | None = None,
        *,
        config: AvisConfig | None = None,
        query_index: int = 0,
        previous: AvisOutput | None = None,
        return_state: bool = False,
        streamer: Any = None,
        **fields: Any,
    ) -> AvisOutput:
        """Answer a question about an image or video, or a chat.

        Args:
            inputs: an image or video file, a PIL image, an array, a list of images (the frames of one video), or a chat
                as `answer` takes it.
            question: about the image or video; None for a chat.
            config: how much to spend; None: `AvisConfig()`.
            query_index: as in `answer`, and so are `previous`, `return_state` and `streamer`.
            previous: as in `answer`.
            return_state: as in `answer`.
            streamer: as in `answer`.
            **fields: fields of `AvisConfig`, which replace those of `config`.

        Returns:
            An `AvisOutput`.

        Raises:
            ValueError, OSError, MemoryError: as `answer`, and for a field that `AvisConfig` does not have.
        """
        unknown = [name for name in fields if name not in AvisConfig.__dataclass_fields__]
        if unknown:
            raise ValueError(f"AvisConfig has no field {unknown[0]!r:.100}")
        return answer(
            self.model,
            self.processor,
            as_messages(inputs, question),
            replace(config or AvisConfig(), **fields),
            query_index,
            self.vision_cache,
            self.policy,
            previous,
            return_state,
            streamer,
        )


def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor,
    messages: list[dict],
    config: AvisConfig = AvisConfig(),
    query_index: int = 0,
    vision_cache: VisionCache | None = None,
    policy: "PolicyModel | None" = None,
    previous: AvisOutput | None = None,
    return_state: bool = False,
    streamer: Any = None,
) -> AvisOutput:
    """Answer one question about images and videos.

    Args:
        model: from `load_model`, or any Qwen2.5-VL loaded through the fork.
        processor: the model's.
        messages: a chat in Transformers' form; the content of a turn is text or a list of parts
            `{"type": "image", "image": ..}`, `{"type": "video", "video": ..}` and `{"type": "text", "text": ..}`, in
            any order. An image is a path, a PIL image, an array or a data URI (`read_image`); a video is a path or a
            list of images, `"fps"` of them a second (2 when the part does not say).
        config: how much to spend.
        query_index: the query's number in its set; with `config.seed` it fixes the rollouts' randomness.
        vision_cache: of the last query, replaced by this one's. Images and videos that are the same, pixel by pixel,
            are not encoded again; the answer is the same as without, and its FLOPs are those of the whole query.
        policy: chooses K and, with KDV on and neither ratio nor threshold given, the threshold. It warns
            (UserWarning) when it was fitted on another backbone.
        previous: the output of the chat's earlier turns, made with `return_state`: what it has read is not read again.
            `messages` are then the whole chat: those turns as they were, the reply, and a new turn of text.
        return_state: for a follow-up; the output then keeps the prompt's cache, and with it memory of the device.
        streamer: has `start(num_rollouts)`, `put(steps)` with (rollout index, new token, whether it ended) per running
            rollout, and `end()`; called while rollouts are decoded.

    Returns:
        An `AvisOutput`.

    Raises:
        ValueError: input that cannot be read, a policy of another width, or a chat that does not continue `previous`.
        OSError: a file that cannot be read.
        MemoryError: with what to lower. All with one line.
    """
    if previous is not None and previous.state is None:
        raise ValueError("previous: that output has no state to continue from; ask it with return_state=True")
    state = None if previous is None else previous.state
    query = _resolve(model, processor, messages, config, query_index, policy)
    prefill = _prefill(model, query, vision_cache, state)
    choice = _choose_k(policy, query, prefill)
    rollouts = _rollout(model, processor, query, prefill, choice, streamer)
    ballot = _vote(processor, query, rollouts)
    output = _build_output(model, processor, query, prefill, choice, rollouts, ballot, state)
    return replace(
        output,
        policy_sha256=None if policy is None else policy.sha256,
        state=ConversationState(model, prefill, query.pruning, query.visual_inputs) if return_state else None,
    )


def _resolve(
    model, processor, messages: list[dict], config: AvisConfig, query_index: int, policy: "PolicyModel | None"
) -> _Query:
    """Turn the chat into inputs, and the configuration into what the prefill is given."""
    threshold = config.kdv_threshold
    if policy is not None:
        warning = _check_policy(policy, model)
        if warning:
            warnings.warn(warning, stacklevel=3)
        if config.enable_kdv and config.kdv_ratio is None and threshold is None:
            threshold = policy.tau
    inputs = prepare_inputs(processor, messages, config)
    length, most = inputs["input_ids"].shape[1], model.config.get_text_config().max_position_embeddings
    if length > most:
        raise ValueError(f"the prompt has {length} tokens, this model reads at most {most}: ask less or show less")
    pixels = {name: inputs[name] for name in PIXEL_INPUTS if name in inputs}
    visual_inputs = pixels | {name: inputs[name] for name in TIME_INPUTS if name in inputs}
    pruning = {
        "enable_kdv": config.enable_kdv,
        "kdv_ratio": config.kdv_ratio,
        "kdv_threshold": threshold,
        "pruner": config.pruner,
        "pruner_seed": _pruner_seed(config, query_index),
    }
    opening = opened_thought(processor, inputs["input_ids"])
    return _Query(inputs, pixels, visual_inputs, pruning, opening, config, query_index)


def _check_policy(policy: "PolicyModel", model) -> str | None:
    """Return one line of warning for another backbone of the same width. Raises ValueError for another width."""
    return policy.check(model.config.vision_config.out_hidden_size, quick_fingerprint(model.config._name_or_path))


def _pruner_seed(config: AvisConfig, query_index: int) -> int:
    """Return another seed for every query to pruners that draw, or a whole table would measure one draw."""
    if config.pruner == "kdv":
        return 0
    return int(np.random.SeedSequence((config.seed, query_index)).generate_state(1)[0])


def _prefill(model, query: _Query, vision_cache: VisionCache | None, state: ConversationState | None) -> Prefill:
    """Encode what is shown and read the prompt once, reusing what the cache or the conversation already has."""
    inputs = query.inputs
    with advise_on_memory("lower max_pixels, for videos fps or num_frames"):
        if state is not None:
            tokens = state.new_tokens(model, inputs["input_ids"], query.pruning, query.visual_inputs)
            prefill = model.extend(state.prefill, tokens)
        else:
            if vision_cache is not None and vision_cache.has(model, query.pixels, query.config.enable_kdv):
                inputs = type(inputs)({name: value for name, value in inputs.items() if name not in PIXEL_INPUTS})
                inputs["visual_items"] = vision_cache.items
            prefill = model.prefill(**inputs.to(model.device), **query.pruning)
    if vision_cache is not None:
        vision_cache.store(model, query.pixels, prefill)
    return prefill


def _choose_k(policy: "PolicyModel | None", query: _Query, prefill: Prefill) -> _Choice:
    """Return the policy's K for this query, or the configuration's."""
    if policy is None:
        return _Choice(query.config.num_rollouts)
    start = time.perf_counter()  # reading p waits for the device
    with advise_on_memory("lower max_pixels, for videos fps or num_frames"):
        hidden = None if policy.hidden_width is None else prefill.last_hidden_state
        predicted = policy.predict([item.embeds for item in prefill.visual_items], hidden)
    return _Choice(predicted.num_rollouts, predicted.p, predicted.bin, time.perf_counter() - start)


def _rollout(model, processor, query: _Query, prefill: Prefill, choice: _Choice, streamer: Any) -> Rollouts:
    """Decode K rollouts from the prefill, until the vote over them is decided."""
    config, keys = query.config, {}

    def stop_when_decided(ended: Mapping[int, FinishedRollout]) -> bool:
        for index in ended.keys() - keys.keys():
            text = processor.tokenizer.decode(ended[index].tokens, skip_special_tokens=True)
            keys[index] = vote_key(extract_answer(query.opening + text, finished=ended[index].finished))
        weights = None
        if config.vote == "confidence":
            weights = {index: confidence_weight(one.mean_logprob) for index, one in ended.items()}
        return is_decided(keys, choice.num_rollouts, weights)

    if streamer is not None:
        streamer.start(choice.num_rollouts)
    with advise_on_memory("lower num_rollouts, rollout_batch_size or max_new_tokens"):
        rollouts = model.rollout(
            prefill,
            choice.num_rollouts,
            max_new_tokens=config.max_new_tokens,
            temperature=0.0 if choice.num_rollouts == 1 else config.temperature,
            top_p=config.top_p,
            seed=config.seed,
            query_index=query.query_index,
            rollout_batch_size=config.rollout_batch_size,
            stopping_fn=stop_when_decided if config.vote_stop == "decided" else None,
            step_fn=None if streamer is None else streamer.put,
        )
    if streamer is not None:
        streamer.end()
    return rollouts


def _vote(processor, query: _Query, rollouts: Rollouts) -> _Ballot:
    """Read every rollout's answer, and count the votes."""
    texts = processor.tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    answers = [
        extract_answer(query.opening + text, finished=finished)
        for text, finished in zip(texts, rollouts.finished, strict=True)
    ]
    weights = None
    if query.config.vote == "confidence":
        weights = [0.0 if mean is None else confidence_weight(mean) for mean in rollouts.mean_logprobs]
    return _Ballot(texts, answers, majority_vote(answers, weights=weights))


def _build_output(
    model, processor, query: _Query, prefill: Prefill, choice: _Choice, rollouts: Rollouts, ballot: _Ballot, state
) -> AvisOutput:
    """Put the record together: what was answered, what it cost, and what is needed to answer it again."""
    lengths = [len(tokens) for tokens in rollouts.tokens]
    whole = [length for length, stopped in zip(lengths, rollouts.stopped, strict=True) if not stopped]
    reused = 0 if state is None else state.prefill.kept_length
    seconds = prefill.seconds | ({} if choice.seconds is None else {"policy": choice.seconds})
    items = visual_item_outputs(prefill)
    return AvisOutput(
        text=ballot.texts[ballot.vote.index or 0],
        answer=ballot.vote.answer,
        votes=ballot.vote.counts,
        rollouts=rollout_outputs(rollouts, ballot.texts, ballot.answers),
        num_rollouts=choice.num_rollouts,
        stopped_rollouts=sum(rollouts.stopped),
        new_tokens=sum(lengths),
        p=choice.p,
        bin=choice.bin,
        items=items,
        rho=1 - sum(item.kept for item in items) / sum(item.total for item in items) if items else 0.0,
        prompt_tokens=prefill.prompt_length,
        kept_tokens=prefill.kept_length,
        reused_tokens=reused,
        flops=query_flops(model.config, prefill, lengths, mean_length(whole), reused),
        seconds=seconds | {"decode": rollouts.seconds},
        cache_bytes=rollouts.cache_bytes,
        backend=_backend(model),
        pixel_bounds={
            "image": pixel_bounds(processor.image_processor, query.config),
            "video": pixel_bounds(processor.video_processor, query.config),
        },
        policy_sha256=None,
        config=query.config,
        query_index=query.query_index,
        model_path=model.config._name_or_path,
    )


def _backend(model) -> dict[str, str]:
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": model.config._attn_implementation,
    }
