"""How much a query may spend, checked without torch, so that a wrong value is reported at once::

AvisConfig(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5)
"""

import math
from dataclasses import dataclass

from avis.prompts import answer_format_for

# Least and most of each whole number. 784 pixels are one visual token, 16384 tokens are Qwen2.5-VL's largest image;
# the other upper bounds only catch a slip of the finger.
_WHOLE = {
    "num_rollouts": (1, 1024),
    "rollout_batch_size": (1, 1024),
    "max_new_tokens": (1, 2**20),
    "seed": (0, 2**64 - 1),
    "min_pixels": (784, 16384 * 784),
    "max_pixels": (784, 2**40),
    "num_frames": (2, 100_000),
}
_OPTIONAL = (
    "kdv_ratio",
    "kdv_threshold",
    "rollout_batch_size",
    "answer_format",
    "min_pixels",
    "max_pixels",
    "fps",
    "num_frames",
)
_NAMES = ("pruner", "vote", "vote_stop", "answer_format")
VOTES = ("majority", "confidence")
VOTE_STOPS = ("decided", "off")


@dataclass(frozen=True)
class AvisConfig:
    """What to spend on a query.

    Attributes:
        enable_kdv: prune visual tokens before the language model.
        kdv_ratio: fraction of visual tokens pruned, in [0, 1]; 0.75 when neither this nor a threshold is given.
        kdv_threshold: adaptive pruning instead, an angle in radians. With a policy and neither given: the policy's.
        pruner: "kdv" or "random".
        num_rollouts: K. 1 is greedy; more are sampled, then voted on. Ignored with a policy, which chooses K.
        rollout_batch_size: rollouts decoded side by side, the next ones only while the vote is open; None: all K.
        vote: "majority", or "confidence": a vote weighs exp(mean log-probability of its tokens).
        vote_stop: "decided" ends decoding as soon as no unfinished rollout can change the winner; "off" never does.
        answer_format: name of the answer format asked for (`avis.prompts`); None: by the model's name.
        enable_thinking: ask for `<think>` reasoning before the answer, or for the answer alone.
        max_new_tokens: of each rollout.
        temperature: of sampling; not used for K = 1.
        top_p: of sampling.
        min_pixels: least pixels of an image or video frame after resizing; None: the processor's.
        max_pixels: most pixels of an image or video frame after resizing; None: the processor's.
        fps: frames per second taken from a video; excludes `num_frames`.
        num_frames: number of frames taken from a video.
        seed: of sampling and of pruners that draw.

    Raises:
        ValueError: a value of a wrong type, out of range, or contradicting another, in one line.
    """

    enable_kdv: bool = False
    kdv_ratio: float | None = None
    kdv_threshold: float | None = None
    pruner: str = "kdv"
    num_rollouts: int = 1
    rollout_batch_size: int | None = None
    vote: str = "majority"
    vote_stop: str = "decided"
    answer_format: str | None = None
    enable_thinking: bool = True
    max_new_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.9
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    seed: int = 0

    def __post_init__(self):
        self._check_types()
        if self.enable_kdv:
            self._check_kdv()
        elif (self.kdv_ratio, self.kdv_threshold, self.pruner) != (None, None, "kdv"):
            raise ValueError("kdv_ratio, kdv_threshold and pruner need enable_kdv")
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be between {least} and {most}, got {value}")
        for name, known in (("vote", VOTES), ("vote_stop", VOTE_STOPS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)[:100]!r}")
        if self.answer_format is not None:
            answer_format_for("", self.answer_format)
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature must be between 0.01 and 100, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}")
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("fps and num_frames exclude each other")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive and finite, got {self.fps}")

    def _check_types(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in _OPTIONAL:
                continue
            if name in _WHOLE:
                kind, fits = "a whole number", type(value) is int
            elif name in ("enable_kdv", "enable_thinking"):
                kind, fits = "true or false", type(value) is bool
            elif name in _NAMES:
                kind, fits = "a name", type(value) is str
            else:
                kind, fits = "a number", type(value) in (int, float)
            if not fits:
                raise ValueError(f"{name} must be {kind}, got {value!r:.100}")

    def _check_kdv(self) -> None:
        """Check what the fork's `KdvConfig` checks, which is asked itself only where its slow import is needed."""
        if self.kdv_ratio is not None and self.kdv_threshold is not None:
            raise ValueError("kdv_ratio (fixed pruning) and kdv_threshold (adaptive pruning) exclude each other")
        if self.kdv_ratio is not None and not 0 <= self.kdv_ratio <= 1:
            raise ValueError(f"kdv_ratio is the fraction of visual tokens pruned, in [0, 1], got {self.kdv_ratio}")
        if self.kdv_threshold is not None and not 0 < self.kdv_threshold < math.pi:
            raise ValueError(f"kdv_threshold is an angle in radians between 0 and pi, got {self.kdv_threshold}")
        if self.pruner != "kdv":
            from transformers.models.qwen2_5_vl.key_diversity import KdvConfig

            KdvConfig(self.kdv_ratio, self.kdv_threshold, self.pruner)
