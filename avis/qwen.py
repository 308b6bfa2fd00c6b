"""What is taken from qwen-vl-utils: its constants, its sizes and its numbers of frames. Imports torch, takes a second.

Videos are decoded by PyAV (`avis.video`), and no environment variable changes what is shown.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_variables(*names: str) -> Iterator[None]:
    """Take environment variables away while a module is imported that reads them."""
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


# The package reads numbers from these when it is imported; a text that is no number would end the program.
with _without_variables("MODEL_SEQ_LEN", "VIDEO_MAX_PIXELS", "FPS_MAX_FRAMES"):
    from qwen_vl_utils import smart_resize
    from qwen_vl_utils.vision_process import (
        FRAME_FACTOR,
        SPATIAL_MERGE_SIZE,
        VIDEO_MAX_TOKEN_NUM,
        calculate_video_frame_range,
        smart_nframes,
    )

# It warns of every rate above the video's own, which `smart_nframes` bounds.
logging.getLogger("qwen_vl_utils.vision_process").setLevel(logging.ERROR)

FACTOR = 14 * SPATIAL_MERGE_SIZE  # pixels on a side of one visual token
# Its `MODEL_SEQ_LEN`, as it is without the environment variable: another program may have imported it with one.
_SEQUENCE_TOKENS = 128_000

__all__ = ["FRAME_FACTOR", "calculate_video_frame_range", "resized", "smart_nframes", "video_max_pixels"]


def video_max_pixels(num_frames: int, min_pixels: int) -> float:
    """Return the most pixels of a frame: 768 tokens, and all pairs of frames 90% of the longest sequence.

    Args:
        num_frames: of the video that are shown.
        min_pixels: least pixels of a frame, which wins.
    """
    share = 0.9 * _SEQUENCE_TOKENS / num_frames * FRAME_FACTOR
    return max(min(VIDEO_MAX_TOKEN_NUM, share) * FACTOR**2, int(1.05 * min_pixels))


def resized(height: int, width: int, bounds: tuple[float, float] | None = None) -> list[int]:
    """Return the height and width that an image or frame is resized to.

    Args:
        height: its own, in pixels.
        width: its own, in pixels.
        bounds: least and most pixels; None: those of the package, 4 to 16384 tokens.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    least, most = bounds or (None, None)
    # The package makes a side 0 where a slim image has to shrink far.
    return [max(FACTOR, side) for side in smart_resize(height, width, FACTOR, least, most)]
