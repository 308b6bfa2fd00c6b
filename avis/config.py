"""How much a query may spend, checked without torch, so that a wrong value is reported at once::

AvisConfig(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5)
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from avis.prompts import answer_format_for

# Least and most of whole numbers. 784 pixels are one visual token, 16384 tokens are Qwen2.5-VL's largest image; the
# other upper bounds only catch a slip of the finger.
MIN_PIXELS_RANGE = (784, 16384 * 784)
MAX_PIXELS_RANGE = (784, 2**40)
NUM_FRAMES_RANGE = (2, 100_000)
_WHOLE = {
    "num_rollouts": (1, 1024),
    "rollout_batch_size": (1, 1024),
    "max_new_tokens": (1, 2**20),
    "seed": (0, 2**64 - 1),
    "min_pixels": MIN_PIXELS_RANGE,
    "max_pixels": MAX_PIXELS_RANGE,
    "num_frames": NUM_FRAMES_RANGE,
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


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number in a range as Python's own.

    Args:
        name: of the value, for the error.
        value: a whole number, NumPy's included.
        least: it can be.
        most: it can be.

    Raises:
        ValueError: anything else, a bool, a text and 2.0 included.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole:
        raise ValueError(f"{name} must be a whole number, got {brief(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {brief(value)}")
    return int(value)


def real_number(name: str, value: Any) -> float:
    """Return a number as Python's own.

    Args:
        name: of the value, for the error.
        value: a number, NumPy's included.

    Raises:
        ValueError: anything else, a bool, a text and an integer beyond all floats included.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_real else None
    except OverflowError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be a number, got {brief(value)}")
    return value if type(value) is int else number


def brief(value: Any) -> str:
    """Return a wrong value as one short line for an error; an array is written in several."""
    return " ".join(repr(value).split())[:100]


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
        """Refuse values of a wrong type; numbers of NumPy become Python's, so that a record of them is JSON."""
        for name, value in vars(self).copy().items():
            if value is None and name in _OPTIONAL:
                continue
            if name in _WHOLE:
                object.__setattr__(self, name, whole_number(name, value, *_WHOLE[name]))
            elif name in ("enable_kdv", "enable_thinking"):
                if type(value) is not bool:
                    raise ValueError(f"{name} must be true or false, got {brief(value)}")
            elif name in _NAMES:
                if type(value) is not str:
                    raise ValueError(f"{name} must be a name, got {brief(value)}")
            else:
                object.__setattr__(self, name, real_number(name, value))

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
