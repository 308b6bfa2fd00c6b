"""Keys of an image or video in a chat: the size that it is shown in, and the frames that are taken.

Both are those of qwen-vl-utils for the same keys.
"""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from chats import BOUNDS, EXAMPLE_IMAGE, EXAMPLE_VIDEO, ROOT, chat, draw_image, image_part, one_line, video_part
from PIL import Image
from qwen_vl_utils import vision_process
from test_video_files import shown, write

from avis.config import AvisConfig
from avis.inputs import prepare_inputs, read_video
from avis.pipeline import AvisPipeline
from avis.qwen import resized, video_max_pixels
from avis.video import Video, decode_frames, open_video, sample_frame_indices

TOKEN = 784


def inputs_of(bundled, *parts: dict, **config):
    return prepare_inputs(bundled[1], chat(*parts), AvisConfig(**config))


def sides(grids: torch.Tensor) -> list[list[int]]:
    """Return (height, width) in pixels of each item."""
    return (grids[:, 1:] * 14).tolist()


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "keys", [{"max_pixels": 50 * TOKEN}, {"min_pixels": 400 * TOKEN}, {"max_pixels": TOKEN}], ids=str
)
@pytest.mark.parametrize(
    "part, kind", [(image_part(), "image"), (video_part() | {"nframes": 2}, "video")], ids=["image", "video"]
)
def test_bounds_of_a_part_are_those_of_the_configuration(bundled, part, kind, keys):
    """Guards against a key that is ignored, and another way of resizing for it."""
    own, configured = inputs_of(bundled, part | keys), inputs_of(bundled, part, **keys)
    assert (own[f"{kind}_grid_thw"][0, 1:].prod() < 4 * 252) == ("max_pixels" in keys)
    assert own.keys() == configured.keys() and all(torch.equal(own[name], configured[name]) for name in own)


@pytest.mark.parametrize(
    "keys",
    [{"max_pixels": 30 * TOKEN}, {"min_pixels": 500 * TOKEN}, {"min_pixels": 9 * TOKEN, "max_pixels": 9 * TOKEN}],
    ids=str,
)
def test_sizes_are_qwens(bundled, keys):
    least, most = keys.get("min_pixels", BOUNDS[0]), keys.get("max_pixels", BOUNDS[1])
    images = [draw_image(*size) for size in ((640, 480), (100, 999), (30, 20))]
    grids = inputs_of(bundled, *(image_part(image) | keys for image in images)).image_grid_thw
    due = [vision_process.smart_resize(image.height, image.width, 28, least, most) for image in images]
    assert sides(grids) == [[max(28, side) for side in size] for size in due]


def test_every_part_has_its_own_keys(bundled):
    """Guards against the keys of one image used for all, in the size or in the prompt."""
    _, processor = bundled
    parts = [
        image_part() | {"max_pixels": 40 * TOKEN},
        video_part() | {"nframes": 2},
        image_part(),
        video_part() | {"fps": 1.0},
    ]
    parts.append(image_part() | {"resized_height": 84, "resized_width": 140})
    inputs = inputs_of(bundled, *parts, max_pixels=90 * TOKEN)
    sizes = [int(grid.prod()) // 4 for grid in inputs.image_grid_thw]
    assert sizes[0] <= 40 < sizes[1] <= 90 and sizes[2] == 15
    assert inputs.video_grid_thw[:, 0].tolist() == [1, 3]
    assert inputs.second_per_grid_ts.tolist() == pytest.approx([7.0, 7 / 3])
    alone = [inputs_of(bundled, part, max_pixels=90 * TOKEN) for part in parts]
    for name in ("pixel_values", "pixel_values_videos"):
        assert torch.equal(inputs[name], torch.cat([one[name] for one in alone if name in one]))
    text = processor.tokenizer.decode(inputs.input_ids[0])
    see = "<|vision_start|>" + "<|{}_pad|>" * 1 + "<|vision_end|>"
    frames = [int(grid.prod()) // 4 for grid in inputs.video_grid_thw]
    order = [("image", sizes[0]), ("video", frames[0]), ("image", sizes[1]), ("video", frames[1]), ("image", sizes[2])]
    assert "".join(see.format(kind).replace(f"<|{kind}_pad|>", f"<|{kind}_pad|>" * n) for kind, n in order) in text


@pytest.mark.parametrize("config", [{}, {"max_pixels": 100 * TOKEN}, {"min_pixels": 400 * TOKEN}], ids=str)
def test_keys_of_a_part_win(bundled, config):
    """Guards against a part's bound that is cut by the configuration's, or refused beside it."""
    for part, name in ((image_part(), "image_grid_thw"), (video_part() | {"nframes": 2}, "video_grid_thw")):
        tokens = (
            int(
                inputs_of(bundled, part | {"min_pixels": 200 * TOKEN, "max_pixels": 220 * TOKEN}, **config)[name].prod()
            )
            // 4
        )
        assert 200 <= tokens <= 220
        assert int(inputs_of(bundled, part | {"max_pixels": 20 * TOKEN}, **config)[name].prod()) // 4 <= 20
        assert int(inputs_of(bundled, part | {"min_pixels": 600 * TOKEN}, **config)[name].prod()) // 4 >= 600
    for keys, other in (
        ({"nframes": 6}, {"fps": 1.0}),
        ({"fps": 1.0}, {"num_frames": 10}),
        ({"nframes": 6}, {"num_frames": 4}),
    ):
        own = inputs_of(bundled, video_part() | keys, **other)
        assert torch.equal(own.pixel_values_videos, inputs_of(bundled, video_part() | keys).pixel_values_videos)


@pytest.mark.parametrize("height, width", [(84, 140), (100, 101), (1, 1), (14, 2800)])
def test_resized_images_are_qwens(bundled, height, width):
    """Guards against a size that is bounded by the model's own pixels, or takes the sides for each other."""
    keys = {"resized_height": height, "resized_width": width}
    inputs = inputs_of(bundled, image_part() | keys, max_pixels=10 * TOKEN)
    due = vision_process.fetch_image({"image": str(EXAMPLE_IMAGE)} | keys)
    assert sides(inputs.image_grid_thw) == [[due.height, due.width]]
    plain = bundled[1].image_processor(images=due, do_resize=False, return_tensors="pt")
    assert torch.equal(inputs.pixel_values, plain.pixel_values)


def test_sizes_beyond_the_ratio_are_refused(bundled):
    keys = {"resized_height": 28, "resized_width": 28 * 201}
    for part in (image_part(), video_part()):
        with pytest.raises(ValueError, match="resized_height 28 and resized_width 5628: .* 200") as error:
            inputs_of(bundled, part | keys)
        one_line(error)


def test_slim_images_keep_a_side():
    """Guards against a side of 0 pixels, which qwen-vl-utils gives a slim frame that has to shrink far."""
    assert vision_process.smart_resize(56, 11200, 28, TOKEN, 64 * TOKEN)[0] == 0, "the guard is not needed any more"
    assert resized(56, 11200, (TOKEN, 64 * TOKEN))[0] == 28
    frames, _ = read_video([Image.new("RGB", (11200, 56))] * 2, (TOKEN, 64 * TOKEN))
    assert frames.shape[2] == 28


# ------------------------------------------------------------------------------------------------------------- frames


REQUESTS = [
    {"nframes": 6},
    {"nframes": 5},
    {"fps": 1.0},
    {"fps": 7},
    {"fps": 100.0},
    {"video_start": 2.0},
    {"video_end": 3.5},
    {"video_start": 1.3, "video_end": 4.9, "nframes": 4},
    {"video_start": 5, "video_end": 100, "fps": 4.0},
    {"video_start": 0, "video_end": 0.2},
    {"resized_height": 60, "resized_width": 90, "nframes": 2},
    {"max_pixels": 30 * TOKEN, "min_pixels": 20 * TOKEN},
]


@pytest.mark.skipif(not vision_process.is_decord_available(), reason="qwen-vl-utils has no reader here")
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_videos_are_qwens(bundled, request_):
    """Guards against other frames, another size or another rate than qwen-vl-utils gives for the same keys."""
    part = video_part(str(EXAMPLE_VIDEO)) | request_
    bounds = {"min_pixels": BOUNDS[0], "max_pixels": BOUNDS[1]}
    due, rate = vision_process.fetch_video(
        part if "resized_height" in part else bounds | part, return_video_sample_fps=True
    )
    inputs = inputs_of(bundled, part)
    assert inputs.video_grid_thw.tolist() == [[len(due) // 2, due.shape[2] // 14, due.shape[3] // 14]]
    assert inputs.second_per_grid_ts.tolist() == pytest.approx([2 / rate])
    plain = bundled[1].video_processor(
        videos=[due.to(torch.uint8)], do_resize=False, do_sample_frames=False, return_tensors="pt"
    )
    assert torch.equal(inputs.pixel_values_videos, plain.pixel_values_videos)


@pytest.mark.parametrize("total, rate", [(84, 12), (100, 29.97), (7, 2.0), (1000, 30)])
def test_sections_are_qwens(total, rate):
    """The frames between two seconds, at any place of a video."""
    video = Video(EXAMPLE_VIDEO, tuple(range(total)), (0,), rate)
    length = total / rate
    for start in (None, 0, 0.1, 0.33, length / 2, length - 1 / rate, length, 2 * length):
        for end in (None, 0.05, 0.4, length / 2, length * 0.9, length, 2 * length):
            ours = {"video_start": start, "video_end": end}
            try:
                first, last, count = vision_process.calculate_video_frame_range(ours, total, rate)
            except ValueError:
                with pytest.raises(ValueError, match="no two of its frames") as error:
                    sample_frame_indices(video, **ours)
                one_line(error)
                continue
            wanted = vision_process.smart_nframes({}, count, rate)
            indices, sampled = sample_frame_indices(video, **ours)
            assert (indices[0], indices[-1], len(indices)) == (first, last, wanted)
            assert sampled == pytest.approx(wanted / count * rate)


def test_sections_of_a_variable_rate_are_seconds(tmp_path):
    """Guards against frames counted by the mean rate: 1 s at 30 fps, then 1 fps for 9 s."""
    times = [*range(30), *range(30, 300, 30)]
    path = write(tmp_path / "a.mkv", times=times, count=len(times), options={"preset": "ultrafast", "bf": "0"})
    seconds = [times[number] / 30 for number in shown(path, video_start=4.5, video_end=8.2)]
    assert seconds[0] == 4 and seconds[-1] == 8 and len(seconds) == 4  # the frames on screen at these seconds
    assert [times[number] / 30 for number in shown(path, video_end=0.5, num_frames=4)] == pytest.approx(
        [0, 1 / 6, 1 / 3, 0.5], abs=0.04
    )
    _, rate = sample_frame_indices(open_video(path), video_start=3, video_end=9, num_frames=6)
    assert rate == pytest.approx(6 / 7, rel=0.05)  # six of seven frames, one a second
    for start, end in ((20, None), (4.1, 4.9), (9.5, 30)):
        with pytest.raises(ValueError, match="lasts .* s: no two of its frames") as error:
            sample_frame_indices(open_video(path), video_start=start, video_end=end)
        one_line(error)


def test_lists_of_frames_have_the_same_keys(bundled):
    """Guards against keys that hold for files alone."""
    images = [Image.new("RGB", (56, 56), (8 * n, 0, 0)) for n in range(20)]

    def numbers(**keys) -> tuple[list[int], float]:
        inputs = inputs_of(bundled, {"type": "video", "video": images} | keys)
        values = inputs.pixel_values_videos.reshape(inputs.video_grid_thw[0, 0], -1, 3, 2, 196)[:, 0, 0, :, 0]
        red = (values * 0.26862954 + 0.48145466) * 255 / 8
        return red.flatten().round().int().tolist(), float(inputs.second_per_grid_ts[0])

    assert numbers() == (list(range(20)), 1.0)
    assert numbers(fps=10) == ([0, 6, 13, 19], 1.0)  # of the list: two seconds
    assert numbers(fps=10, nframes=2) == ([0, 19], 2.0)
    assert numbers(video_start=2.0, video_end=4.5) == ([4, 5, 6, 7, 8, 9], 1.0)
    assert numbers(video_start=2.0, video_end=5.0) == ([4, 5, 6, 7, 8, 9, 10, 10], 1.0)  # an odd number of images
    with pytest.raises(ValueError, match="the list has 20 frames, fewer than the 30 asked for") as error:
        numbers(nframes=30)
    one_line(error)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"nframes": 1000}, "example.mp4 has 84 frames, fewer than the 1000 asked for"),
        ({"nframes": 8, "video_start": 6.8}, "frames between video_start and video_end, fewer than the 8 asked for"),
        ({"video_start": 7.5}, "example.mp4 lasts 7 s"),
        ({"video_start": 1.0, "video_end": 1.01}, "no two of its frames"),
    ],
    ids=str,
)
def test_frames_that_are_not_there_are_refused(bundled, keys, words):
    with pytest.raises(ValueError, match=words) as error:
        inputs_of(bundled, video_part() | keys)
    one_line(error)


def test_fps_and_num_frames_exclude_each_other():
    """Guards against the package's assertion, and one of the two ignored."""
    with pytest.raises(ValueError, match="fps and num_frames exclude each other"):
        sample_frame_indices(open_video(EXAMPLE_VIDEO), fps=1.0, num_frames=4)


def test_opened_videos_have_keys_too(bundled):
    """What the command line passes on."""
    part = {"type": "video", "video": open_video(EXAMPLE_VIDEO), "video_end": 2.0, "fps": 3.0}
    other = part | {"video": EXAMPLE_VIDEO}
    assert torch.equal(inputs_of(bundled, part).pixel_values_videos, inputs_of(bundled, other).pixel_values_videos)


def test_pipeline_honours_and_refuses_keys(bundled):
    """The whole way, in Python."""
    pipeline = AvisPipeline(*bundled)
    output = pipeline(chat(image_part() | {"max_pixels": 40 * TOKEN}, video_part() | {"nframes": 2}), max_new_tokens=1)
    assert output.items[0].total <= 40 and output.items[1].total == 72
    batch = [chat(image_part()), chat(image_part())]
    for chats, words in (
        (chat(image_part() | {"detail": 1}), "unknown key 'detail'"),
        (batch, "one chat"),
        ([batch[0]], "one chat"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            pipeline(chats, max_new_tokens=1)
        one_line(error)


# ------------------------------------------------------------------------------------------------------- environment


PROGRAM = """
import hashlib, sys
from avis.inputs import read_video
from avis.video import open_video, sample_frame_indices
frames, rate = read_video({path!r}, (4 * 784, 10**9), fps=12.0)
print(hashlib.sha256(frames.numpy().tobytes()).hexdigest(), rate, sample_frame_indices(open_video({path!r}))[0])
"""
VARIABLES = (
    *("MODEL_SEQ_LEN", "VIDEO_MAX_PIXELS", "FPS_MAX_FRAMES"),
    *("FORCE_QWENVL_VIDEO_READER", "TORCHCODEC_NUM_THREADS"),
)


def test_environment_changes_nothing():
    """Guards against results, and an import, that depend on variables which qwen-vl-utils reads as numbers."""
    frames, rate = read_video(str(EXAMPLE_VIDEO), (4 * TOKEN, 10**9), fps=12.0)
    indices = sample_frame_indices(open_video(EXAMPLE_VIDEO))[0]
    due = f"{hashlib.sha256(frames.numpy().tobytes()).hexdigest()} {rate} {indices}\n"
    environment = os.environ | dict.fromkeys(VARIABLES, "junk")
    program = PROGRAM.format(path=str(EXAMPLE_VIDEO))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, due), done.stderr[-2000:]


def test_a_package_imported_with_variables_changes_nothing(monkeypatch):
    """Guards against another program's import of the package, which has read the variable before."""
    frames = [Image.new("RGB", (560, 560))] * 2
    due = read_video(frames, (TOKEN, 10**9))[0].shape
    monkeypatch.setattr(vision_process, "MODEL_SEQ_LEN", 100)
    assert read_video(frames, (TOKEN, 10**9))[0].shape == due == (2, 3, 560, 560)


def test_long_videos_have_smaller_frames():
    """The package's limits: 768 tokens, and all pairs of frames together 90% of 128,000 tokens."""
    assert video_max_pixels(8, TOKEN) == 768 * TOKEN
    assert video_max_pixels(700, TOKEN) == pytest.approx(0.9 * 128_000 / 350 * TOKEN)
    assert video_max_pixels(700, 500 * TOKEN) == 525 * TOKEN


def test_rates_above_the_videos_own_are_quiet(capfd):
    """Guards against the package's warning on stderr for what is taken."""
    assert len(sample_frame_indices(open_video(EXAMPLE_VIDEO), fps=500.0)[0]) == 84
    assert capfd.readouterr() == ("", "")


def test_a_key_changes_no_other_frame():
    """A section shows the frames that the whole video has at these places."""
    video = open_video(EXAMPLE_VIDEO)
    indices, _ = sample_frame_indices(video, num_frames=4, video_start=2.0, video_end=4.0)
    assert indices == np.linspace(24, 48, 4).round().astype(int).tolist()
    whole = list(decode_frames(video, range(84)))
    assert all(
        np.array_equal(frame, whole[index]) for frame, index in zip(decode_frames(video, indices), indices, strict=True)
    )
