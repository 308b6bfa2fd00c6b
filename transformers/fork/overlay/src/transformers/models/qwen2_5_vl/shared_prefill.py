"""K rollouts from one prefill: images are encoded once and the prompt is read once, whatever K is.

Self-consistency (Wang et al. 2022) samples K answers to one prompt. `generate(num_return_sequences=K)` encodes the
images and reads the prompt K times. Here a `Prefill` is made at batch size 1, and K rows attend to its cache where it
is (`shared_prefix_cache.py`)::

    prefill = model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.75)
    rollouts = model.rollout(prefill, 5, max_new_tokens=512, seed=0)
    texts = tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    longer = model.extend(prefill, tokenizer(next_turn, return_tensors="pt").input_ids)

Each stage returns one frozen record. Nothing is stored on the model, and a `Prefill` can be used any number of times.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch

from ...cache_utils import DynamicCache
from .decoding import NewToken, SamplingConfig, build_generation_rules, decode_batch
from .key_diversity import VisualItem, check_number


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt that the language model has read, at batch size 1.

    Attributes:
        input_ids: `(1, L)`, the unpruned prompt.
        cache: the language model's cache, `kept_length` tokens long; rollouts do not change it.
        logits: `(1, V)` float32, of the next token.
        last_hidden_state: `(1, D)`, the state that `logits` come from.
        rope_delta: the number that turns an unpruned index into its position when added to it.
        visual_items: the encoded images, then videos, unpruned.
        kept: per visual item the ascending indices of the kept tokens; all of them when nothing is pruned.
        seconds: of the stages "vision" and "prefill". With a model on several GPUs, work of the first stage may end in
            the time of the second.
    """

    input_ids: torch.Tensor
    cache: DynamicCache
    logits: torch.Tensor
    last_hidden_state: torch.Tensor
    rope_delta: int
    visual_items: tuple[VisualItem, ...]
    kept: tuple[torch.Tensor, ...]
    seconds: dict[str, float]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt before pruning."""
        return self.input_ids.shape[1]

    @property
    def kept_length(self) -> int:
        """Tokens of the prompt that the language model has read."""
        return self.cache.get_seq_length()


@dataclass(frozen=True, eq=False)
class FinishedRollout:
    """A rollout that has ended, as `stopping_fn` receives it.

    Attributes:
        tokens: its new tokens, the end token included.
        finished: whether it ended by itself; False when the length limit cut it off.
        mean_logprob: the mean log-probability of its tokens, as in `Rollouts`.
    """

    tokens: tuple[int, ...]
    finished: bool
    mean_logprob: float


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The tokens of K rollouts, and how they ended.

    Attributes:
        tokens: per rollout its new tokens, the end token included; empty when it was stopped before it began.
        finished: per rollout whether it ended by itself; False when it was cut off or stopped.
        stopped: per rollout whether it was stopped because `stopping_fn` returned True.
        mean_logprobs: per rollout the mean log-probability of its tokens under the model's own distribution: the logits
            before any processor, temperature or top-p. None for no tokens.
        cache_bytes: the largest size of the decoding cache, the prompt's part counted once.
        seconds: of decoding.
    """

    tokens: tuple[tuple[int, ...], ...]
    finished: tuple[bool, ...]
    stopped: tuple[bool, ...]
    mean_logprobs: tuple[Optional[float], ...]
    cache_bytes: int
    seconds: float


# ---- Prefill -----------------------------------------------------------------------------------------------


def _seconds_when_done(device: torch.device) -> float:
    """Return the time after all work on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _check_prompt(input_ids: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> None:
    if input_ids.shape[0] != 1:
        raise ValueError(f"prefill reads one prompt at a time, got a batch of {input_ids.shape[0]}")
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("prefill reads one prompt without padding, got an attention_mask with zeros")


@torch.no_grad()
def prefill(
    model,
    input_ids: torch.Tensor,
    attention_mask: Optional[torch.Tensor] = None,
    pixel_values: Optional[torch.Tensor] = None,
    image_grid_thw: Optional[torch.Tensor] = None,
    pixel_values_videos: Optional[torch.Tensor] = None,
    video_grid_thw: Optional[torch.Tensor] = None,
    second_per_grid_ts: Optional[Any] = None,
    visual_items: Optional[tuple[VisualItem, ...]] = None,
    *,
    enable_kdv: bool = False,
    kdv_ratio: Optional[float] = None,
    kdv_threshold: Optional[float] = None,
    pruner: str = "kdv",
    pruner_seed: int = 0,
) -> Prefill:
    """Read one prompt: every patch passes the vision encoder once, every kept token the language model once.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        input_ids: `(1, L)`.
        attention_mask: `(1, L)`, without padding.
        pixel_values: as the processor returns it.
        image_grid_thw: as the processor returns it.
        pixel_values_videos: as the processor returns it.
        video_grid_thw: as the processor returns it.
        second_per_grid_ts: as the processor returns it.
        visual_items: the encoded items of an earlier prefill (`Prefill.visual_items`) instead of pixels and grids. An
            item that was encoded with KDV off has no keys and cannot be pruned later.
        enable_kdv: as for `generate`.
        kdv_ratio: as for `generate`.
        kdv_threshold: as for `generate`.
        pruner: as for `generate`.
        pruner_seed: as for `generate`.

    Returns:
        The `Prefill` of the prompt.

    Raises:
        ValueError: a batch, padding, pixels beside visual items, or a reason of `KdvConfig`'s.
    """
    _check_prompt(input_ids, attention_mask)
    device = input_ids.device
    start = _seconds_when_done(device)
    if visual_items is None:
        visual_items = model.model.encode_visual(
            pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, return_keys=enable_kdv
        )
    elif pixel_values is not None or pixel_values_videos is not None:
        raise ValueError("pass visual_items or pixel values, not both")
    encoded = _seconds_when_done(device)
    outputs = model.model(
        input_ids=input_ids,
        visual_items=visual_items,
        second_per_grid_ts=second_per_grid_ts,
        past_key_values=DynamicCache(config=model.config.get_text_config()),
        use_cache=True,
        return_dict=True,
        enable_kdv=enable_kdv,
        kdv_ratio=kdv_ratio,
        kdv_threshold=kdv_threshold,
        pruner=pruner,
        pruner_seed=pruner_seed,
    )
    hidden = outputs.last_hidden_state[:, -1]
    logits = model.lm_head(hidden).to(device, torch.float32)
    kept = outputs.kdv_kept
    if kept is None:
        kept = tuple(torch.arange(len(item.embeds), device=item.embeds.device) for item in visual_items)
    return Prefill(
        input_ids=input_ids,
        cache=outputs.past_key_values,
        logits=logits,
        last_hidden_state=hidden,
        rope_delta=int(outputs.rope_deltas.item()),
        visual_items=visual_items,
        kept=kept,
        seconds={"vision": encoded - start, "prefill": _seconds_when_done(device) - encoded},
    )


@torch.no_grad()
def extend(model, prefill: Prefill, input_ids: torch.Tensor) -> Prefill:
    """Read one more turn of text after a prefill: only the new tokens pass the language model.

    Args:
        model: the `Qwen2_5_VLForConditionalGeneration` that made the prefill.
        prefill: from `model.prefill` or `model.extend`; it is not changed.
        input_ids: `(1, n)`, the text that follows the prompt, without images and videos.

    Returns:
        The `Prefill` of the whole conversation, up to floating point as if it had been read at once: the new tokens
        have the positions that they would have had unpruned. Its seconds are those of this call.

    Raises:
        ValueError: no tokens, a batch, placeholders of images or videos, or a model with sliding-window attention.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"extend reads one row of new tokens, (1, n), got {tuple(input_ids.shape)}")
    if any(prefill.cache.is_sliding):
        raise ValueError("a turn attends to the whole prompt; the model has layers with sliding-window attention")
    device = prefill.input_ids.device
    start = _seconds_when_done(device)
    input_ids = input_ids.to(device)
    placeholders = [model.config.image_token_id, model.config.video_token_id]
    if torch.isin(input_ids, torch.tensor(placeholders, device=device)).any():
        raise ValueError("a new turn is text: one that shows images or videos needs a prefill of its own")
    # The copied layers share the tensors. A dynamic layer grows by making new tensors, so the old ones do not change.
    cache = copy.copy(prefill.cache)
    cache.layers = [copy.copy(layer) for layer in prefill.cache.layers]
    first = prefill.prompt_length + prefill.rope_delta
    outputs = model.model(
        input_ids=input_ids,
        position_ids=torch.arange(first, first + input_ids.shape[1], device=device).expand(3, 1, -1),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    hidden = outputs.last_hidden_state[:, -1]
    logits = model.lm_head(hidden).to(device, torch.float32)
    return Prefill(
        input_ids=torch.cat([prefill.input_ids, input_ids], dim=1),
        cache=cache,
        logits=logits,
        last_hidden_state=hidden,
        rope_delta=prefill.rope_delta,
        visual_items=prefill.visual_items,
        kept=prefill.kept,
        seconds={"vision": 0.0, "prefill": _seconds_when_done(device) - start},
    )


# ---- Rollouts ----------------------------------------------------------------------------------------------


class _RolloutRecorder:
    """Collects the tokens of K rollouts while they are decoded.

    Attributes:
        ended: the rollouts that have ended, by index.
    """

    def __init__(self, num_rollouts: int, end_tokens: Sequence[int]):
        self.tokens: list[list[int]] = [[] for _ in range(num_rollouts)]
        self.logprobs = [0.0] * num_rollouts
        self.end_tokens = end_tokens
        self.ended: dict[int, FinishedRollout] = {}
        self.cache_bytes = 0

    def add(self, new_tokens: Sequence[NewToken], cache_bytes: int) -> None:
        """Add the tokens of one step."""
        self.cache_bytes = max(self.cache_bytes, cache_bytes)
        for rollout, token, is_last, logprob in new_tokens:
            tokens = self.tokens[rollout]
            tokens.append(token)
            self.logprobs[rollout] += logprob
            if is_last:
                mean_logprob = self.logprobs[rollout] / len(tokens)
                self.ended[rollout] = FinishedRollout(tuple(tokens), token in self.end_tokens, mean_logprob)

    def to_rollouts(self, seconds: float) -> Rollouts:
        """Return the rollouts; those that have not ended count as stopped."""
        indices = range(len(self.tokens))
        means = [total / len(tokens) if tokens else None for total, tokens in zip(self.logprobs, self.tokens)]
        return Rollouts(
            tokens=tuple(tuple(tokens) for tokens in self.tokens),
            finished=tuple(i in self.ended and self.ended[i].finished for i in indices),
            stopped=tuple(i not in self.ended for i in indices),
            mean_logprobs=tuple(means),
            cache_bytes=self.cache_bytes,
            seconds=seconds,
        )


def _check_rollout_arguments(
    prefill: Prefill, num_rollouts: int, rollout_batch_size: int, sampling: SamplingConfig
) -> None:
    max_new_tokens, seed, query_index = sampling.max_new_tokens, sampling.seed, sampling.query_index
    whole = {
        "num_rollouts": num_rollouts,
        "max_new_tokens": max_new_tokens,
        "rollout_batch_size": rollout_batch_size,
        "seed": seed,
        "query_index": query_index,
    }
    for name, value in whole.items():
        check_number(name, value, is_whole=True)
    check_number("temperature", sampling.temperature)
    check_number("top_p", sampling.top_p)
    if min(num_rollouts, max_new_tokens, rollout_batch_size) < 1:
        raise ValueError(
            "num_rollouts, max_new_tokens and rollout_batch_size are at least 1, "
            f"got {num_rollouts}, {max_new_tokens}, {rollout_batch_size}"
        )
    temperature, top_p = sampling.temperature, sampling.top_p
    if not (0 <= temperature < float("inf") and 0 < top_p <= 1):
        raise ValueError(f"temperature is finite from 0 and top_p in (0, 1], got {temperature} and {top_p}")
    if min(seed, query_index) < 0 or max(seed, query_index) >= 2**64:
        raise ValueError(f"seed and query_index are whole numbers from 0 to 2**64 - 1, got {seed} and {query_index}")
    if any(prefill.cache.is_sliding):
        raise ValueError("rollouts attend to the whole prompt; the model has layers with sliding-window attention")


@torch.no_grad()
def rollout(
    model,
    prefill: Prefill,
    num_rollouts: int = 1,
    *,
    max_new_tokens: int = 2048,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
    query_index: int = 0,
    rollout_batch_size: Optional[int] = None,
    stopping_fn: Optional[Callable[[Mapping[int, FinishedRollout]], bool]] = None,
    step_fn: Optional[Callable[[Sequence[tuple[int, int, bool]]], None]] = None,
) -> Rollouts:
    """Sample `num_rollouts` continuations of a prefill, each with a first token of its own.

    Transformers' own processors change the logits: those of the model's `generation_config`, with the temperature and
    top-p given here and without top-k. Inverting the remaining distribution at
    `counter_uniform(seed, query_index, i, t)` gives the token of rollout i at step t. Rollout i is therefore the same
    for every `num_rollouts`, `rollout_batch_size` and `stopping_fn`, up to floating point: the last bits of a matrix
    product may depend on its number of rows, which in float32 on the CPU hardly ever changes a token.

    On one GPU, steps are captured as CUDA graphs (see `decoding.Decoder`). Call this from one thread per GPU.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        prefill: from `model.prefill` or `model.extend`; it is not changed.
        num_rollouts: K, at least 1.
        max_new_tokens: tokens of a rollout at most, at least 1.
        temperature: 0 is greedy decoding, which gives K equal rollouts.
        top_p: the probability mass of the nucleus, in (0, 1].
        seed: a whole number from 0 to 2**64 - 1.
        query_index: the number of the query in its set, from 0 to 2**64 - 1.
        rollout_batch_size: rollouts that run side by side, at least 1; the next batch begins when all of these have
            ended. None runs all K side by side.
        stopping_fn: receives the rollouts that have ended, by index, whenever one has ended and others have not. When
            it returns True, the other rollouts are stopped where they are, or never begun.
        step_fn: receives (rollout, new token, whether it is the last) of each running rollout after every step.

    Returns:
        The `Rollouts`.

    Raises:
        ValueError: a value out of range, logits that are not finite, or a model with sliding-window attention.
    """
    rollout_batch_size = num_rollouts if rollout_batch_size is None else rollout_batch_size
    sampling = SamplingConfig(max_new_tokens, temperature, top_p, seed, query_index)
    _check_rollout_arguments(prefill, num_rollouts, rollout_batch_size, sampling)
    device = prefill.input_ids.device
    start = _seconds_when_done(device)
    rules = build_generation_rules(model, prefill.prompt_length, sampling, device)
    recorder = _RolloutRecorder(num_rollouts, rules.end_tokens)
    starts = range(0, num_rollouts, rollout_batch_size)
    batches = [range(first, min(first + rollout_batch_size, num_rollouts)) for first in starts]
    steps = (step for batch in batches for step in decode_batch(model, prefill, batch, rules, sampling))
    for new_tokens, cache_bytes in steps:
        num_ended = len(recorder.ended)
        recorder.add(new_tokens, cache_bytes)
        if step_fn is not None:
            step_fn([(new.rollout, new.token, new.is_last) for new in new_tokens])
        has_news = num_ended < len(recorder.ended) < num_rollouts
        if stopping_fn is not None and has_news and stopping_fn(recorder.ended):
            break
    return recorder.to_rollouts(_seconds_when_done(device) - start)
