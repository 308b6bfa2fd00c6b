"""What to spend on a query, checked without torch, so that a wrong value is told at once.

Example::

    AvisSettings(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5)
"""

import math
from dataclasses import dataclass

from policy.prompts import profile_for

# Least and most of each whole number. 784 pixels are one visual token, 16384 tokens are Qwen2.5-VL's largest picture;
# the other upper bounds only catch a slip of the finger.
_WHOLE = {
    "num_rollouts": (1, 1024),
    "rollouts_at_once": (1, 1024),
    "max_new_tokens": (1, 2**20),
    "seed": (0, 2**64 - 1),
    "min_pixels": (784, 16384 * 784),
    "max_pixels": (784, 2**40),
    "nframes": (2, 100_000),
}
_OPTIONAL = ("kdv_ratio", "kdv_threshold", "rollouts_at_once", "min_pixels", "max_pixels", "fps", "nframes", "profile")
VOTES = ("majority", "confidence")


@dataclass(frozen=True)
class AvisSettings:
    """What to spend on a query. Values of a wrong type, out of range or contradictory raise ValueError with one line.

    Attributes:
        enable_kdv: prune visual tokens: by `kdv_ratio`, the fraction pruned (0.75 when neither is given), or by
            `kdv_threshold`, an angle in radians (adaptive). With a policy and neither given: adaptive at the policy's
            angle. kdv_pruner: "kdv" or "random".
        num_rollouts: K. 1 is greedy; more are sampled at `temperature` and `top_p`, then voted on. With a policy, which
            chooses K, it is ignored.
        early_stop: end as soon as no completion of the unfinished rollouts can change the winner.
        rollouts_at_once: so many side by side, the next ones only while the vote is undecided; None: all K. Fewer
            tokens, more latency; the same winner.
        vote: "majority", or "confidence": each vote weighs exp(mean log-probability of its tokens).
        profile: form of the answer that is asked for, a name in `policy.prompts.PROFILES`; None: by the model's name.
        thinking: ask for `<think>` reasoning before the answer, or for the answer alone.
        max_new_tokens: of each rollout.
        min_pixels, max_pixels: bounds of a picture, or of a video's frame, after resizing; None: the processor's own.
        fps, nframes: frames per second, or number of frames, taken from a video; at most one of them.
        seed: of sampling and of pruners that draw.
    """

    enable_kdv: bool = False
    kdv_ratio: float | None = None
    kdv_threshold: float | None = None
    kdv_pruner: str = "kdv"
    num_rollouts: int = 1
    early_stop: bool = True
    rollouts_at_once: int | None = None
    vote: str = "majority"
    profile: str | None = None
    thinking: bool = True
    max_new_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.9
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    seed: int = 0

    def __post_init__(self):
        self._check_types()
        if self.enable_kdv:
            self._check_kdv()
        elif (self.kdv_ratio, self.kdv_threshold, self.kdv_pruner) != (None, None, "kdv"):
            raise ValueError("kdv_ratio, kdv_threshold and kdv_pruner need enable_kdv")
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be between {least} and {most}, got {value}")
        if self.vote not in VOTES:
            raise ValueError(f"vote is {' or '.join(VOTES)}, got {self.vote[:100]!r}")
        if self.profile is not None:
            profile_for("", self.profile)
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature must be between 0.01 and 100, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}")
        if self.fps is not None and self.nframes is not None:
            raise ValueError("fps and nframes exclude each other")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive and finite, got {self.fps}")

    def _check_types(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in _OPTIONAL:
                continue
            if name in _WHOLE:
                kind, fits = "a whole number", type(value) is int
            elif name in ("enable_kdv", "early_stop", "thinking"):
                kind, fits = "true or false", type(value) is bool
            elif name in ("kdv_pruner", "vote", "profile"):
                kind, fits = "a name", type(value) is str
            else:
                kind, fits = "a number", type(value) in (int, float)
            if not fits:
                raise ValueError(f"{name} must be {kind}, got {value!r:.100}")

    def _check_kdv(self) -> None:
        """What `KdvSettings` of the fork checks; it is asked itself only where its import, seconds, is needed."""
        if self.kdv_ratio is not None and self.kdv_threshold is not None:
            raise ValueError("kdv_ratio (fixed pruning) and kdv_threshold (adaptive pruning) exclude each other")
        if self.kdv_ratio is not None and not 0 <= self.kdv_ratio <= 1:
            raise ValueError(f"kdv_ratio is the fraction of visual tokens pruned, in [0, 1], got {self.kdv_ratio}")
        if self.kdv_threshold is not None and not 0 < self.kdv_threshold < math.pi:
            raise ValueError(f"kdv_threshold is an angle in radians between 0 and pi, got {self.kdv_threshold}")
        if self.kdv_pruner != "kdv":
            from transformers.models.qwen2_5_vl.key_diversity import KdvSettings

            KdvSettings(self.kdv_ratio, self.kdv_threshold, self.kdv_pruner)
