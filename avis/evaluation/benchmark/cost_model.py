"""The cost model: what closed-form FLOPs, counted bytes and measured rates say a stage takes::

    costs = stage_costs(model.config, weights, counts, visual_tokens=1024, rho=0.75, k=5, new_tokens=64)
    predict_seconds(costs["prefill"], rates, "cpu")["total"], floor_seconds(costs["prefill"], rates)

The floor is the roofline of Williams et al. 2009: FLOPs at the best rate, or bytes at the copy bandwidth, whichever
takes longer.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2_5_vl import flops

from avis.evaluation.benchmark.geometry import kept_length, patch_grid
from avis.evaluation.benchmark.rates import MAX_ATTENTION_LENGTH


@dataclass(frozen=True)
class StageCost:
    """The work of one stage.

    Attributes:
        part: "vision" or "language", whose matrices it multiplies by.
        matrices: FLOPs of the products with its weights.
        rows: of those products.
        attention: (FLOPs, kind, length) of each kind of attention: "vision", "windows", "language" or "decode".
        bytes: weights and cache, each read once.
        calls: operators that Python calls.
        traffic: bytes moved by operators that are no matrix product.
        sorts: rows of logits that are sorted; 0 for none.
        replayed: operators of a CUDA graph, which Python does not call.
    """

    part: str
    matrices: int
    rows: int
    attention: tuple[tuple[int, str, int], ...]
    bytes: int
    calls: int
    traffic: int
    sorts: int = 0
    replayed: int = 0

    @property
    def flops(self) -> int:
        """All FLOPs; causal attention counts in full, as in the paper."""
        return self.matrices + sum(amount for amount, _, _ in self.attention)

    @property
    def least_flops(self) -> float:
        """All FLOPs without the half of causal attention that its mask removes."""
        return self.flops - sum(amount for amount, kind, _ in self.attention if kind == "language") / 2


def vision_attention_flops(vision_config, grid: Sequence[int]) -> tuple[int, int]:
    """Return the FLOPs of the vision encoder's attention: in blocks with full attention, and in windows.

    Args:
        vision_config: of the model.
        grid: (t, h, w) in patches.
    """
    t, h, w = grid
    per_block = 4 * vision_config.hidden_size * t * (h * w) ** 2
    full = per_block * len({block for block in vision_config.fullatt_block_indexes if block < vision_config.depth})
    everywhere = copy.copy(vision_config)
    everywhere.fullatt_block_indexes = list(range(vision_config.depth))
    matrices = flops.vision_encoder_flops(everywhere, [grid]) - per_block * vision_config.depth
    return full, flops.vision_encoder_flops(vision_config, [grid]) - matrices - full


def stage_costs(
    config, weights: dict[str, int], counts: dict[str, Any], visual_tokens: int, rho: float, k: int, new_tokens: int
) -> dict[str, StageCost]:
    """Return the costs of the stages `vision`, `prefill` and `decode_step` of a query at batch size 1.

    Args:
        config: of the model.
        weights: bytes of "vision" and "language" (with the head, without the input embeddings), and of one "element".
        counts: of `count_operators` in "vision", "prefill" and "decode_step", the last with "replayed".
        visual_tokens: of the image before pruning.
        rho: fraction pruned.
        k: rollouts.
        new_tokens: of each rollout.
    """
    length = kept_length(visual_tokens, rho)
    return {
        "vision": _vision_cost(config.vision_config, weights, counts["vision"], visual_tokens),
        "prefill": _prefill_cost(config.text_config, weights, counts["prefill"], length),
        "decode_step": _decode_step_cost(config.text_config, weights, counts["decode_step"], length, k, new_tokens),
    }


def _vision_cost(vision, weights: dict[str, int], counts: dict[str, int], visual_tokens: int) -> StageCost:
    grid = patch_grid(vision, visual_tokens)
    full, windows = vision_attention_flops(vision, grid)
    patches = grid[1] * grid[2]
    return StageCost(
        part="vision",
        matrices=flops.vision_encoder_flops(vision, [grid]) - full - windows,
        rows=patches,
        attention=((full, "vision", patches), (windows, "windows", 0)),
        bytes=weights["vision"],
        calls=counts["calls"],
        traffic=counts["bytes"],
    )


def _prefill_cost(text, weights: dict[str, int], counts: dict[str, int], length: int) -> StageCost:
    attention = _flops_per_pair(text) * length**2
    return StageCost(
        part="language",
        matrices=flops.prefill_flops(text, length) - attention,
        rows=length,
        attention=((attention, "language", length),),
        bytes=weights["language"] + cache_bytes_per_token(text, weights["element"]) * length,
        calls=counts["calls"],
        traffic=counts["bytes"],
    )


def _decode_step_cost(
    text, weights: dict[str, int], counts: dict[str, int], length: int, k: int, new_tokens: int
) -> StageCost:
    """Return the cost of the mean step: on average a rollout has half of its own tokens in its cache."""
    steps = new_tokens - 1
    attention = k * _flops_per_pair(text) * (length + (steps + 1) / 2)
    cache = cache_bytes_per_token(text, weights["element"])
    return StageCost(
        part="language",
        matrices=round(k * flops.decode_flops(text, length, new_tokens) / steps - attention),
        rows=k,
        attention=((round(attention), "decode", length),),
        bytes=round(weights["language"] + cache * (length + k * (steps + 1) / 2)),
        calls=counts["calls"],
        traffic=counts["bytes"],
        sorts=k if k > 1 else 0,
        replayed=counts["replayed"],
    )


def _flops_per_pair(text) -> int:
    """Return the FLOPs of one query token with one key token, in all layers."""
    return 4 * text.num_hidden_layers * text.hidden_size


def cache_bytes_per_token(text_config, element_size: int) -> int:
    """Return the bytes of keys and values that one token takes in the cache."""
    head_width = text_config.hidden_size // text_config.num_attention_heads
    return 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head_width * element_size


def floor_seconds(cost: StageCost, rates: dict[str, Any]) -> float:
    """Return the least seconds: FLOPs at the best rate or bytes at the copy bandwidth, whichever takes longer."""
    return max(cost.least_flops / rates["best_matrix"], cost.bytes / rates["copy"])


def predict_seconds(cost: StageCost, rates: dict[str, Any], device: str) -> dict[str, float]:
    """Return the predicted seconds of a stage by cause, and their "total".

    Matrix products run at the rate measured for as many rows, and attention at the rate of its length; in decoding,
    attention takes as long as its FLOPs or the cache's bytes, whichever takes longer. Other operators take as long as
    the bytes they move, a sort as long as measured. Each operator has its start. A CPU does all this in turn; a GPU's
    work is started ahead, so that the shorter of starts and work is hidden.

    Args:
        cost: of the stage.
        rates: of `measure_rates`, with JSON's string keys, and "language_bytes" of the language model's weights.
        device: "cpu", or another.

    Raises:
        KeyError: a rate that was not measured.
    """
    matrix = rates["matrix"][cost.part]
    seconds = {
        "matrices": cost.matrices / matrix[str(min(cost.rows, max(map(int, matrix))))],
        "attention": sum(_attention_seconds(cost, one, rates) for one in cost.attention),
        "elementwise": cost.traffic / rates["elementwise"][cost.part][str(cost.rows)],
        "sort": rates["sort"][str(cost.sorts)] if cost.sorts else 0.0,
        "replayed": cost.replayed * rates["replayed"],
    }
    work = sum(seconds.values())
    starts = cost.calls * rates["call"]
    seconds["starts"] = starts if device == "cpu" else max(0.0, starts - work)
    return seconds | {"total": work + seconds["starts"]}


def _attention_seconds(cost: StageCost, attention: tuple[int, str, int], rates: dict[str, Any]) -> float:
    amount, kind, length = attention
    if kind == "windows":
        return amount / rates["attention"]["windows"]
    if kind == "decode":
        cache = cost.bytes - rates["language_bytes"]
        return max(amount / rates["best_matrix"], cache / rates["copy"])
    return amount / rates["attention"][kind][str(min(length, MAX_ATTENTION_LENGTH))]
