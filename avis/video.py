"""Videos from files or lists of images, as RGB frames; no URLs, and no torch::

    video = open_video("clip.mp4")
    indices, fps = sample_frame_indices(video, fps=2.0)
    frames = list(decode_frames(video, indices))

Anything wrong with a file is reported in one line. A file that is valid but unusual is read.
"""

import errno
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avis.files import check_file
from avis.images import ImageInput, pad_slim_image, read_image

# FFmpeg takes playlists, which name other files and addresses, and even text for videos. These are the ones read here.
_CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,obu,ogg,rm,vob,webm,wtv"
)

# qwen-vl-utils's sampling of frames.
DEFAULT_FPS = 2.0
_MIN_FRAMES, _MAX_FRAMES, _FRAME_FACTOR = 4, 768, 2


@dataclass(frozen=True)
class Video:
    """Where the frames of a video are; none of them is decoded yet.

    Attributes:
        path: the file; None for a list of images.
        times: times of the frames in the file, ascending, in the stream's own unit; frame numbers when it has none.
        key_times: times from which decoding can start, ascending; empty when the stream has no times.
        rate: mean frames per second.
        images: the images of a list, in order; empty for a file.
    """

    path: Path | None
    times: tuple[int, ...]
    key_times: tuple[int, ...]
    rate: float
    images: tuple[ImageInput, ...] = ()


def open_video(source: str | Path | Video | Sequence[ImageInput], list_fps: float | None = None) -> Video:
    """Find the frames of a video without decoding them, so that hours of video cost one reading of the file at most.

    Args:
        source: a file, a list of images of one size, each as `read_image` takes it, or an opened video.
        list_fps: how many images of a list are a second (default 2); a file has its own times.

    Raises:
        ValueError: not a video, no video stream, no frames, or a rate that is not positive or is given for a file.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("a video without frames")
        rate = DEFAULT_FPS if list_fps is None else list_fps
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise ValueError(f"the fps of a list of frames must be positive and finite, got {rate!r:.100}")
        return Video(None, tuple(range(len(source))), (), float(rate), tuple(source))
    if not isinstance(source, (str, Path, Video)):
        raise ValueError(f"a video is a path or a list of images, got {type(source).__name__}")
    if list_fps is not None:
        raise ValueError("the fps of a part is that of a list of frames; a file has its own")
    if isinstance(source, Video):
        return source
    path = check_file(source)
    times: list[int | None] = []
    key_times: list[int] = []
    with _container(path) as container:
        stream = container.streams.video[0]
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    key_times.append(packet.pts)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        unit = float(stream.time_base or 0)
    if not times:
        raise ValueError(f"cannot read {path} as a video: it has no frames")
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return Video(path, tuple(range(len(times))), (), rate or DEFAULT_FPS)
    known.sort()
    if not rate and known[-1] > known[0]:
        rate = (len(known) - 1) / ((known[-1] - known[0]) * unit)
    return Video(path, tuple(known), tuple(sorted(key_times)), rate or DEFAULT_FPS)


def sample_frame_indices(
    video: Video, fps: float | None = None, num_frames: int | None = None
) -> tuple[list[int], float]:
    """Return which frames to show: spread evenly from the first to the last, as many as qwen-vl-utils takes.

    Args:
        video: from `open_video`.
        fps: frames per second (default 2); their number stays between 4 and 768, and within what the video has.
        num_frames: number of frames instead, rounded to an even one.

    Returns:
        The ascending numbers of the frames, and how many of them make a second. A video of one frame shows it twice,
        and a list of an odd number of images shows its last one twice.

    Raises:
        ValueError: `num_frames` exceeds the frames there are.
    """
    total = max(len(video.times), _FRAME_FACTOR)
    if video.images:
        total += total % _FRAME_FACTOR
    if num_frames is not None:
        count = round(num_frames / _FRAME_FACTOR) * _FRAME_FACTOR
        if count > total:
            name = video.path or "the list"
            raise ValueError(f"{name} has {len(video.times)} frames, fewer than the {count} of num_frames")
    else:
        wanted = total / video.rate * (DEFAULT_FPS if fps is None else fps)
        count = math.floor(min(max(wanted, _MIN_FRAMES), _MAX_FRAMES, total) / _FRAME_FACTOR) * _FRAME_FACTOR
    indices = np.linspace(0, total - 1, count).round().astype(int).clip(max=len(video.times) - 1)
    return indices.tolist(), count / total * video.rate


def decode_frames(video: Video, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Yield these frames alone, decoded one by one, upright, as RGB images.

    A frame that cannot be decoded is replaced by the next one that can. Where none follows, the video ends: fewer
    images are yielded than were asked for.

    Args:
        video: from `open_video`.
        indices: ascending; one may occur several times.

    Raises:
        ValueError: none can be decoded; the images of a list are of several sizes, or no images.
    """
    if video.path is None:
        yield from _of_one_size(video.images, indices)
        return
    with _container(video.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = _decoded(container, stream, numbered=not video.key_times)
        time, frame, image, any_shown = -math.inf, None, None, False
        for index in indices:
            wanted = video.times[index]
            key = bisect_right(video.key_times, wanted) - 1
            if key >= 0 and video.key_times[key] > time:
                container.seek(video.key_times[key], stream=stream)
                decoded = _decoded(container, stream)
            while time < wanted:
                time, frame = next(decoded, (math.inf, None))
                image = None
            if image is None:
                if frame is None:
                    break
                image = pad_slim_image(frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True))
            yield image
            any_shown = True
        if not any_shown:
            raise ValueError(f"cannot read {video.path} as a video: no frame can be decoded")


def _of_one_size(images: Sequence[ImageInput], indices: Sequence[int]) -> Iterator[Image.Image]:
    size = None
    for index in indices:
        image = read_image(images[index])
        size = size or image.size
        if image.size != size:
            raise ValueError(f"the frames of a video have one size, got {size} and {image.size}")
        yield image


@contextmanager
def _container(path: Path):
    """Open the file; what is wrong with it or its frames is raised as a ValueError of one line."""
    try:
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        # An absolute path, so that no name is taken for a protocol.
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                raise ValueError(f"cannot read {path} as a video: it has no video stream")
            yield container
    except av.error.FFmpegError as error:
        reason = "not a format that is read here" if error.errno == errno.EINVAL else error.strerror
        raise ValueError(f"cannot read {path} as a video: {reason}") from None


def _packets(container, stream) -> Iterator:
    """Yield the stream's packets up to the end, or to where the file is cut off."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def _decoded(container, stream, numbered: bool = False) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames from here on that can be decoded, with their times, or their numbers."""
    number = 0
    # None makes the decoder return its delayed frames; where the file is cut off, no packet does.
    for packet in chain(_packets(container, stream), [None]):
        try:
            found = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue
        for frame in found:
            if not getattr(frame, "is_corrupt", False) and (numbered or frame.pts is not None):
                yield (number if numbered else frame.pts), frame
            number += 1
