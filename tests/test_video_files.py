"""Videos of many containers and codecs: the frames that were asked for, at the times they have, the right way up.

Every frame shows its number as ten black or white squares, which codecs leave readable. What is read by seeking is
compared with decoding everything.
"""

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from PIL import Image

from avis.video import decode_frames, open_video, sample_frame_indices

SQUARE, BITS = 16, 10
SIZE = (BITS * SQUARE, 3 * SQUARE)


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An image that shows a number, the lowest bit at the left; its top row of squares is white, its bottom black."""
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    image[:SQUARE] = 255
    for bit in range(BITS):
        if number >> bit & 1:
            image[SQUARE : 2 * SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = 255
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))


def number_of(image: Image.Image) -> int:
    """The number that an image shows."""
    row = np.asarray(image.convert("L").resize(SIZE, Image.Resampling.NEAREST))[SQUARE + SQUARE // 2]
    return sum(1 << bit for bit in range(BITS) if row[bit * SQUARE + SQUARE // 2] > 128)


def write(
    path: Path,
    codec: str = "libx264",
    times: list[int] | None = None,
    unit: Fraction = Fraction(1, 30),
    count: int = 150,
    rate: int = 30,
    container: str | None = None,
    size: tuple[int, int] = SIZE,
    options: dict[str, str] | None = None,
    has_sound: bool = False,
    gop: int = 30,
    change=lambda stream: None,
) -> Path:
    """A video whose frame i shows i, at `times[i]` units (default: i).

    Args:
        change: is given the stream before the first frame.
    """
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.time_base = unit
        stream.gop_size = gop
        change(stream)
        sound = file.add_stream("mp2" if container in ("mpeg", "vob") else "aac", rate=48000) if has_sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index, size), format="rgb24")
            frame.pts, frame.time_base = (index if times is None else times[index]), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            add_silence(file, sound, count / rate)
    return path


def add_silence(file, sound, seconds: float) -> None:
    silence = av.AudioFrame(format="fltp" if sound.codec.name == "aac" else "s16", layout="stereo", samples=1152)
    silence.sample_rate = 48000
    for plane in silence.planes:
        plane.update(bytes(plane.buffer_size))
    for index in range(int(48000 * seconds / 1152)):
        silence.pts = index * 1152
        file.mux(sound.encode(silence))
    file.mux(sound.encode(None))


def remux(source: Path, path: Path, container: str | None = None, options: dict[str, str] | None = None) -> Path:
    """The same packets in another container, as `ffmpeg -c copy` writes them."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=container, options=options or {}) as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        filtered = None
        if path.suffix == ".avi":  # its H.264 has start codes, where MP4 has lengths
            filtered = BitStreamFilterContext("h264_mp4toannexb", read.streams.video[0])
        for packet in read.demux():
            is_video = packet.stream.type == "video"
            if packet.dts is not None:
                for one in filtered.filter(packet) if filtered and is_video else [packet]:
                    one.stream = streams[packet.stream.index]
                    written.mux(one)
    return path


def all_numbers(path: Path) -> list[int]:
    """The slow reference: every frame of the file, decoded from its start."""
    with av.open(str(path)) as file:
        stream = next(one for one in file.streams.video if not one.disposition & Disposition.attached_pic)
        return [number_of(frame.to_image()) for frame in file.decode(stream)]


def shown(path: Path, **sampling) -> list[int]:
    video = open_video(path)
    return [number_of(image) for image in decode_frames(video, sample_frame_indices(video, **sampling)[0])]


HEVC = {"preset": "ultrafast", "x265-params": "log-level=none"}
B_FRAMES = {"preset": "ultrafast", "bf": "3", "sc_threshold": "0"}
FILES = {
    "mp4": dict(name="a.mp4", options=B_FRAMES),
    "mp4 with sound": dict(name="a.mp4", options=B_FRAMES, has_sound=True),
    "mp4 of one group": dict(name="a.mp4", options=B_FRAMES, gop=1000),
    "mp4 of key frames": dict(name="a.mp4", options={"preset": "ultrafast", "bf": "0"}, gop=1),
    "mp4 with open groups": dict(name="a.mp4", options=B_FRAMES | {"x264-params": "open-gop=1:keyint=30"}),
    "mp4 without B-frames": dict(name="a.mp4", options={"preset": "ultrafast", "bf": "0"}),
    "mkv": dict(name="a.mkv", options=B_FRAMES),
    "mov of HEVC": dict(
        name="a.mov", codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}
    ),
    "mkv of HEVC": dict(
        name="a.mkv", codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}
    ),
    "mov of ProRes": dict(name="a.mov", codec="prores_ks"),
    "webm of VP9": dict(name="a.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "webm of VP8": dict(name="a.webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
    "mkv of AV1": dict(name="a.mkv", codec="libsvtav1", options={"preset": "8", "crf": "20"}, count=60),
    "mpeg-ts of MPEG-2": dict(name="a.ts", codec="mpeg2video", options={"bf": "2", "b:v": "2M"}, gop=12),
    "mpeg-ps of MPEG-2": dict(
        name="a.mpg", codec="mpeg2video", options={"bf": "2", "b:v": "2M"}, gop=12, container="mpeg"
    ),
    "vob of MPEG-2": dict(
        name="a.vob", codec="mpeg2video", options={"bf": "2", "b:v": "2M"}, gop=12, container="vob", has_sound=True
    ),
    "avi of MPEG-4": dict(name="a.avi", codec="mpeg4", options={"b:v": "2M"}),
    "avi of Motion JPEG": dict(name="a.avi", codec="mjpeg", options={"b:v": "4M"}),
    "flv": dict(name="a.flv", options=B_FRAMES),
    "mxf of MPEG-2": dict(
        name="a.mxf", codec="mpeg2video", options={"b:v": "2M"}, gop=12, rate=25, unit=Fraction(1, 25)
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_asked_frames_are_shown(tmp_path, kind):
    """Guards against: a seek that is trusted. MPEG-TS and MPEG-PS seek by decoding time, so that of a video with
    B-frames the shown seconds were 1 1 1 1 3 3 3 3 .. instead of 0 0 1 1 2 2 .."""
    given = dict(FILES[kind])
    path = write(tmp_path / given.pop("name"), **given)
    compare(path)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.flv", "a.avi", "a.mov"])
@pytest.mark.parametrize("has_sound", [False, True], ids=["silent", "sound"])
def test_asked_frames_are_shown_after_copying(tmp_path, name, has_sound):
    """The same for `ffmpeg -i in.mp4 -c copy out.ts`; an AVI of H.264 with B-frames has no times at all."""
    source = write(tmp_path / "in.mp4", options=B_FRAMES, count=300, has_sound=has_sound)
    compare(remux(source, tmp_path / name))


def test_fragmented_mp4(tmp_path):
    source = write(tmp_path / "in.mp4", options=B_FRAMES)
    compare(remux(source, tmp_path / "a.mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}))


def compare(path: Path) -> None:
    """Whatever is sampled is what decoding everything gives at these places."""
    every = all_numbers(path)
    assert every == sorted(every)
    video = open_video(path)
    assert len(video.times) == len(every)
    for indices in (
        sample_frame_indices(video)[0],
        sample_frame_indices(video, num_frames=6)[0],
        list(range(len(every))),
        [len(every) - 1],
        [1, 2, len(every) // 2, len(every) // 2, len(every) - 2],
    ):
        found = [number_of(image) for image in decode_frames(video, indices)]
        assert found == [every[index] for index in indices]


def test_bundled_video_as_transport_stream(tmp_path):
    """Guards against: "no frame can be decoded" although all 84 decode, since the only seek landed at the end."""
    path = remux(Path(__file__).parents[1] / "example.mp4", tmp_path / "a.ts")
    video = open_video(path)
    indices, rate = sample_frame_indices(video)
    assert len(video.times) == 84 and len(list(decode_frames(video, indices))) == len(indices) == 14
    assert rate == pytest.approx(2.0, rel=0.01)


def test_seconds_of_a_copied_stream(tmp_path):
    """The report's own case: 10 s, B-frames, a key frame every 30."""
    source = write(tmp_path / "in.mp4", options=B_FRAMES, count=300)
    seconds = [number // 30 for number in shown(remux(source, tmp_path / "out.ts"))]
    assert seconds == [number // 2 for number in range(20)]


def test_edit_list_is_obeyed(tmp_path):
    """Guards against: frames that an edit list cuts off counted, sampled, or shown."""
    source = write(tmp_path / "in.mp4", options=B_FRAMES, count=120)
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.pts -= packet.stream.time_base.denominator // packet.stream.time_base.numerator  # a second
                packet.dts -= packet.stream.time_base.denominator // packet.stream.time_base.numerator
                packet.stream = stream
                written.mux(packet)
    compare(path)


# ------------------------------------------------------------------------------------------------------------- streams


def cover_stream(file):
    """A stream for the picture of a cover, and that picture."""
    stream = file.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
    image.pts = 0
    return stream, image


def metadata_first(path: Path) -> None:
    """Put the metadata of an MP4, which hold its cover, in front of its tracks, as some programs write them."""
    data = path.read_bytes()

    def boxes(start: int, end: int) -> dict[bytes, tuple[int, int]]:
        found = {}
        while start < end:
            length = int.from_bytes(data[start : start + 4], "big")
            found[data[start + 4 : start + 8]] = (start, start + length)
            start += length
        return found

    start, end = boxes(0, len(data))[b"moov"]
    inside = boxes(start + 8, end)
    head, metadata = (data[slice(*inside[name])] for name in (b"mvhd", b"udta"))
    rest = b"".join(data[slice(*place)] for name, place in inside.items() if name not in (b"mvhd", b"udta"))
    moved = data[start : start + 8] + head + metadata + rest
    assert len(moved) == end - start, "the box has two tracks of one name"
    path.write_bytes(data[:start] + moved + data[end:])


@pytest.mark.parametrize("is_first", [False, True])
def test_cover_is_no_video(tmp_path, is_first):
    """Guards against: the attached picture of a cover, which is a video stream and may be the first."""
    source = write(tmp_path / "in.mp4", options=B_FRAMES, count=60)
    path = tmp_path / "covered.mp4"
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        cover, image = cover_stream(written)
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
        written.mux(cover.encode(image))
        written.mux(cover.encode(None))
    if is_first:
        metadata_first(path)
    with av.open(str(path)) as file:
        attached = [bool(one.disposition & Disposition.attached_pic) for one in file.streams.video]
    assert attached == ([True, False] if is_first else [False, True])
    compare(path)


def test_sound_with_a_cover_has_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as file:
        sound = file.add_stream("aac", rate=48000)
        cover, image = cover_stream(file)
        add_silence(file, sound, 1.0)
        file.mux(cover.encode(image))
        file.mux(cover.encode(None))
    with av.open(str(path)) as file:
        assert file.streams.video, "the test's file has no cover"
    with pytest.raises(ValueError, match="no video stream"):
        open_video(path)


# --------------------------------------------------------------------------------------------------------------- times


def test_rate_comes_from_times(tmp_path):
    """Guards against: a header that says 30 while 75 frames last 10 seconds, of which then 4 were shown."""
    times = [index * 4 for index in range(75)]  # of 1/30 s
    path = write(tmp_path / "a.webm", "libvpx-vp9", times, count=75, options={"deadline": "realtime", "cpu-used": "8"})
    video = open_video(path)
    assert video.rate == pytest.approx(7.5, rel=0.02)
    assert len(sample_frame_indices(video)[0]) == 20


def test_raw_dv_has_its_rate(tmp_path):
    """Guards against: 60000 frames a second, which raw DV says."""
    path = write(tmp_path / "a.dv", "dvvideo", count=50, rate=25, unit=Fraction(1, 25), size=(720, 576), gop=1)
    assert open_video(path).rate == pytest.approx(25, rel=0.02)
    assert len(sample_frame_indices(open_video(path))[0]) == 4


def test_h264_in_avi_has_its_rate(tmp_path):
    """Guards against: twice the rate, which H.264 in AVI says."""
    source = write(tmp_path / "in.mp4", options=B_FRAMES, count=150)
    video = open_video(remux(source, tmp_path / "a.avi"))
    assert video.rate == pytest.approx(30, rel=0.05)


def test_variable_rate_is_sampled_by_time(tmp_path):
    """Guards against: frames evenly spaced by number where the rate varies: 1 s at 30 fps, then 1 fps for 9 s."""
    times = [*range(30), *range(30, 300, 30)]
    path = write(tmp_path / "a.mkv", times=times, count=len(times), options={"preset": "ultrafast", "bf": "0"})
    video = open_video(path)
    numbers = shown(path)
    assert numbers == sorted(numbers)
    seconds = [times[number] / 30 for number in numbers]
    due = np.linspace(0, times[-1] / 30, len(numbers))
    assert all(0 <= wanted - second <= 1.001 for second, wanted in zip(seconds, due, strict=True))
    assert max(after - before for before, after in pairwise(seconds)) <= 1.001
    assert len(numbers) == 18 or len(numbers) == 20
    assert video.rate == pytest.approx((len(times) - 1) / (times[-1] / 30), rel=0.02)


def test_constant_rates_are_sampled_as_qwen_does(tmp_path):
    """Guards against: other frames than qwen-vl-utils's where times are rounded to milliseconds, as in Matroska."""
    for name in ("a.mp4", "a.mkv"):
        path = write(tmp_path / name, count=100, rate=30, options={"preset": "ultrafast", "bf": "0"})
        indices, rate = sample_frame_indices(open_video(path))
        assert indices == np.linspace(0, 99, 6).round().astype(int).tolist(), json.dumps(indices)
        assert rate == pytest.approx(1.8)


# --------------------------------------------------------------------------------------------------------------- shape


TURNS = {
    "as it is": ((1, 0, 0, 1), lambda image: image),
    "a quarter left": ((0, -1, 1, 0), lambda image: image.transpose(Image.Transpose.ROTATE_90)),
    "a quarter right": ((0, 1, -1, 0), lambda image: image.transpose(Image.Transpose.ROTATE_270)),
    "half": ((-1, 0, 0, -1), lambda image: image.transpose(Image.Transpose.ROTATE_180)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "upside down": ((1, 0, 0, -1), lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
    "along the diagonal": ((0, 1, 1, 0), lambda image: image.transpose(Image.Transpose.TRANSPOSE)),
    "along the other diagonal": ((0, -1, -1, 0), lambda image: image.transpose(Image.Transpose.TRANSVERSE)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrix_is_applied(tmp_path, turn):
    """Guards against: a mirrored video shown unmirrored, whose left and right are then wrong.

    A matrix (a, b; c, d) sends the pixel (x, y) to (a x + c y, b x + d y), with y pointing down.
    """
    (a, b, c, d), expected = TURNS[turn]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    path = write(tmp_path / "a.mov", count=8, change=lambda stream: stream.set_display_matrix(matrix))
    image = next(decode_frames(open_video(path), [5]))
    upright = expected(Image.fromarray(numbered(5)))
    assert image.size == upright.size
    difference = np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean()
    assert difference < 12, f"{turn}: {difference}"


@pytest.mark.parametrize("aspect, size", [(Fraction(2), (320, 48)), (Fraction(1, 2), (160, 96))])
def test_pixels_are_made_square(tmp_path, aspect, size):
    """Guards against: an anamorphic video shown squeezed."""

    def change(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / "a.mkv", count=8, change=change)
    assert next(decode_frames(open_video(path), [0])).size == size
