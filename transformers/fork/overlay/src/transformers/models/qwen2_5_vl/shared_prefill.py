"""K rollouts from one prefill: the image is encoded once and the prompt read once, whatever K is.

Self-consistency (Wang et al. 2022) samples K answers to one prompt. `generate(num_return_sequences=K)` encodes the
image and reads the prompt K times; here a `Prefill` is made at batch size 1 and K rows start from its cache, which they
all attend to where it is (`SharedPrefixCache`)::

    prefill = model.prefill(**inputs, enable_kdv=True, kdv_ratio=0.75)
    rollouts = model.rollout(prefill, 5, max_new_tokens=512, seed=0)
    texts = tokenizer.batch_decode(rollouts.tokens, skip_special_tokens=True)
    longer = model.extend(prefill, tokenizer(next_turn, return_tensors="pt").input_ids)

Each stage emits one frozen record; nothing is kept on the model, and a `Prefill` can be rolled out again.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Optional
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ...cache_utils import Cache, DynamicCache, DynamicLayer
from ...generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from ...utils import logging
from .key_diversity import VisualItem

logger = logging.get_logger(__name__)

# Steps of a rollout that are provided for at a time: random numbers, and the rows' caches, which double from there.
BLOCK = 64
# Elements of a model's largest matrix from which its products with few rows are made by oneDNN. All matrices of a
# smaller model lie in a CPU's cache, where MKL is as fast, and the fixed cost of a oneDNN call, some 20 microseconds,
# is most of it.
LARGE = 2**20


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt that has been read once, at batch size 1.

    input_ids: `(1, L)`, unpruned. cache: the language model's, `kept_length` long; rollouts leave it as it is.
    logits: `(1, V)` float32, of the token that comes next. last_hidden_state: `(1, D)`, where they come from.
    rope_delta: what to add to an unpruned index to get its position. visual_items: encoded images, then videos,
    unpruned. kept: per item the ascending indices of the tokens that stay (all of them when nothing is pruned).
    seconds: of stages "vision" and "prefill"; a model on several GPUs may end the one in the time of the other.
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
    """A rollout that has come to its end, as `stopping_fn` gets it.

    tokens, finished, mean_logprob: as in `Rollouts`.
    """

    tokens: tuple[int, ...]
    finished: bool
    mean_logprob: float


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What K rollouts wrote.

    tokens: per rollout its new tokens, the end token included; none when it was stopped before it began.
    finished: per rollout whether it ended by itself (False: cut off, or stopped).
    stopped: per rollout whether it was given up because `stopping_fn` said so.
    mean_logprobs: per rollout the mean log-probability of its tokens under the model's own distribution: its logits
    as they are, before any processor, temperature or top-p; None for no tokens.
    cache_bytes: the largest size that the decoding cache took, the prompt's part counted once.
    seconds: of decoding.
    """

    tokens: tuple[tuple[int, ...], ...]
    finished: tuple[bool, ...]
    stopped: tuple[bool, ...]
    mean_logprobs: tuple[Optional[float], ...]
    cache_bytes: int
    seconds: float


class _SharedPrefixLayer(DynamicLayer):
    """One layer: the prompt's keys and values once `(1, heads, P, d)`, and each row's own `(rows, heads, room, d)`,
    zeros where nothing has been written."""

    def __init__(self, prefix_keys: torch.Tensor, prefix_values: torch.Tensor, rows: int):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values
        self.keys, self.values = (x.new_zeros(rows, x.shape[1], 0, x.shape[3]) for x in (prefix_keys, prefix_values))
        self.is_initialized = True

    def grow(self, more: int) -> None:
        """Makes room for `more` tokens of each row."""
        self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))

    def update(self, key_states, value_states, cache_kwargs=None):
        """Takes one token of each row, `(rows, heads, 1, d)`; returns what rows have of their own, with the room.

        Where it goes is read on the device, so that a step can be replayed as it is for the next token.
        """
        index = cache_kwargs["cache_position"]
        return self.keys.index_copy_(2, index, key_states), self.values.index_copy_(2, index, value_states)


class SharedPrefixCache(Cache):
    """The cache of rows that continue one prompt, one token at a time: the prompt's keys and values are neither copied
    nor repeated. The language model's attention calls `attend` instead of the configured implementation.

    prefix: the prompt's cache, batch size 1, read only. rows: how many rows start. limit: tokens of a row at most.
    """

    def __init__(self, prefix: DynamicCache, rows: int, limit: int):
        super().__init__(layers=[_SharedPrefixLayer(layer.keys, layer.values, rows) for layer in prefix.layers])
        self.room, self.limit = 0, limit

    def grow(self) -> None:
        """Makes room for as many tokens again, at least a block of them, at most what the limit leaves."""
        more = min(max(self.room, BLOCK), self.limit - self.room)
        for layer in self.layers:
            layer.grow(more)
        self.room += more

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these of the rows alone."""
        for layer in self.layers:
            layer.keys, layer.values = (x[rows.to(x.device)] for x in (layer.keys, layer.values))

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take, the rows' unused room included."""
        return sum(
            x.numel() * x.element_size()
            for layer in self.layers
            for x in (layer.prefix_keys, layer.prefix_values, layer.keys, layer.values)
        )

    def attend(self, module, query, key, value, attention_mask, *, scaling: float, **kwargs):
        """An attention function as Transformers' own: one softmax over the prompt and a row's own tokens.

        Query heads that share keys are more queries to the same keys; and since all rows share the prompt, so are the
        rows there (Hydragen, Juravsky et al. 2024).

        Args:
            module: the attention layer. scaling: of the scores.
            query: `(rows, heads, 1, d)`. key, value: `(rows, key heads, room, d)`, what `update` returned.
            attention_mask: `(room,)`, 0 for what has been written of a row's own tokens and -inf for the rest. All of
                the prompt is visible to every row.

        Returns:
            `(rows, 1, heads, d)`, and None for the weights.
        """
        layer = self.layers[module.layer_idx]
        rows, heads, _, width = query.shape
        key_heads, prefix_length = layer.prefix_keys.shape[1:3]
        query = query.view(rows, key_heads, -1, width)
        folded = query.transpose(0, 1).reshape(key_heads, -1, width)
        scores = (folded @ layer.prefix_keys[0].transpose(1, 2)).view(key_heads, rows, -1, prefix_length)
        own_scores = query @ key.transpose(2, 3) + attention_mask
        scores = torch.cat([scores, own_scores.transpose(0, 1)], dim=-1) * scaling
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        from_prefix = weights[..., :prefix_length].flatten(1, 2) @ layer.prefix_values[0]
        from_own = weights[..., prefix_length:].transpose(0, 1) @ value
        output = from_prefix.view(key_heads, rows, -1, width).transpose(0, 1) + from_own
        return output.reshape(rows, 1, heads, width), None


def _is_float32_on_cpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


class _FewRows(TorchFunctionMode):
    """Multiplies up to 32 rows with a float32 matrix on the CPU by oneDNN instead of MKL.

    oneDNN reads the matrix once, and as fast for 7 rows as for 1; on an AMD CPU, the only one tried, MKL takes twice as
    long for 1 row of a large matrix, four times for 3 and three times for 7, and mostly 1.2 to 2 times for small ones
    that the others have driven out of the cache. With many more rows MKL is the faster one.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs:
            states, weight, *bias = args
            if states.shape[:-1].numel() <= 32 and states.dtype == weight.dtype and _is_float32_on_cpu(weight):
                bias = bias[0] if bias else None
                return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def onednn_for_few_rows(model) -> AbstractContextManager:
    """What a step of decoding runs under. The mode costs each operator some microseconds, which only a model with large
    matrices earns back."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    weights = filter(_is_float32_on_cpu, model.parameters())
    return _FewRows() if there and any(weight.numel() >= LARGE for weight in weights) else nullcontext()


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    """Read one prompt: every patch through the vision tower once, the language model once.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        input_ids, attention_mask: `(1, L)`; no padding.
        pixel_values and so on: what the processor gives.
        visual_items: what an earlier prefill has encoded (`Prefill.visual_items`), instead of pixels and grids.
            One that was encoded with KDV off has no keys, and cannot be pruned later.
        enable_kdv, kdv_ratio, kdv_threshold, pruner, pruner_seed: as for `generate`.

    Returns:
        `Prefill`. Raises ValueError for a batch, for padding, and as `KdvConfig` does.
    """
    if input_ids.shape[0] != 1:
        raise ValueError(f"prefill reads one prompt at a time, got a batch of {input_ids.shape[0]}")
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("prefill reads one prompt without padding, got an attention_mask with zeros")
    device = input_ids.device
    start = _clock(device)
    if visual_items is None:
        visual_items = model.model.encode_visual(
            pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, return_keys=enable_kdv
        )
    elif pixel_values is not None or pixel_values_videos is not None:
        raise ValueError("pass visual_items or pixel values, not both")
    encoded = _clock(device)
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
        seconds={"vision": encoded - start, "prefill": _clock(device) - encoded},
    )


@torch.no_grad()
def extend(model, prefill: Prefill, input_ids: torch.Tensor) -> Prefill:
    """Read one more turn of text after a prompt that has been read: the language model runs over the new tokens alone.

    Args:
        model: the `Qwen2_5_VLForConditionalGeneration` that the prefill is of.
        prefill: from `model.prefill` or `model.extend`; stays as it is.
        input_ids: `(1, n)`, what follows the prompt; text, no pictures or videos.

    Returns:
        The `Prefill` of the whole, up to floating point as if it had been read at once: the new tokens stand where they
        would have stood unpruned. Its seconds are this call's. Raises ValueError for no tokens, a batch, placeholders
        of pictures and videos, and a model with sliding-window attention.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"extend reads one row of new tokens, (1, n), got {tuple(input_ids.shape)}")
    if any(prefill.cache.is_sliding):
        raise ValueError("a turn attends to the whole prompt; the model has layers with sliding-window attention")
    device = prefill.input_ids.device
    start = _clock(device)
    input_ids = input_ids.to(device)
    placeholders = [model.config.image_token_id, model.config.video_token_id]
    if torch.isin(input_ids, torch.tensor(placeholders, device=device)).any():
        raise ValueError("a new turn is text: one that shows pictures or videos needs a prefill of its own")
    # Layers of their own that share the tensors: to grow, a dynamic layer makes new tensors and leaves the old alone.
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
        seconds={"vision": 0.0, "prefill": _clock(device) - start},
    )


def uniform(seed: int, query_index: int, rollout: int, step: int) -> float:
    """The random number in [0, 1) of one step of one rollout.

    Philox4x64 (Salmon et al. 2011) keyed with (seed, query_index), at counter (rollout, step): it depends on nothing else,
    so a rollout is the same whatever K is, and whichever others run beside it.
    """
    key = np.array([seed, query_index], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=(0, step, rollout, 0)).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def sample_inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The tokens `(K,)` at which the cumulative probability of each row of scores `(K, V)` passes its uniform `(K,)`.

    -1 where scores are not finite: to raise here would make the host wait for the device once more.
    """
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True).clamp(max=scores.shape[1] - 1)
    return tokens.masked_fill(total.isnan(), -1).squeeze(1)


def _host(model, prompt_length: int, max_new_tokens: int, temperature: float, top_p: float, device):
    """Transformers' own processors, stopping criteria and end tokens for these settings, made as `generate` does."""
    settings = {"max_new_tokens": max_new_tokens, "max_length": prompt_length + max_new_tokens, "do_sample": False}
    if temperature:
        settings |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    # The merge is ours: left to itself, this step takes a temperature of 1 for "not given" and puts in the model's.
    config = GenerationConfig(**model.generation_config.to_diff_dict() | settings)
    config, _ = model._prepare_generation_config(config, use_model_defaults=False)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=device)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=prompt_length, logits_processor=LogitsProcessorList(), device=device
    )
    ends = [] if config._eos_token_tensor is None else config._eos_token_tensor.tolist()
    return processors, model._get_stopping_criteria(config, StoppingCriteriaList()), ends


# Models with layers that a graph cannot hold. A failed capture may harm the allocator: it is not tried again.
_UNCAPTURABLE: WeakSet = WeakSet()


def _can_be_captured(model, device: torch.device) -> bool:
    """Whether a step of decoding is work of one GPU alone, as far as can be told before it is tried; and nobody's hooks
    wait for it, which a replay would not call."""
    if device.type != "cuda" or model in _UNCAPTURABLE or getattr(model, "hf_quantizer", None) is not None:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    return all(weight.device == device for weight in model.parameters())


@lru_cache
def _capture_place(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The stream of all captures on a GPU, and a small graph that keeps the memory that they share: cuBLAS keeps a
    workspace for every stream that it has seen, and a pool of a graph's own would stay reserved after it."""
    stream, anchor = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        anchor.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        anchor.capture_end()
    return stream, anchor


def _capture(step: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Records the kernels of a step on a GPU, without running them; what is returned runs them all by one call.

    Not by `torch.cuda.graph`, which empties the allocator's cache each time.
    """
    with torch.cuda.device(device):
        graph, (stream, anchor) = torch.cuda.CUDAGraph(), _capture_place(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=anchor.pool(), capture_error_mode="thread_local")
            try:
                output = step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


class _Decoder:
    """The language model, one token of each row further at a time; and the rows' cache.

    Small kernels take longer to launch from Python than to run on a GPU. There, the first step in a cache of one size
    is run as it is, the second is captured as a CUDA graph, and it and all that follow are replayed, until the cache
    grows. So all that a step reads lies where it was and has the shape that it had: rows that have ended go on unread,
    which costs next to nothing where a step waits for its weights. Elsewhere they leave.
    """

    def __init__(self, model, prefill: Prefill, rows: int, limit: int):
        self.model, self.device = model, prefill.input_ids.device
        self.cache = SharedPrefixCache(prefill.cache, rows, limit)
        self.position = prefill.prompt_length + prefill.rope_delta  # of a row's first token
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        self.last = torch.full((1,), -1, device=self.device)  # where a row's last token lies in its own cache
        self.live = torch.arange(rows, device=self.device)  # which of the rows are read
        self.steps = 0
        self.products = onednn_for_few_rows(model)
        self.captures = _can_be_captured(model, self.device)
        self.replay: Optional[Callable[[], torch.Tensor]] = None

    def keep(self, going: Sequence[int]) -> None:
        """Goes on with these of the rows alone."""
        index = torch.tensor(going, device=self.device)
        self.live = self.live[index]
        if not self.captures:
            self.cache.keep(self.live)
            self.tokens = self.tokens[self.live]
            self.live = torch.arange(len(going), device=self.device)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits `(n, V)` in float32 that follow the rows' new tokens `(n,)`."""
        self.tokens[self.live, 0] = tokens
        if self.steps == self.cache.room:
            self.cache.grow()
            self.replay = None
        elif self.captures and self.replay is None:
            try:
                self.replay = _capture(self._step, self.device)
            except RuntimeError as error:  # a model with layers of another's making, which wait for the host
                logger.warning_once(f"decoding without CUDA graphs, which is slower: {error.__context__ or error}")
                self.captures = False
                if not isinstance(error, torch.OutOfMemoryError):
                    _UNCAPTURABLE.add(self.model)
        self.steps += 1
        return (self.replay or self._step)()[self.live]

    def _step(self) -> torch.Tensor:
        self.last += 1
        room = torch.arange(self.cache.room, device=self.device)
        mask = torch.zeros_like(room, dtype=self.model.dtype).masked_fill(room > self.last, float("-inf"))
        with self.products:
            outputs = self.model.model(
                input_ids=self.tokens,
                attention_mask={"full_attention": mask},
                position_ids=(self.last + self.position).expand(3, len(self.tokens), 1),
                past_key_values=self.cache,
                cache_position=self.last,
                use_cache=True,
                return_dict=True,
            )
            logits = self.model.lm_head(outputs.last_hidden_state[:, -1])
        return logits.to(self.device, torch.float32)


def _wave(
    model, prefill: Prefill, active: Sequence[int], host, max_new_tokens: int, temperature: float, seed: int,
    query_index: int,
) -> Iterator[tuple[list[tuple[int, int, bool, float]], int]]:
    """Decodes the rollouts `active` side by side, step by step, until the last of them has come to its end.

    Yields per step: for each rollout that is still running its index, its new token, whether it has come to its end,
    and the token's log-probability; and the bytes of the cache.
    """
    processors, criteria = host
    device = prefill.input_ids.device
    decoder = _Decoder(model, prefill, len(active), limit=max_new_tokens - 1)  # the last token is never fed
    ids = prefill.input_ids.expand(len(active), -1)
    logits = prefill.logits.expand(len(active), -1)
    for step in range(max_new_tokens):
        scores = processors(ids, logits)
        if temperature:
            if step % BLOCK == 0:
                ahead = range(step, min(step + BLOCK, max_new_tokens))
                drawn = [[uniform(seed, query_index, i, t) for t in ahead] for i in active]
                uniforms = torch.tensor(drawn, dtype=torch.double, device=device)
            chosen = sample_inverse_cdf(scores, uniforms[:, step % BLOCK])
        else:
            chosen = scores.argmax(dim=-1)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        logprobs = logits.gather(1, chosen[:, None].clamp(min=0)).squeeze(1) - logits.logsumexp(dim=-1)
        # The stopping check: the one place of a step where the host waits for the device. Token ids are exact in
        # float32 up to 2**24.
        told = torch.stack([chosen.float(), criteria(ids, scores).float(), logprobs]).tolist()
        new, ends = map(int, told[0]), map(bool, told[1])
        rows = list(zip(active, new, ends, told[2]))
        if min(token for _, token, _, _ in rows) < 0:
            raise ValueError("the model's logits are not finite: use another dtype, or a temperature further from 0")
        yield rows, decoder.cache.nbytes
        going = [row for row, (_, _, end, _) in enumerate(rows) if not end]
        if not going:
            return
        if len(going) < len(active):
            decoder.keep(going)
            index = torch.tensor(going, device=device)
            ids, chosen = ids[index], chosen[index]
            if temperature:
                uniforms = uniforms[index]
            active = [active[row] for row in going]
        logits = decoder(chosen)


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
    """Start `num_rollouts` rows from a prefill, each sampling its own first token; finished rows cost no more steps.

    The logits go through Transformers' own processors (the model's `generation_config`, with the temperature and
    top-p given here and no top-k); what is left is sampled by inverting its CDF at `uniform(seed, query_index, i, t)`.
    Rollout i is therefore the same for every `num_rollouts`, `rollout_batch_size` and `stopping_fn`, up to floating point: a matrix
    product's last bits may depend on its number of rows, which in float32 on the CPU hardly ever changes a token.
    On one GPU, steps are captured as graphs (see `_Decoder`), and finished rows are only read no more; call it from
    one thread per GPU.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        prefill: from `model.prefill`; stays as it is.
        num_rollouts: K, at least 1.
        max_new_tokens: per rollout, at least 1.
        temperature: 0 is greedy decoding: K equal rollouts.
        top_p: in (0, 1].
        seed, query_index: whole numbers from 0, of 64 bits; the latter is the query's number in its set.
        rollout_batch_size: how many rollouts run side by side, at least 1; the next so many begin when all of these have come to
            their ends. None: all K.
        step_fn: called after every step with (rollout, new token, whether it ended) of each running rollout.
        stopping_fn: asked whenever rollouts have come to their ends and others have not: whether those that have, by index,
            settle all. When it says so, the others are stopped where they are, or never begun.

    Returns:
        `Rollouts`. Raises ValueError for values out of range, for logits that are not finite, and for a model with
        sliding-window attention.
    """
    rollout_batch_size = num_rollouts if rollout_batch_size is None else rollout_batch_size
    if min(num_rollouts, max_new_tokens, rollout_batch_size) < 1:
        raise ValueError(
            f"num_rollouts, max_new_tokens and rollout_batch_size are at least 1, got {num_rollouts}, {max_new_tokens}, {rollout_batch_size}"
        )
    if not (0 <= temperature < float("inf") and 0 < top_p <= 1):
        raise ValueError(f"temperature is finite from 0 and top_p in (0, 1], got {temperature} and {top_p}")
    if min(seed, query_index) < 0 or max(seed, query_index) >= 2**64:
        raise ValueError(f"seed and query_index are whole numbers from 0 to 2**64 - 1, got {seed} and {query_index}")
    if any(prefill.cache.is_sliding):
        raise ValueError("rollouts attend to the whole prompt; the model has layers with sliding-window attention")
    device = prefill.input_ids.device
    start = _clock(device)
    *host, end_tokens = _host(model, prefill.prompt_length, max_new_tokens, temperature, top_p, device)
    tokens: list[list[int]] = [[] for _ in range(num_rollouts)]
    logprobs = [0.0] * num_rollouts
    ended: dict[int, FinishedRollout] = {}
    largest = 0
    waves = (range(first, min(first + rollout_batch_size, num_rollouts)) for first in range(0, num_rollouts, rollout_batch_size))
    steps = chain.from_iterable(
        _wave(model, prefill, wave, host, max_new_tokens, temperature, seed, query_index) for wave in waves
    )
    for rows, nbytes in steps:
        largest = max(largest, nbytes)
        before = len(ended)
        for i, token, end, logprob in rows:
            tokens[i].append(token)
            logprobs[i] += logprob
            if end:  # of the length, too, which cuts a rollout off
                ended[i] = FinishedRollout(tuple(tokens[i]), token in end_tokens, logprobs[i] / len(tokens[i]))
        if step_fn is not None:
            step_fn([row[:3] for row in rows])
        if stopping_fn is not None and before < len(ended) < num_rollouts and stopping_fn(ended):
            break
    return Rollouts(
        tokens=tuple(map(tuple, tokens)),
        finished=tuple(i in ended and ended[i].finished for i in range(num_rollouts)),
        stopped=tuple(i not in ended for i in range(num_rollouts)),
        mean_logprobs=tuple(total / len(mine) if mine else None for total, mine in zip(logprobs, tokens)),
        cache_bytes=largest,
        seconds=_clock(device) - start,
    )
