"""What a sweep measures, and the first line of its file: all that makes two measurements comparable::

sweep = Sweep(geometry="tiny", visual_tokens=[256], rho=[0.0, 0.75], rollouts=[1, 5])
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avis.evaluation.benchmark.geometry import TEXT_TOKENS, token_grid
from avis.provenance import versions

BUNDLED_MIX = {1: 0.82, 7: 0.18}  # of K, as the bundled policy chose it on the 1,000 items of the split `test`
FRAME_TOKENS = 256  # of each frame of the video whose memory is measured
_MAX_VIDEO_TOKENS = 65536


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        geometry: one of `GEOMETRIES`.
        visual_tokens: of an image, ascending.
        rho: fractions pruned, ascending.
        rollouts: K, ascending.
        new_tokens: of each rollout.
        rounds: how often every peer is measured.
        video_tokens: of the video whose memory is measured; 0: none.
        pairs: questions of the latency table; 0: none.
        k_mix: {K: share} of the table's AVIS-like setting.
        device: "cpu" or "cuda".
        seed: of weights, prompts and sampling.

    Raises:
        ValueError: a value out of range, in one line.
    """

    geometry: str = "mid"
    visual_tokens: list[int] = field(default_factory=lambda: [256, 1024, 4096])
    rho: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.75, 0.9])
    rollouts: list[int] = field(default_factory=lambda: [1, 3, 5, 7])
    new_tokens: int = 128
    rounds: int = 3
    video_tokens: int = 16384
    pairs: int = 0
    k_mix: dict[int, float] = field(default_factory=lambda: dict(BUNDLED_MIX))
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self):
        for visual_tokens in self.visual_tokens:
            token_grid(visual_tokens)
        for name, least in (("new_tokens", 2), ("rounds", 1), ("pairs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.video_tokens <= _MAX_VIDEO_TOKENS or self.video_tokens % FRAME_TOKENS:
            allowed = f"a multiple of {FRAME_TOKENS}, at most {_MAX_VIDEO_TOKENS}"
            raise ValueError(f"video_tokens must be {allowed}, got {self.video_tokens}")


def describe_run(sweep: Sweep, model) -> dict[str, Any]:
    """Return the first line of a sweep's file: all that makes two measurements comparable."""
    language = [*model.model.language_model.layers.parameters(), *model.model.language_model.norm.parameters()]
    sizes = {"vision": model.visual.parameters(), "language": [*language, *model.lm_head.parameters()]}
    weights = {part: tensor_bytes(values) for part, values in sizes.items()}
    text, vision = model.config.text_config, model.config.vision_config
    return {
        "kind": "config",
        "geometry": sweep.geometry,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": {"language": text.num_hidden_layers, "vision": vision.depth},
        "width": {"language": text.hidden_size, "vision": vision.hidden_size},
        "heads": {
            "language": text.num_attention_heads,
            "language_keys": text.num_key_value_heads,
            "vision": vision.num_heads,
        },
        "intermediate": {"language": text.intermediate_size, "vision": vision.intermediate_size},
        "vocabulary": text.vocab_size,
        "weights": weights | {"element": model.dtype.itemsize},
        "visual_tokens": sweep.visual_tokens,
        "rho": sweep.rho,
        "rollouts": sweep.rollouts,
        "new_tokens": sweep.new_tokens,
        "text_tokens": TEXT_TOKENS + 2,
        "video_tokens": sweep.video_tokens,
        "pairs": sweep.pairs,
        "k_mix": {str(k): share for k, share in sweep.k_mix.items()},
        "seed": sweep.seed,
        "device": sweep.device,
        "hardware": _hardware(sweep.device),
        "memory_bytes": None if sweep.device == "cpu" else torch.cuda.get_device_properties(0).total_memory,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "versions": versions(),
    }


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of some tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _hardware(device: str) -> str:
    """Return the name of what the model runs on."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else "unknown CPU"
