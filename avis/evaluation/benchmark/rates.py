"""What a machine does in a second, at the shapes of a model: the cost model's only measured input::

rates = measure_rates(model, rate_shapes([256, 1024], [0.0, 0.75], [1, 5]), "cpu")
rates["matrix"]["language"][5]  # FLOPs a second of the language model's matrices with five rows
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.qwen2_5_vl.decoding import onednn_for_few_rows

from avis.evaluation.benchmark.counters import count_operators, median_seconds
from avis.evaluation.benchmark.geometry import build_model, kept_length

MAX_MATRIX_ROWS = 512  # of matrix products whose rate is measured; more rows are not faster
MAX_ATTENTION_LENGTH = 4096  # of sequences whose attention's rate is measured
_SQUARE = 4096  # side of the square matrices whose product is the best that the machine does
_MAX_COPIED = 2**28  # elements, of the copy whose bandwidth is measured
_MIN_ELEMENTS = 2**18  # of elementwise products: a smaller one takes hardly longer than its start
_WINDOWS = 16  # attended at once where the rate of attention in windows is measured

Call = Callable[[], Any]


@dataclass(frozen=True)
class RateShapes:
    """The sizes at which rates are measured.

    Attributes:
        rows: rollouts that are decoded side by side.
        lengths: tokens of a prefill.
        patches: of an image.
    """

    rows: list[int]
    lengths: list[int]
    patches: list[int]


def rate_shapes(visual_tokens: Sequence[int], rhos: Sequence[float], rollouts: Sequence[int]) -> RateShapes:
    """Return the sizes at which a sweep needs rates."""
    return RateShapes(
        rows=sorted(set(rollouts)),
        lengths=sorted({kept_length(n, rho) for n in visual_tokens for rho in rhos}),
        patches=sorted({4 * n for n in visual_tokens}),
    )


@torch.no_grad()
def measure_rates(model, shapes: RateShapes, device: str) -> dict[str, Any]:
    """Measure what this machine does in a second, at the shapes of this model.

    Args:
        model: from `build_model`.
        shapes: at which sizes.
        device: of the model.

    Returns:
        copy: bytes a second, read and written, of a copy of as many elements as the language model has, at most
            `_MAX_COPIED`.
        matrix: FLOPs a second of the model's own matrices by number of rows, "language" and "vision"; all of them in
            turn, so that no cache holds them.
        attention: FLOPs a second (a causal mask not subtracted) by length, "language" and "vision", and of "windows".
        elementwise: bytes a second of a product of two activations into a third, by rows, "language" and "vision".
            The time to allocate a large new tensor (on a CPU the first touch of its pages) is not included.
        call: seconds that an operator takes beside its work, called through the model's modules: measured on the `tiny`
            geometry, which has hardly any work.
        replayed: the same in a CUDA graph; 0 on a CPU.
        sort: seconds of a sort of that many rows of logits.
        best_matrix: FLOPs a second, the highest of all rates in `matrix` and of a product of two square matrices.
    """
    language = [*model.model.language_model.layers.modules(), model.lm_head]
    weights = {"language": _linear_weights(language), "vision": _linear_weights(model.visual.blocks.modules())}
    elements = min(_MAX_COPIED, sum(weight.numel() for weight in weights["language"]))
    rates: dict[str, Any] = {"copy": _copy_rate(model, elements, device)}
    rates["matrix"] = _matrix_rates(model, weights, shapes, device)
    rates["attention"] = _attention_rates(model, shapes, device)
    rates["elementwise"] = _elementwise_rates(model, shapes, device)
    rates |= _start_seconds(device)
    rates["sort"] = {rows: _sort_seconds(model, rows, device) for rows in shapes.rows}
    found = [rate for by_rows in rates["matrix"].values() for rate in by_rows.values()]
    rates["best_matrix"] = max(_square_matrix_rate(model, device), *found)
    return rates


def _capped(sizes: Sequence[int], most: int) -> list[int]:
    return sorted({min(size, most) for size in sizes})


def _linear_weights(modules) -> list[torch.Tensor]:
    return [module.weight for module in modules if isinstance(module, torch.nn.Linear)]


def _random(model, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=model.device, dtype=model.dtype)


def _rate(amount: float, call: Call, device: str) -> float:
    return amount / median_seconds(call, device)


def _copy_rate(model, elements: int, device: str) -> float:
    source = _random(model, elements)
    target = torch.empty_like(source)
    return _rate(2 * source.numel() * source.element_size(), lambda: target.copy_(source), device)


def _matrix_rates(
    model, weights: dict[str, list[torch.Tensor]], shapes: RateShapes, device: str
) -> dict[str, dict[int, float]]:
    language_rows = sorted({*shapes.rows, *_capped(shapes.lengths, MAX_MATRIX_ROWS)})
    vision_rows = _capped(shapes.patches, MAX_MATRIX_ROWS)
    return {
        "language": {rows: _matrix_rate(model, weights["language"], rows, device) for rows in language_rows},
        "vision": {rows: _matrix_rate(model, weights["vision"], rows, device) for rows in vision_rows},
    }


def _matrix_rate(model, weights: list[torch.Tensor], rows: int, device: str) -> float:
    inputs = {width: _random(model, rows, width) for width in {weight.shape[1] for weight in weights}}

    def multiply() -> None:
        with onednn_for_few_rows(model):  # as a step of decoding does
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    return _rate(sum(2 * rows * weight.numel() for weight in weights), multiply, device)


def _square_matrix_rate(model, device: str) -> float:
    square, product = _random(model, _SQUARE, _SQUARE), _random(model, _SQUARE, _SQUARE)
    return _rate(2 * _SQUARE**3, lambda: torch.mm(square, square, out=product), device)


def _attention_rates(model, shapes: RateShapes, device: str) -> dict[str, Any]:
    text, vision = model.config.text_config, model.config.vision_config
    heads, key_heads = text.num_attention_heads, text.num_key_value_heads
    vision_width = vision.hidden_size // vision.num_heads

    def rate(batch: int, heads: int, key_heads: int, length: int, width: int, is_causal: bool) -> float:
        query, key = _random(model, batch, heads, length, width), _random(model, batch, key_heads, length, width)
        key = key.repeat_interleave(heads // key_heads, dim=1)
        amount = 4 * batch * heads * width * length**2
        return _rate(amount, lambda: F.scaled_dot_product_attention(query, key, key, is_causal=is_causal), device)

    return {
        "language": {
            length: rate(1, heads, key_heads, length, text.hidden_size // heads, True)
            for length in _capped(shapes.lengths, MAX_ATTENTION_LENGTH)
        },
        "vision": {
            length: rate(1, vision.num_heads, vision.num_heads, length, vision_width, False)
            for length in _capped(shapes.patches, MAX_ATTENTION_LENGTH)
        },
        "windows": rate(
            _WINDOWS,
            vision.num_heads,
            vision.num_heads,
            (vision.window_size // vision.patch_size) ** 2,
            vision_width,
            False,
        ),
    }


def _elementwise_rates(model, shapes: RateShapes, device: str) -> dict[str, dict[int, float]]:
    def rate(rows: int, width: int) -> float:
        left, right = (_random(model, max(rows, -(-_MIN_ELEMENTS // width)), width) for _ in range(2))
        product = torch.empty_like(left)
        return _rate(3 * left.numel() * left.element_size(), lambda: torch.mul(left, right, out=product), device)

    text_width = model.config.text_config.intermediate_size
    vision_width = model.config.vision_config.intermediate_size
    return {
        "language": {rows: rate(rows, text_width) for rows in sorted({*shapes.rows, *shapes.lengths})},
        "vision": {rows: rate(rows, vision_width) for rows in shapes.patches},
    }


def _start_seconds(device: str) -> dict[str, float]:
    """Return the seconds of an operator beside its work, when it is called and when a CUDA graph replays it."""
    tiny = build_model("tiny", device).model.language_model
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def step() -> None:
        tiny(token)

    calls, replayed = count_operators(step)["calls"], 0.0
    if device != "cpu":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replayed = median_seconds(graph.replay, device, times=21) / calls
    return {"call": median_seconds(step, device, times=21) / calls, "replayed": replayed}


def _sort_seconds(model, rows: int, device: str) -> float:
    logits = _random(model, rows, model.config.text_config.vocab_size).float()
    return median_seconds(logits.sort, device)


def median_of_rates(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median, number by number, of the `measure_rates` of each process of a sweep."""
    found: dict[str, Any] = {}
    for key, first in measured[0].items():
        values = [rates[key] for rates in measured]
        found[key] = median_of_rates(values) if isinstance(first, dict) else statistics.median(values)
    return found
