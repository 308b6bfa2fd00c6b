"""An estimate on paper, never a measurement: GPUs for a million image questions an hour::

estimate_gpus("7b", H200, {"vanilla": (0.0, {1: 1.0})}, visual_tokens=1024, new_tokens=128)
"""

from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2_5_vl import flops

from avis.evaluation.benchmark.cost_model import cache_bytes_per_token
from avis.evaluation.benchmark.geometry import TEXT_TOKENS, build_config, build_model, kept_length, patch_grid

_ELEMENT = 2  # bytes of a bfloat16
_QUESTIONS = 1e6  # an hour


@dataclass(frozen=True)
class Machine:
    """What an estimate assumes of one GPU.

    Attributes:
        name: of the GPU, with what is assumed of it.
        flops: FLOPs a second that are reached.
        bandwidth: bytes a second that are reached.
        memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int


# The maker's figures (dense bfloat16), of which half the FLOPs and 70% of the bandwidth are assumed to be reached.
H200 = Machine(
    "H200, assumed to reach half of 989 TFLOP/s and 70% of 4.8 TB/s", 0.5 * 989e12, 0.7 * 4.8e12, 141 * 10**9
)


def estimate_gpus(
    geometry: str,
    machine: Machine,
    settings: dict[str, tuple[float, dict[int, float]]],
    visual_tokens: int,
    new_tokens: int,
) -> dict[str, Any]:
    """Estimate the GPUs that a million image questions an hour need.

    Decoding is batched over as many questions as memory has room for, whose rollouts share the reading of the weights.

    Args:
        geometry: of the model.
        machine: the GPU.
        settings: by name (rho, {K: share of the questions}).
        visual_tokens: of a question.
        new_tokens: of a rollout.

    Returns:
        "rows", one a setting, with the "assumptions".
    """
    config = build_config(geometry)
    weights = _ELEMENT * sum(weight.numel() for weight in build_model(geometry, "meta").parameters())
    rows = []
    for name, (rho, mix) in settings.items():
        row = _estimate_row(config, machine, weights, rho, mix, visual_tokens, new_tokens)
        rows.append({"setting": name} | row)
    return {
        "estimate": True,
        "assumptions": [
            f"{machine.name}; bfloat16; 90% of {machine.memory / 1e9:.0f} GB for weights and caches",
            f"a question: {visual_tokens} visual tokens of one image, {TEXT_TOKENS + 2} others, "
            f"{new_tokens} tokens a rollout",
            "full batches around the clock, no queueing, no network, no failures, no early stop of a vote",
        ],
        "geometry": geometry,
        "rows": rows,
    }


def _estimate_row(
    config, machine: Machine, weights: int, rho: float, mix: dict[int, float], visual_tokens: int, new_tokens: int
) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    cache = cache_bytes_per_token(text, _ELEMENT)
    length = kept_length(visual_tokens, rho)
    mean_k = sum(k * share for k, share in mix.items())
    question_cache = cache * (length + mean_k * new_tokens)
    batch = max(1, int((0.9 * machine.memory - weights) // question_cache))
    compute = mean_k * flops.decode_flops(text, length, new_tokens) / machine.flops
    traffic = (new_tokens - 1) * (weights / batch + cache * (length + mean_k * new_tokens / 2)) / machine.bandwidth
    seconds = {
        "vision": flops.vision_encoder_flops(vision, [patch_grid(vision, visual_tokens)]) / machine.flops,
        "prefill": flops.prefill_flops(text, length) / machine.flops,
        "decode": max(compute, traffic),
    }
    gpus = _QUESTIONS * sum(seconds.values()) / 3600
    return {"rho": rho, "mean_k": mean_k, "batch": batch, "seconds": seconds, "gpus": gpus}
