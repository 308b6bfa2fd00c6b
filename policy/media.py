"""Pictures and videos from files or memory, as RGB pictures; no addresses, and no torch.

    picture = read_image("photo.jpg")
    clip = open_clip("clip.mp4")
    pictures = list(frames(clip, sample_indices(clip, fps=2.0)[0]))

Whatever is wrong with a file is told in one line. A file that is valid if odd is read: what can be shown is shown.
"""

import base64
import binascii
import errno
import io
import math
import os
import re
import stat
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_RATIO = 200  # of a picture's sides: Qwen2.5-VL's processors take none slimmer
WHITE = (255, 255, 255)
Picture: TypeAlias = str | Path | Image.Image | np.ndarray  # what `read_image` takes
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")
_URL = re.compile(r"[A-Za-z][\w+.-]+:/|data:")  # one slash: a path has lost the second by the time it is one
# Loading these runs another program on the file, or draws with the system's own calls.
_PROGRAMS = ("EPS", "WMF")
# FFmpeg takes playlists, which name other files and addresses, and even text for videos. These are the ones read here.
_CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,obu,ogg,rm,vob,webm,wtv"
)

# qwen-vl-utils's sampling of frames.
DEFAULT_FPS = 2.0
_MIN_FRAMES, _MAX_FRAMES, _FRAME_FACTOR = 4, 768, 2


def check_file(source: str | Path) -> Path:
    """The path of a regular, readable, non-empty file. Raises ValueError with one line for anything else."""
    if _URL.match(str(source)):
        raise ValueError(f"only files are read, not URLs: {str(source)[:200]}")
    path = Path(source)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except OSError as error:  # a loop of links, a name too long, a folder that is closed to us
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"cannot read {path}: Permission denied")
    if status.st_size == 0:
        raise ValueError(f"{path} is empty")
    return path


# -------------------------------------------------------------------------------------------------------- pictures


def read_image(source: Picture) -> Image.Image:
    """A picture from a file or from memory, turned as its EXIF says, RGB; transparency is laid on white.

    Of an animation the first frame. A picture more than 200 times as long as wide is laid on white as well, in the
    middle, just wide enough.

    Args:
        source: a path; a PIL picture; an array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, RGB with or without alpha, uint8
            or floats in [0, 1]; or, as a string, a data URI `data:image/png;base64,..`.

    Raises:
        ValueError: not a picture, or a URL, or it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and of damaged metadata, which are read all the same
        if isinstance(source, np.ndarray):
            picture = _from_array(source)
        elif not isinstance(source, Image.Image):
            picture = _opened(source)
        else:
            picture = source
        return _slim_on_white(_rgb(_turned(picture)))


def _opened(source: str | Path) -> Image.Image:
    name: str | Path
    file: Path | io.BytesIO
    if isinstance(source, str) and _DATA.match(source):
        name, file = "the data URI", io.BytesIO(_decoded_uri(source))
    elif isinstance(source, (str, Path)):
        name = file = check_file(source)
    else:
        raise ValueError(f"a picture is a path, a PIL picture, an array or a data URI, got {type(source).__name__}")
    try:
        picture = Image.open(file)
        if picture.format in _PROGRAMS:
            raise UnidentifiedImageError
        picture.load()
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {name} as a picture: not a format that is read here") from None
    except Exception as error:  # plug-ins fail in kinds of their own
        raise ValueError(f"cannot read {name} as a picture: {error}") from None
    return picture


def _decoded_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ValueError("cannot read the data URI as a picture: it is not base64") from None


def _from_array(array: np.ndarray) -> Image.Image:
    is_picture = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)
    if not is_picture or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"an array is a picture as (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats, got {array.shape} of "
            f"{array.dtype}"
        )
    if not array.size:
        raise ValueError("a picture without pixels")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):  # nor NaN
            raise ValueError(f"a picture of floats is in [0, 1], got {array.min():.4g} to {array.max():.4g}")
        array = (array * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def _turned(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF says nothing about the picture
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # convert() would clip at 255
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*WHITE, 255)), picture)
    return picture.convert("RGB")


def _slim_on_white(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    if not width or not height:
        raise ValueError("a picture without pixels")
    least = math.ceil(max(width, height) / MAX_RATIO)
    if min(width, height) >= least:
        return picture
    canvas = Image.new("RGB", (max(width, least), max(height, least)), WHITE)
    canvas.paste(picture, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return canvas


# ---------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True)
class Clip:
    """Where the frames of a video are; none of them is decoded yet.

    Attributes:
        path: the file; None for a list of pictures.
        times: of the frames that the file holds, ascending, in the stream's own unit; frame numbers when it has none.
        keys: the times from which decoding can start, ascending; empty when the stream has no times.
        rate: mean frames per second.
        pictures: the frames themselves, of a list.
    """

    path: Path | None
    times: tuple[int, ...]
    keys: tuple[int, ...]
    rate: float
    pictures: tuple[Picture, ...] = ()


def open_clip(source: str | Path | Clip | Sequence[Picture], rate: float | None = None) -> Clip:
    """Find the frames of a video file, without decoding, so that hours of video cost a reading of the file at most.

    Args:
        source: a file, or a list of pictures of one size, each as `read_image` takes it; or what an earlier call gave.
        rate: how many pictures of a list are a second (default 2); a file says so itself.

    Raises:
        ValueError: not a video, no video stream, or no frames; a rate that is no positive number, or of a file.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("a video without frames")
        rate = DEFAULT_FPS if rate is None else rate
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise ValueError(f"the fps of a list of frames is positive and finite, got {rate!r:.100}")
        return Clip(None, tuple(range(len(source))), (), float(rate), tuple(source))
    if not isinstance(source, (str, Path, Clip)):
        raise ValueError(f"a video is a path or a list of pictures, got {type(source).__name__}")
    if rate is not None:
        raise ValueError("the fps of a part is that of a list of frames; a file has its own")
    if isinstance(source, Clip):
        return source
    path = check_file(source)
    times: list[int | None] = []
    keys: list[int] = []
    with _container(path) as container:
        stream = container.streams.video[0]
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        unit = float(stream.time_base or 0)
    if not times:
        raise ValueError(f"cannot read {path} as a video: it has no frames")
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return Clip(path, tuple(range(len(times))), (), rate or DEFAULT_FPS)
    known.sort()
    if not rate and known[-1] > known[0]:
        rate = (len(known) - 1) / ((known[-1] - known[0]) * unit)
    return Clip(path, tuple(known), tuple(sorted(keys)), rate or DEFAULT_FPS)


def sample_indices(clip: Clip, fps: float | None = None, nframes: int | None = None) -> tuple[list[int], float]:
    """Which frames to show: spread evenly from the first to the last, as many as qwen-vl-utils takes.

    Args:
        clip: from `open_clip`.
        fps: frames per second (default 2), held between 4 and 768 frames and to what the clip has.
        nframes: instead, their number, brought to an even one.

    Returns:
        The ascending numbers of the frames, and how many of them make a second. A clip of one frame shows it twice,
        and so does a list of an odd number its last. Raises ValueError when `nframes` exceeds the frames there are.
    """
    total = max(len(clip.times), _FRAME_FACTOR)
    if clip.pictures:
        total += total % _FRAME_FACTOR
    if nframes is not None:
        count = round(nframes / _FRAME_FACTOR) * _FRAME_FACTOR
        if count > total:
            name = clip.path or "the list"
            raise ValueError(f"{name} has {len(clip.times)} frames, fewer than the {count} of nframes")
    else:
        wanted = total / clip.rate * (DEFAULT_FPS if fps is None else fps)
        count = math.floor(min(max(wanted, _MIN_FRAMES), _MAX_FRAMES, total) / _FRAME_FACTOR) * _FRAME_FACTOR
    indices = np.linspace(0, total - 1, count).round().astype(int).clip(max=len(clip.times) - 1)
    return indices.tolist(), count / total * clip.rate


def frames(clip: Clip, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Decode these frames alone, one by one, upright, as RGB pictures.

    A frame that cannot be decoded is replaced by the next one that can. Where none follows, the clip ends: fewer
    pictures come than were asked for.

    Args:
        clip: from `open_clip`.
        indices: ascending; one may come several times.

    Raises:
        ValueError: none can be decoded; the pictures of a list are of several sizes, or no pictures.
    """
    if clip.path is None:
        yield from _of_one_size(clip.pictures, indices)
        return
    with _container(clip.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = _decoded(container, stream, numbered=not clip.keys)
        time, frame, picture, any_shown = -math.inf, None, None, False
        for index in indices:
            wanted = clip.times[index]
            key = bisect_right(clip.keys, wanted) - 1
            if key >= 0 and clip.keys[key] > time:
                container.seek(clip.keys[key], stream=stream)
                decoded = _decoded(container, stream)
            while time < wanted:
                time, frame = next(decoded, (math.inf, None))
                picture = None
            if picture is None:
                if frame is None:
                    break
                picture = _slim_on_white(frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True))
            yield picture
            any_shown = True
        if not any_shown:
            raise ValueError(f"cannot read {clip.path} as a video: no frame can be decoded")


def _of_one_size(pictures: Sequence[Picture], indices: Sequence[int]) -> Iterator[Image.Image]:
    size = None
    for index in indices:
        picture = read_image(pictures[index])
        size = size or picture.size
        if picture.size != size:
            raise ValueError(f"the frames of a video have one size, got {size} and {picture.size}")
        yield picture


@contextmanager
def _container(path: Path):
    """The opened file, its frames' trouble told as ValueError."""
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
    """The stream's packets up to the end or to where the file is broken off."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def _decoded(container, stream, numbered: bool = False) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames from here on that can be decoded, with their times, or their numbers."""
    number = 0
    # None makes the decoder give what it holds back; where the file is broken off, no packet does.
    for packet in chain(_packets(container, stream), [None]):
        try:
            found = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue
        for frame in found:
            if not getattr(frame, "is_corrupt", False) and (numbered or frame.pts is not None):
                yield (number if numbered else frame.pts), frame
            number += 1
