"""Videos frame by frame: the frames that were asked for, damaged files, long files, and Qwen's sampling."""

from dataclasses import replace

import pytest
import torch
from chats import BOUNDS, EXAMPLE_VIDEO
from clips import shade, write_clip
from odd_files import cut
from PIL import Image

import avis.video
from avis.inputs import read_video
from avis.video import decode_frames, open_video, sample_frame_indices


def near(image: Image.Image, number: int) -> bool:
    """Whether the image is frame `number` of `write_clip`."""
    return max(abs(a - b) for a, b in zip(image.getpixel((20, 20)), shade(number), strict=True)) <= 6


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "h264"])
def test_sampled_frames_are_the_ones_asked_for(tmp_path, suffix):
    """Guards against: a seek that lands on the keyframe before or after, frames counted from another start, and files
    without times in them."""
    video = open_video(write_clip(tmp_path / f"a.{suffix}", 60, keys=7))
    assert len(video.times) == 60
    for indices in ([0, 59], [3, 3, 4, 40, 41, 42], [58], list(range(60))):
        assert [near(p, i) for p, i in zip(decode_frames(video, indices), indices, strict=True)] == [True] * len(
            indices
        )


def test_long_videos_are_not_decoded_whole(tmp_path, monkeypatch):
    """Guards against: hours of video decoded, or held in memory, for eight frames of it."""
    video = open_video(write_clip(tmp_path / "a.mkv", 100, rate=1, keys=50, repeat=360))
    assert len(video.times) == 36_000 and video.rate == 1
    indices, rate = sample_frame_indices(video, num_frames=8)
    assert indices[0] == 0 and indices[-1] == 35_999 and rate == pytest.approx(8 / 36_000)
    decoded = []
    whole = avis.video._decoded

    def counted(*args, **kwargs):
        for found in whole(*args, **kwargs):
            decoded.append(found[0])
            yield found

    monkeypatch.setattr(avis.video, "_decoded", counted)
    assert [near(p, i % 100) for p, i in zip(decode_frames(video, indices), indices, strict=True)] == [True] * 8
    assert len(decoded) <= 8 * 50


def test_frames_before_damage_are_kept(tmp_path):
    """Guards against: a video thrown away for its damaged end, frames of garbage, and the last good frame repeated as
    if the video stood still."""
    for garbage in (True, False):
        video = open_video(cut(write_clip(tmp_path / f"{garbage}.mkv", 60, keys=5), 0.6, garbage))
        shown = list(decode_frames(video, range(len(video.times))))
        assert 20 <= len(shown) < 60
        assert garbage or len(shown) == len(video.times), "the decoder held frames back"
        assert [near(p, i) for i, p in enumerate(shown[:20])] == [True] * 20
        assert {shown[-1].getpixel((20, 20))} == {shown[-1].getpixel((40, 50))}, "garbage"


def test_turned_videos_are_shown_upright(tmp_path):
    """Guards against: telephone videos seen lying on their side."""
    video = open_video(write_clip(tmp_path / "a.mp4", 2, size=(96, 32), rotation=90))
    assert next(decode_frames(video, [0])).size == (32, 96)


def test_sampling_is_qwens(tmp_path):
    """Guards against: other frames, other sizes or another rate than the package by which Qwen2.5-VL's results were
    made; other values, too, where its reader is there."""
    vision_process = pytest.importorskip("qwen_vl_utils.vision_process")
    for total, rate in ((2, 5), (3, 5), (9, 30), (48, 12), (500, 25), (5000, 29.97)):
        video = open_video(EXAMPLE_VIDEO)
        video = replace(video, times=tuple(range(total)), key_times=(0,), rate=rate)
        for request in ({}, {"fps": 0.3}, {"fps": 7.0}, {"fps": 1e9}, {"nframes": 2}, {"nframes": 5}):
            ours = {"fps": request.get("fps"), "num_frames": request.get("nframes")}
            try:
                count = vision_process.smart_nframes(request, total, rate)
            except ValueError:
                with pytest.raises(ValueError):
                    sample_frame_indices(video, **ours)
                continue
            indices, sampled = sample_frame_indices(video, **ours)
            assert len(indices) == count and sampled == pytest.approx(count / total * rate)
            expected = torch.linspace(0, total - 1, count).round().long()
            assert (torch.tensor(indices) - expected).abs().max() <= 1  # halves may be rounded otherwise in float32
    if not vision_process.is_decord_available():
        return
    for bounds in ((784, 50 * 784), BOUNDS, (100 * 784, 200 * 784)):
        request = {"video": str(EXAMPLE_VIDEO), "min_pixels": bounds[0], "max_pixels": bounds[1], "nframes": 6}
        expected, rate = vision_process.fetch_video(request, return_video_sample_fps=True)
        got, own_rate = read_video(EXAMPLE_VIDEO, bounds, num_frames=6)
        assert torch.equal(got.float(), expected) and own_rate == rate
