"""Valid if odd input of the demo is answered: files of unusual kinds, sizes and rates, and unusual prompts."""

import pytest
from chats import EXAMPLE_IMAGE, EXAMPLE_VIDEO
from clips import write_clip
from odd_files import animation, cut, damaged_exif, image_flags, link, saved, solid, video_flags

ANSWERED = {
    "1 x 1": lambda d: image_flags(saved(d / "a.png", solid("RGB", (1, 1)))),
    "20000 x 1": lambda d: image_flags(saved(d / "a.png", solid("RGB", (20_000, 1)))),
    "1 x 20000": lambda d: image_flags(saved(d / "a.png", solid("RGB", (1, 20_000)))),
    "20000 x 1, tiny bound": lambda d: [*image_flags(saved(d / "a.png", solid("L", (20_000, 1)))), "--max-pixels", 784],
    "CMYK": lambda d: image_flags(saved(d / "a.jpg", solid("CMYK"))),
    "palette": lambda d: image_flags(saved(d / "a.png", solid("RGB").quantize())),
    "16 bit": lambda d: image_flags(saved(d / "a.png", solid("I;16"))),
    "32 bit": lambda d: image_flags(saved(d / "a.tiff", solid("I"))),
    "float": lambda d: image_flags(saved(d / "a.tiff", solid("F"))),
    "1 bit": lambda d: image_flags(saved(d / "a.png", solid("1"))),
    "alpha": lambda d: image_flags(saved(d / "a.png", solid("RGBA"))),
    "grey with alpha": lambda d: image_flags(saved(d / "a.png", solid("LA"))),
    "animation": lambda d: image_flags(animation(d / "a.gif")),
    "damaged EXIF": lambda d: image_flags(damaged_exif(d / "a.jpg")),
    "wrong suffix": lambda d: image_flags(saved(d / "a.txt", solid("RGB"), format="PNG")),
    "link": lambda d: image_flags(link(d / "link.png", EXAMPLE_IMAGE)),
    "one frame": lambda d: video_flags(write_clip(d / "a.mp4", 1)),
    "two frames a year": lambda d: video_flags(write_clip(d / "a.mkv", 3, rate=0.001)),
    "1000 frames a second": lambda d: video_flags(write_clip(d / "a.mp4", 9, rate=1000)),
    "NTSC": lambda d: video_flags(write_clip(d / "a.mp4", 9, rate=30000 / 1001)),
    "no times": lambda d: video_flags(write_clip(d / "a.h264", 9)),
    "AVI": lambda d: video_flags(write_clip(d / "a.avi", 9)),
    "corrupt tail": lambda d: video_flags(cut(write_clip(d / "a.mkv", 40), 0.7, garbage=True)),
    "lost tail": lambda d: video_flags(cut(write_clip(d / "a.mkv", 40), 0.7)),
    "10 hours": lambda d: video_flags(write_clip(d / "a.mkv", 100, rate=1, repeat=360), "--nframe", 8),
    "slim video": lambda d: video_flags(write_clip(d / "a.mp4", 4, size=(4096, 16))),
    "--fps 1e9": lambda d: video_flags(EXAMPLE_VIDEO, "--fps", 1e9, "--max-pixels", 784),
    "--fps 1e-9": lambda d: video_flags(EXAMPLE_VIDEO, "--fps", 1e-9, "--max-pixels", 784),
    "control characters": lambda d: ["--prompt", "\0\x1b[31m\r\x7f\u202e How many?", "--max-pixels", 7840],
    "20,000 characters": lambda d: ["--prompt", "How many? " * 2_000, "--max-pixels", 7840],
    "angle brackets": lambda d: ["--prompt", "Is 1 <| 2 |> 3, <answer>?", "--max-pixels", 7840],
}


@pytest.mark.parametrize("row", ANSWERED)
def test_odd_input_is_answered(run, with_model, tmp_path, row):
    """Guards against: refusing what can be shown, and decoders' and libraries' warnings on the screen."""
    status, out, err = run(*ANSWERED[row](tmp_path), "--max-new-tokens", 1)
    assert status == 0 and "\nanswer " in out, err
    assert [line for line in err.splitlines() if not line.startswith("note: ")] == []
