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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from PIL import Image

from avis.files import check_file
from avis.images import ImageInput, pad_slim_image, read_image

# FFmpeg takes playlists, which name other files and addresses, and even text for videos. These are the ones read here.
_CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,obu,ogg,rm,vob,webm,wtv"
)

# Containers that hold the time of every frame. In the others FFmpeg guesses, and guesses otherwise after a seek: their
# frames are counted from the start.
_TIMED_CONTAINERS = {"mov", "matroska", "flv", "mpegts", "asf", "ogg", "ivf", "mxf", "gif"}
# A header's rate is believed when the times of the frames agree with it this well.
_RATE_TOLERANCE = 0.01
# How many key frames further back a seek may have to begin before the file is decoded from its start.
_MAX_SEEK_MARGIN = 8
_NO_TIME = -math.inf  # of a frame whose time is not known

_DEFAULT_RATE = 2.0  # of a list of images, as in qwen-vl-utils, and of a file that does not say


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
        rate = _DEFAULT_RATE if list_fps is None else list_fps
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise ValueError(f"the fps of a list of frames must be positive and finite, got {rate!r:.100}")
        return Video(None, tuple(range(len(source))), (), float(rate), tuple(source))
    if not isinstance(source, (str, Path, Video)):
        raise ValueError(f"a video is a path or a list of images, got {type(source).__name__}")
    if list_fps is not None:
        raise ValueError("the fps of a part is that of a list of frames; a file has its own")
    return source if isinstance(source, Video) else _open_file(check_file(source))


def _open_file(path: Path) -> Video:
    times: list[int | None] = []
    decoding_times: list[int] = []
    key_times: list[int] = []
    with _container(path) as (container, stream):
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                if packet.dts is not None:
                    decoding_times.append(packet.dts)
                if packet.is_keyframe and packet.pts is not None:
                    key_times.append(packet.pts)
        is_timed = not _TIMED_CONTAINERS.isdisjoint(container.format.name.split(","))
        header_rate = stream.average_rate or stream.guessed_rate
        unit = stream.time_base
    if not times:
        raise ValueError(f"cannot read {path} as a video: it has no frames")
    known = sorted(time for time in times if time is not None)
    if len(known) < len(times) or not is_timed:
        return Video(path, tuple(range(len(times))), (), _rate(sorted(decoding_times), unit, header_rate))
    return Video(path, tuple(known), tuple(sorted(key_times)), _rate(known, unit, header_rate))


def _rate(times: list[int], unit: Fraction | None, header_rate: Fraction | None) -> float:
    """Return the mean frames per second by the frames' times; a header may say anything.

    A header that agrees with the times is taken: times are rounded to the stream's unit, the header's rate is not.
    """
    if len(times) < 2 or times[-1] <= times[0] or not unit:
        return float(header_rate or _DEFAULT_RATE)
    rate = (len(times) - 1) / ((times[-1] - times[0]) * unit)
    if header_rate and abs(header_rate - rate) <= _RATE_TOLERANCE * rate:
        return float(header_rate)
    return float(rate)


def sample_frame_indices(
    video: Video,
    fps: float | None = None,
    num_frames: int | None = None,
    video_start: float | None = None,
    video_end: float | None = None,
) -> tuple[list[int], float]:
    """Return which frames to show: spread evenly in time, as many as qwen-vl-utils takes. Imports torch.

    At a constant rate these are qwen-vl-utils's frames. At a variable rate it takes frames evenly spaced by number;
    here they are evenly spaced in seconds, each the frame on screen at its second, so that a frame may occur twice.

    Args:
        video: from `open_video`.
        fps: frames per second (default 2); their number stays between 4 and 768, and within what the video has.
        num_frames: number of frames instead, rounded to an even one.
        video_start: seconds from the first frame at which to begin; None: at the first one.
        video_end: seconds from the first frame at which to end; None or later than the last frame: there.

    Returns:
        The ascending numbers of the frames, and how many of them make a second. A video of one frame shows it twice,
        and a list of an odd number of images shows its last one twice.

    Raises:
        ValueError: both `fps` and `num_frames`, more frames than there are, or no two between start and end.
    """
    if fps is not None and num_frames is not None:
        raise ValueError("fps and num_frames exclude each other")
    from avis.qwen import FRAME_FACTOR, smart_nframes  # torch, which opening a file need not wait for

    is_constant = _has_constant_rate(video.times)
    first, last, rate = _section(video, is_constant, video_start, video_end)
    total = max(last - first + 1, FRAME_FACTOR)
    if video.images:
        total += total % FRAME_FACTOR
    request = {"nframes": num_frames} if num_frames is not None else {} if fps is None else {"fps": fps}
    try:
        count = smart_nframes(request, total, rate)
    except ValueError:
        between = "" if (video_start, video_end) == (None, None) else " between video_start and video_end"
        name = video.path or "the list"
        raise ValueError(
            f"{name} has {last - first + 1} frames{between}, fewer than the {num_frames} asked for"
        ) from None
    if is_constant:
        indices = np.linspace(first, first + total - 1, count).round().astype(int).clip(max=last)
    else:
        seconds = np.linspace(video.times[first], video.times[last], count)
        indices = np.searchsorted(video.times, seconds, side="right") - 1
    return indices.tolist(), count / total * rate


def _section(
    video: Video, is_constant: bool, video_start: float | None, video_end: float | None
) -> tuple[int, int, float]:
    """Return the numbers of the first and the last frame from start to end, and their mean rate."""
    last = len(video.times) - 1
    if (video_start, video_end) == (None, None):
        return 0, last, video.rate
    name = video.path or "the list"
    if is_constant:
        from avis.qwen import calculate_video_frame_range

        try:
            request = {"video_start": video_start, "video_end": video_end}
            return *calculate_video_frame_range(request, last + 1, video.rate)[:2], video.rate
        except ValueError:
            length = (last + 1) / video.rate
    else:
        # A frame is on screen until the next one.
        length = last / video.rate
        unit = length / (video.times[-1] - video.times[0])
        seconds = (np.asarray(video.times) - video.times[0]) * unit
        start, end = video_start or 0.0, length if video_end is None else min(video_end, length)
        first, final = (int(np.searchsorted(seconds, second, side="right")) - 1 for second in (start, end))
        if start < end and first < final:
            return first, final, (final - first) / float(seconds[final] - seconds[first])
    raise ValueError(f"{name} lasts {length:.4g} s: no two of its frames are between video_start and video_end")


def _has_constant_rate(times: Sequence[int]) -> bool:
    """Return whether no frame is more than a frame's time away from where a constant rate would have it."""
    even = np.linspace(times[0], times[-1], len(times))
    interval = (times[-1] - times[0]) / max(len(times) - 1, 1)
    return bool(np.abs(np.asarray(times) - even).max() <= interval)


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
    with _FrameReader(video) as reader:
        frame, image = None, None
        for index in indices:
            found = reader.frame_at(video.times[index])
            if found is None:
                break
            if found is not frame:
                frame, image = found, _upright(found, reader.pixel_aspect)
            yield image
    if frame is None:
        raise ValueError(f"cannot read {video.path} as a video: no frame can be decoded")


class _FrameReader:
    """Decode the frames at ascending times of a file, skipping from key frame to key frame.

    A seek is not trusted: several containers seek by decoding time or by bytes, and land behind the frame that was
    wanted. The first frame after a seek shows where it landed; when that is too late, seeks begin further back from
    then on, and at last the file is decoded from its start. So it is when frames after a seek have other times than
    they had when the file was opened.

    Attributes:
        pixel_aspect: width of a pixel over its height.
    """

    def __init__(self, video: Video):
        self._video = video
        self._times = frozenset(video.times)
        self._margin = 0  # how many key frames further back a seek begins
        self._stack = ExitStack()
        self._time: float = -math.inf
        self._frame: av.VideoFrame | None = None

    def __enter__(self) -> "_FrameReader":
        self._start()
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def frame_at(self, wanted: int) -> av.VideoFrame | None:
        """Return the first frame that can be decoded at this time or later; None when there is none."""
        self._approach(wanted)
        while self._time < wanted:
            self._advance()
            if self._has_sought and self._frame is not None and self._time not in self._times:
                self._margin = len(self._video.key_times)
                self._start()
        return self._frame

    def _advance(self) -> None:
        self._time, self._frame = next(self._decoded, (math.inf, None))

    def _start(self) -> None:
        """Open the file anew, to decode it from its start."""
        self._stack.close()
        assert self._video.path is not None
        self._container, self._stream = self._stack.enter_context(_container(self._video.path))
        self._stream.thread_type = "AUTO"
        self._decoded = _decoded(self._container, self._stream, numbered=not self._video.key_times)
        self._time, self._frame = -math.inf, None
        self._has_sought = False

    def _approach(self, wanted: int) -> None:
        """Skip to a key frame before the wanted time, when that is further than decoding has come."""
        has_moved = False
        while True:
            key = bisect_right(self._video.key_times, wanted) - 1 - self._margin
            if key < 0 or not has_moved and self._video.key_times[key] <= self._time:
                break
            self._container.seek(self._video.key_times[key], stream=self._stream)
            self._decoded = _decoded(self._container, self._stream)
            self._advance()
            self._has_sought = has_moved = True
            if self._time <= wanted and self._time in self._times:
                return
            # A margin beyond all key frames is the file's start, for this frame and all that follow.
            is_near = self._margin < _MAX_SEEK_MARGIN
            self._margin = max(1, 2 * self._margin) if is_near else len(self._video.key_times)
        if has_moved:
            self._start()


def _upright(frame: av.VideoFrame, pixel_aspect: Fraction) -> Image.Image:
    """Return a frame as it is to be shown: pixels made square, then turned and mirrored by its display matrix.

    The cases are those of FFmpeg's own player, which reads the angle from the matrix and mirrors by its signs.
    """
    image = frame.to_image()
    if pixel_aspect > 1:
        image = image.resize((round(image.width * pixel_aspect), image.height), Image.Resampling.BICUBIC)
    elif 0 < pixel_aspect < 1:
        image = image.resize((image.width, round(image.height / pixel_aspect)), Image.Resampling.BICUBIC)
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]  # keyed by type
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        angle = round(math.degrees(math.atan2(_unit(b, d), _unit(a, c)))) % 360
        if abs(angle - 90) < 1:
            image = image.transpose(Image.Transpose.TRANSPOSE if c > 0 else Image.Transpose.ROTATE_270)
        elif abs(angle - 180) < 1:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if a < 0 else image
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if d < 0 else image
        elif abs(angle - 270) < 1:
            image = image.transpose(Image.Transpose.TRANSVERSE if c < 0 else Image.Transpose.ROTATE_90)
        elif angle:
            image = image.rotate(-angle, expand=True)
        elif d < 0:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return pad_slim_image(image)


def _unit(part: int, other: int) -> float:
    """Return a matrix entry over the length of its column; 0 for a column of zeros."""
    return part / (math.hypot(part, other) or 1)


def _of_one_size(images: Sequence[ImageInput], indices: Sequence[int]) -> Iterator[Image.Image]:
    size = None
    for index in indices:
        image = read_image(images[index])
        size = size or image.size
        if image.size != size:
            raise ValueError(f"the frames of a video have one size, got {size} and {image.size}")
        yield image


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the file and its first video stream that is no attached picture, as of a cover.

    Raises:
        ValueError: for what is wrong with the file or its frames, in one line.
    """
    try:
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        # An absolute path, so that no name is taken for a protocol.
        with av.open(str(path.absolute()), options=options) as container:
            streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not streams:
                raise ValueError(f"cannot read {path} as a video: it has no video stream")
            yield container, streams[0]
    except av.error.FFmpegError as error:
        reason = "not a format that is read here" if error.errno == errno.EINVAL else error.strerror
        raise ValueError(f"cannot read {path} as a video: {reason}") from None


def _packets(container, stream) -> Iterator:
    """Yield the stream's packets up to the end, or to where the file is cut off."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def _decoded(container, stream, numbered: bool = False) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield the frames from here on that can be decoded, with their times, or their numbers."""
    number = 0
    # None makes the decoder return its delayed frames; where the file is cut off, no packet does.
    for packet in chain(_packets(container, stream), [None]):
        try:
            found = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue
        for frame in found:
            if not getattr(frame, "is_corrupt", False):
                yield (number if numbered else _NO_TIME if frame.pts is None else frame.pts), frame
            number += 1
