"""The decoding loop of rollouts: one new token of every running rollout per step.

`shared_prefill.rollout` calls `decode_batch`, which repeats four things until the last rollout has ended:

1. Transformers' own logits processors change the logits (`GenerationRules`).
2. `sample_inverse_cdf` samples one token per rollout with a `counter_uniform` random number.
3. The host reads the tokens, and rollouts that have ended leave the batch.
4. `Decoder` runs the language model over the new tokens: on one GPU as a CUDA graph, on a CPU with oneDNN.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ...generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from ...utils import logging
from .cuda_graphs import can_capture, capture_cuda_graph, never_capture_again
from .shared_prefix_cache import SharedPrefixCache

if TYPE_CHECKING:  # shared_prefill imports this module
    from .shared_prefill import Prefill

logger = logging.get_logger(__name__)

# Steps of a rollout whose random numbers are drawn at a time.
RANDOM_BLOCK_STEPS = 64
# A model decodes with oneDNN when its largest matrix has at least so many elements. All matrices of a smaller model lie
# in the caches of a CPU. There MKL is as fast, and a call of oneDNN mostly costs its fixed 20 microseconds.
ONEDNN_MIN_WEIGHT_ELEMENTS = 2**20
ONEDNN_MAX_ROWS = 32


# ---- Sampling ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingConfig:
    """How rollouts are sampled; `shared_prefill.rollout` checks the values.

    Attributes:
        max_new_tokens: tokens of a rollout at most.
        temperature: 0 is greedy decoding.
        top_p: the probability mass of the nucleus, in (0, 1].
        seed: the seed of the random numbers.
        query_index: the number of the query in its set; random numbers depend on it.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    query_index: int


def counter_uniform(seed: int, query_index: int, rollout: int, step: int) -> float:
    """Return the random number in [0, 1) of one step of one rollout.

    Philox4x64 (Salmon et al. 2011) has the key (seed, query_index) and the counter (rollout, step). The number depends
    on nothing else, so a rollout is the same for every K and beside any other rollouts.
    """
    key = np.array([seed, query_index], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=(0, step, rollout, 0)).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def sample_inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample one token per row by inverting the cumulative distribution of its scores.

    Args:
        scores: `(K, V)` logits.
        uniforms: `(K,)` float64 numbers in [0, 1).

    Returns:
        `(K,)` int64: the token at which the cumulative probability passes the number; -1 where scores are not
        finite, because an exception here would make the host wait for the device once more.
    """
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True).clamp(max=scores.shape[1] - 1)
    return tokens.masked_fill(total.isnan(), -1).squeeze(1)


class _RolloutUniforms:
    """The random numbers of the running rollouts, drawn for `RANDOM_BLOCK_STEPS` steps at a time."""

    def __init__(self, sampling: SamplingConfig, device: torch.device):
        self.sampling, self.device = sampling, device
        self.block = torch.empty(0, 0)

    def at(self, step: int, rollouts: Sequence[int]) -> torch.Tensor:
        """Return the numbers `(n,)` of one step of these rollouts; the steps must be requested in order."""
        column = step % RANDOM_BLOCK_STEPS
        if column == 0:
            steps = range(step, min(step + RANDOM_BLOCK_STEPS, self.sampling.max_new_tokens))
            seed, query_index = self.sampling.seed, self.sampling.query_index
            numbers = [[counter_uniform(seed, query_index, rollout, t) for t in steps] for rollout in rollouts]
            self.block = torch.tensor(numbers, dtype=torch.double, device=self.device)
        return self.block[:, column]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep the numbers of these rows."""
        self.block = self.block[rows]


@dataclass(frozen=True)
class GenerationRules:
    """What Transformers' `generate` applies in every step.

    Attributes:
        logits_processors: change the logits before a token is sampled.
        stopping_criteria: decide which rows have ended.
        end_tokens: ids of the tokens that end a rollout by itself.
    """

    logits_processors: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    end_tokens: list[int]


def build_generation_rules(
    model, prompt_length: int, sampling: SamplingConfig, device: torch.device
) -> GenerationRules:
    """Build the rules as `generate` does, from the model's `generation_config` and the sampling settings."""
    settings = {
        "max_new_tokens": sampling.max_new_tokens,
        "max_length": prompt_length + sampling.max_new_tokens,
        "do_sample": False,
    }
    if sampling.temperature:
        settings |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    # Ours are merged here, because `_prepare_generation_config` would take a temperature of 1 for "not given" and
    # replace it by the model's own.
    config = GenerationConfig(**model.generation_config.to_diff_dict() | settings)
    config, _ = model._prepare_generation_config(config, use_model_defaults=False)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=device)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=prompt_length, logits_processor=LogitsProcessorList(), device=device
    )
    end_tokens = [] if config._eos_token_tensor is None else config._eos_token_tensor.tolist()
    return GenerationRules(processors, model._get_stopping_criteria(config, StoppingCriteriaList()), end_tokens)


# ---- Few rows on a CPU -------------------------------------------------------------------------------------


def _is_float32_on_cpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


class OneDnnLinearMode(TorchFunctionMode):
    """Multiplies up to `ONEDNN_MAX_ROWS` rows with a float32 matrix on the CPU by oneDNN instead of MKL.

    oneDNN reads the matrix once, and is as fast for 7 rows as for 1. On an AMD CPU, the only one tried, MKL takes twice
    as long for 1 row of a large matrix, four times for 3 rows and three times for 7. For small matrices that the large
    ones have driven out of the cache it mostly takes 1.2 to 2 times as long. With many more rows MKL is faster.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs:
            states, weight, *bias = args
            is_small = states.shape[:-1].numel() <= ONEDNN_MAX_ROWS and states.dtype == weight.dtype
            if is_small and _is_float32_on_cpu(weight):
                bias = bias[0] if bias else None
                return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def onednn_for_few_rows(model) -> AbstractContextManager:
    """Return the context that a decoding step of the model runs in.

    It is `OneDnnLinearMode` for a model with large float32 matrices on the CPU, and does nothing otherwise: the mode
    costs some microseconds per operator, which only large matrices earn back.
    """
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    weights = [weight for weight in model.parameters() if _is_float32_on_cpu(weight)]
    is_large = any(weight.numel() >= ONEDNN_MIN_WEIGHT_ELEMENTS for weight in weights)
    return OneDnnLinearMode() if has_onednn and is_large else nullcontext()


# ---- The loop ----------------------------------------------------------------------------------------------


class Decoder:
    """The language model with the cache of K rows, which reads one token of each row per step.

    On a GPU, launching small kernels from Python takes longer than running them. There the first step in a cache of one
    capacity runs as it is, and the second is captured as a CUDA graph. The graph is replayed until the cache grows. A
    replay reads the same memory in the same shapes, so rows that have ended stay in the batch and their logits are
    ignored. That costs next to nothing where a step waits for its weights. Without graphs, ended rows are removed.
    """

    def __init__(self, model, prefill: "Prefill", num_rows: int, max_new_tokens: int):
        """Start `num_rows` rows after the prompt; each reads at most `max_new_tokens` tokens."""
        self.model, self.device = model, prefill.input_ids.device
        self.cache = SharedPrefixCache(prefill.cache, num_rows, max_new_tokens)
        self.first_position = prefill.prompt_length + prefill.rope_delta
        self.tokens = torch.zeros(num_rows, 1, dtype=torch.long, device=self.device)
        self.last_index = torch.full((1,), -1, device=self.device)  # of the last token in a row's own cache
        self.running_rows = torch.arange(num_rows, device=self.device)
        self.num_steps = 0
        self.linear_mode = onednn_for_few_rows(model)
        self.use_graphs = can_capture(model, self.device)
        self.replay: Optional[Callable[[], torch.Tensor]] = None

    def keep_rows(self, index: torch.Tensor) -> None:
        """Continue with these of the running rows alone."""
        self.running_rows = self.running_rows[index]
        if not self.use_graphs:
            self.cache.keep_rows(self.running_rows)
            self.tokens = self.tokens[self.running_rows]
            self.running_rows = torch.arange(len(index), device=self.device)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits `(n, V)` in float32 that follow the new tokens `(n,)` of the running rows."""
        self.tokens[self.running_rows, 0] = tokens
        if self.num_steps == self.cache.capacity:
            self.cache.grow()
            self.replay = None
        elif self.use_graphs and self.replay is None:
            self._try_to_capture()
        self.num_steps += 1
        logits = self.run_step() if self.replay is None else self.replay()
        return logits[self.running_rows]

    def _try_to_capture(self) -> None:
        try:
            self.replay = capture_cuda_graph(self.run_step, self.device)
        except RuntimeError as error:  # a layer that is not Transformers' own may wait for the host
            logger.warning_once(f"decoding without CUDA graphs, which is slower: {error.__context__ or error}")
            self.use_graphs = False
            if not isinstance(error, torch.OutOfMemoryError):
                never_capture_again(self.model)

    def run_step(self) -> torch.Tensor:
        """Run the language model over `self.tokens` and return the logits `(rows, V)` of all rows."""
        self.last_index += 1
        indices = torch.arange(self.cache.capacity, device=self.device)
        mask = torch.zeros_like(indices, dtype=self.model.dtype).masked_fill(indices > self.last_index, float("-inf"))
        with self.linear_mode:
            outputs = self.model.model(
                input_ids=self.tokens,
                attention_mask={"full_attention": mask},
                position_ids=(self.last_index + self.first_position).expand(3, len(self.tokens), 1),
                past_key_values=self.cache,
                cache_position=self.last_index,
                use_cache=True,
                return_dict=True,
            )
            logits = self.model.lm_head(outputs.last_hidden_state[:, -1])
        return logits.to(self.device, torch.float32)


class NewToken(NamedTuple):
    """One token that a rollout has sampled.

    Attributes:
        rollout: the index of the rollout.
        token: the id of the token.
        is_last: whether the rollout has ended, by an end token or at the length limit.
        logprob: the log-probability of the token under the logits before any processor.
    """

    rollout: int
    token: int
    is_last: bool
    logprob: float


def _read_new_tokens(
    rollouts: Sequence[int], tokens: torch.Tensor, has_ended: torch.Tensor, logprobs: torch.Tensor
) -> list[NewToken]:
    """Copy one step's results to the host: the only place of a step where the host waits for the device.

    Raises:
        ValueError: the logits were not finite.
    """
    # Token ids are exact in float32 up to 2**24.
    columns = torch.stack([tokens.float(), has_ended.float(), logprobs]).tolist()
    new_tokens = [
        NewToken(rollout, int(token), bool(ended), logprob)
        for rollout, token, ended, logprob in zip(rollouts, *columns)
    ]
    if min(new.token for new in new_tokens) < 0:
        raise ValueError("the model's logits are not finite: use another dtype, or a temperature further from 0")
    return new_tokens


def decode_batch(
    model, prefill: "Prefill", rollouts: Sequence[int], rules: GenerationRules, sampling: SamplingConfig
) -> Iterator[tuple[list[NewToken], int]]:
    """Decode some rollouts side by side, step by step, until the last of them has ended.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        prefill: the prompt.
        rollouts: indices of the rollouts; random numbers depend on them.
        rules: from `build_generation_rules`.
        sampling: the sampling settings.

    Yields:
        Per step the new token of each rollout that was still running, and the bytes of the cache.

    Raises:
        ValueError: the logits are not finite.
    """
    device = prefill.input_ids.device
    decoder = Decoder(model, prefill, len(rollouts), sampling.max_new_tokens - 1)  # the last token is never read
    uniforms = _RolloutUniforms(sampling, device)
    ids = prefill.input_ids.expand(len(rollouts), -1)
    logits = prefill.logits.expand(len(rollouts), -1)
    for step in range(sampling.max_new_tokens):
        scores = rules.logits_processors(ids, logits)
        if sampling.temperature:
            tokens = sample_inverse_cdf(scores, uniforms.at(step, rollouts))
        else:
            tokens = scores.argmax(dim=-1)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        logprobs = logits.gather(1, tokens[:, None].clamp(min=0)).squeeze(1) - logits.logsumexp(dim=-1)
        new_tokens = _read_new_tokens(rollouts, tokens, rules.stopping_criteria(ids, scores), logprobs)
        yield new_tokens, decoder.cache.nbytes
        running = [row for row, new in enumerate(new_tokens) if not new.is_last]
        if not running:
            return
        if len(running) < len(rollouts):
            index = torch.tensor(running, device=device)
            decoder.keep_rows(index)
            if sampling.temperature:
                uniforms.keep_rows(index)
            ids, tokens = ids[index], tokens[index]
            rollouts = [rollouts[row] for row in running]
        logits = decoder.decode(tokens)
