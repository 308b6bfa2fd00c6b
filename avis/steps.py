"""The six steps of a query, each a function from the records before it to the next one.

    resolve       chat and configuration -> `Query`
    prefill       `Query` -> the fork's `Prefill`: images encoded, pruned, and the prompt read once
    choose_k      `Prefill` -> `Choice` of K
    rollout       K rollouts from the prefill -> the fork's `Rollouts`
    vote          `Rollouts` -> `Ballot`: answers and the vote over them
    build_output  all of them -> `AvisOutput`

`avis.pipeline` calls them in this order.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.models.qwen2_5_vl.flops import mean_length
from transformers.models.qwen2_5_vl.shared_prefill import FinishedRollout, Prefill, Rollouts

from avis.answers import extract_answer, vote_key
from avis.config import AvisConfig, whole_number
from avis.costs import query_flops
from avis.inputs import PIXEL_INPUTS, TIME_INPUTS, opened_thought, pixel_bounds_by_kind, prepare_inputs
from avis.loading import advise_on_memory
from avis.outputs import AvisOutput, pruned_fraction, rollout_outputs, visual_item_outputs
from avis.provenance import describe_backend, weights_path
from avis.session import ConversationState, VisionCache
from avis.voting import Vote, confidence_weight, is_decided, majority_vote

if TYPE_CHECKING:
    from policy.policy_model import PolicyModel


@dataclass(frozen=True, eq=False)
class Query:
    """A resolved query.

    Attributes:
        inputs: what the processor made of the chat, on the CPU.
        pixels: its pixel values and grids.
        visual_inputs: the same with frame times.
        pruning: keyword arguments of `model.prefill`.
        opening: "<think>" when the prompt itself opened a thought.
        config: how much to spend.
        query_index: the query's number in its set.
        state: what a follow-up starts from; None for the first turn of a chat.
    """

    inputs: Any
    pixels: dict[str, torch.Tensor]
    visual_inputs: dict[str, torch.Tensor]
    pruning: dict[str, Any]
    opening: str
    config: AvisConfig
    query_index: int
    state: ConversationState | None

    @property
    def reused_tokens(self) -> int:
        """Kept tokens that earlier turns of the conversation have read."""
        return 0 if self.state is None else self.state.prefill.kept_length


@dataclass(frozen=True)
class Choice:
    """How many rollouts to run, and why.

    Attributes:
        num_rollouts: K.
        p: the policy's solvability, and so are `bin` and `policy_sha256` the policy's; None without one.
        bin: of the policy's rule, that p falls into.
        policy_sha256: of the policy's file.
        seconds: {"policy": what the choice took}; empty without a policy.
    """

    num_rollouts: int
    p: float | None = None
    bin: int | None = None
    policy_sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Ballot:
    """The vote over the rollouts.

    Attributes:
        texts: what each rollout wrote.
        answers: what was read from each text; None: it abstains.
        vote: over the answers.
    """

    texts: list[str]
    answers: list[str | None]
    vote: Vote


def resolve(
    model,
    processor,
    messages: list[dict],
    config: AvisConfig,
    query_index: int,
    policy: "PolicyModel | None",
    previous: AvisOutput | None,
) -> Query:
    """Turn the chat into inputs, and the configuration into arguments of the prefill. Raises ValueError."""
    query_index = whole_number("query_index", query_index, 0, 2**64 - 1)
    if previous is not None and not isinstance(previous, AvisOutput):
        raise ValueError(f"previous: that is no AvisOutput but a {type(previous).__name__}")
    if previous is not None and previous.state is None:
        raise ValueError("previous: that output has no state to continue from; ask it with return_state=True")
    inputs = prepare_inputs(processor, messages, config)
    length, most = inputs["input_ids"].shape[1], model.config.get_text_config().max_position_embeddings
    if length > most:
        raise ValueError(f"the prompt has {length} tokens, this model reads at most {most}: ask less or show less")
    pixels = {name: inputs[name] for name in PIXEL_INPUTS if name in inputs}
    return Query(
        inputs=inputs,
        pixels=pixels,
        visual_inputs=pixels | {name: inputs[name] for name in TIME_INPUTS if name in inputs},
        pruning=_pruning(config, query_index, policy),
        opening=opened_thought(processor, inputs["input_ids"]),
        config=config,
        query_index=query_index,
        state=None if previous is None else previous.state,
    )


def _pruning(config: AvisConfig, query_index: int, policy: "PolicyModel | None") -> dict[str, Any]:
    """Return the keyword arguments of `model.prefill` that prune; the policy's tau where the configuration has none."""
    threshold = config.kdv_threshold
    if policy is not None and config.enable_kdv and config.kdv_ratio is None and threshold is None:
        threshold = policy.tau
    return {
        "enable_kdv": config.enable_kdv,
        "kdv_ratio": config.kdv_ratio,
        "kdv_threshold": threshold,
        "pruner": config.pruner,
        "pruner_seed": _pruner_seed(config, query_index),
    }


def _pruner_seed(config: AvisConfig, query_index: int) -> int:
    """Return another seed for every query to pruners that draw, or a whole table would measure one draw."""
    if config.pruner == "kdv":
        return 0
    return int(np.random.SeedSequence((config.seed, query_index)).generate_state(1)[0])


def prefill(model, query: Query, vision_cache: VisionCache | None) -> Prefill:
    """Encode what is shown and read the prompt once, reusing what the cache or the conversation already has."""
    inputs = query.inputs
    with advise_on_memory("lower max_pixels, for videos fps or num_frames"):
        if query.state is not None:
            tokens = query.state.new_tokens(model, inputs["input_ids"], query.pruning, query.visual_inputs)
            found = model.extend(query.state.prefill, tokens)
        else:
            if vision_cache is not None and vision_cache.has(model, query.pixels, query.config.enable_kdv):
                inputs = type(inputs)({name: value for name, value in inputs.items() if name not in PIXEL_INPUTS})
                inputs["visual_items"] = vision_cache.items
            found = model.prefill(**inputs.to(model.device), **query.pruning)
    if vision_cache is not None:
        vision_cache.store(model, query.pixels, found)
    return found


def choose_k(policy: "PolicyModel | None", query: Query, prefill: Prefill) -> Choice:
    """Return the policy's K for this query, or the configuration's."""
    if policy is None:
        return Choice(query.config.num_rollouts)
    start = time.perf_counter()  # reading p waits for the device
    with advise_on_memory("lower max_pixels, for videos fps or num_frames"):
        hidden = None if policy.hidden_width is None else prefill.last_hidden_state
        predicted = policy.predict([item.embeds for item in prefill.visual_items], hidden)
    seconds = {"policy": time.perf_counter() - start}
    return Choice(predicted.num_rollouts, predicted.p, predicted.bin, policy.sha256, seconds)


def rollout(model, processor, query: Query, prefill: Prefill, choice: Choice, streamer: Any) -> Rollouts:
    """Decode K rollouts from the prefill, until the vote over them is decided."""
    config = query.config
    is_greedy = choice.num_rollouts == 1
    if streamer is not None:
        streamer.start(choice.num_rollouts)
    try:
        with advise_on_memory("lower num_rollouts, rollout_batch_size or max_new_tokens"):
            return model.rollout(
                prefill,
                choice.num_rollouts,
                max_new_tokens=config.max_new_tokens,
                temperature=0.0 if is_greedy else config.temperature,
                top_p=config.top_p,
                seed=config.seed,
                query_index=query.query_index,
                rollout_batch_size=config.rollout_batch_size,
                stopping_fn=_stop_when_decided(processor, query, choice) if config.vote_stop == "decided" else None,
                step_fn=None if streamer is None else streamer.put,
            )
    finally:
        if streamer is not None:
            streamer.end()


def _stop_when_decided(processor, query: Query, choice: Choice) -> Callable[[Mapping[int, FinishedRollout]], bool]:
    """Return a stopping rule: whether the finished rollouts settle the vote. It reads each rollout once."""
    keys: dict[int, str | None] = {}

    def is_settled(finished: Mapping[int, FinishedRollout]) -> bool:
        for index in finished.keys() - keys.keys():
            one = finished[index]
            text = processor.tokenizer.decode(one.tokens, skip_special_tokens=True)
            keys[index] = vote_key(extract_answer(query.opening + text, finished=one.finished))
        weights = None
        if query.config.vote == "confidence":
            weights = {index: confidence_weight(one.mean_logprob) for index, one in finished.items()}
        return is_decided(keys, choice.num_rollouts, weights)

    return is_settled


def vote(processor, query: Query, rollouts: Rollouts) -> Ballot:
    """Read every rollout's answer, and count the votes."""
    texts = processor.tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    answers = [
        extract_answer(query.opening + text, finished=finished)
        for text, finished in zip(texts, rollouts.finished, strict=True)
    ]
    weights = None
    if query.config.vote == "confidence":
        weights = [0.0 if mean is None else confidence_weight(mean) for mean in rollouts.mean_logprobs]
    return Ballot(texts, answers, majority_vote(answers, weights=weights))


def build_output(
    model, processor, query: Query, prefill: Prefill, choice: Choice, rollouts: Rollouts, ballot: Ballot
) -> AvisOutput:
    """Put the record together: what was answered, what it cost, and what is needed to answer it again."""
    items = visual_item_outputs(prefill)
    return AvisOutput(
        text=ballot.texts[ballot.vote.index or 0],
        answer=ballot.vote.answer,
        votes=ballot.vote.counts,
        rollouts=rollout_outputs(rollouts, ballot.texts, ballot.answers),
        num_rollouts=choice.num_rollouts,
        stopped_rollouts=sum(rollouts.stopped),
        new_tokens=sum(map(len, rollouts.tokens)),
        p=choice.p,
        bin=choice.bin,
        items=items,
        rho=pruned_fraction(items),
        prompt_tokens=prefill.prompt_length,
        kept_tokens=prefill.kept_length,
        reused_tokens=query.reused_tokens,
        flops=_flops(model, query, prefill, rollouts),
        seconds=prefill.seconds | choice.seconds | {"decode": rollouts.seconds},
        cache_bytes=rollouts.cache_bytes,
        backend=describe_backend(model),
        pixel_bounds=pixel_bounds_by_kind(processor, query.config),
        policy_sha256=choice.policy_sha256,
        config=query.config,
        query_index=query.query_index,
        model_path=weights_path(model),
    )


def _flops(model, query: Query, prefill: Prefill, rollouts: Rollouts) -> dict[str, float]:
    """Return the query's FLOPs; vanilla's length is the mean of the rollouts that were not stopped."""
    lengths = [len(tokens) for tokens in rollouts.tokens]
    whole = [length for length, stopped in zip(lengths, rollouts.stopped, strict=True) if not stopped]
    return query_flops(model.config, prefill, lengths, mean_length(whole), query.reused_tokens)
