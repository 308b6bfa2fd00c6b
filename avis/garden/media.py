"""Encodes scenes as files, and shows them to a model as a user would::

Path("scene.mp4").write_bytes(encode_video(scene))
parts = chat_parts(item_for("dev", 14).scenes, folder)
"""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avis.files import write_atomically
from avis.garden.render import render, render_frames
from avis.garden.scenes import FILE_RATE, Scene, video_times


def file_times(seconds: float) -> np.ndarray:
    """Return the seconds at which the frames of a video's file are drawn: `FILE_RATE` a second, in ascending order.

    A reader that samples the file evenly from the first to the last frame, `scenes.RATE` a second, gets exactly the
    moments of `video_times`: the frames that it takes are moved there, by half a frame's time at most.
    """
    times = np.arange(round(seconds * FILE_RATE)) / FILE_RATE
    seen = video_times(seconds)
    times[np.linspace(0, len(times) - 1, len(seen)).round().astype(int)] = seen
    return times


def encode_image(scene: Scene) -> bytes:
    """Return an image as PNG."""
    file = io.BytesIO()
    # Images are noisy: the lowest level of compression is the fastest and packs best.
    render(scene).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_video(scene: Scene) -> bytes:
    """Return a video as H.264 in MP4, `FILE_RATE` frames a second, nearly without loss.

    The same scene gives the same bytes.
    """
    # The number of threads shows in the bytes; and the macroblock tree's sums depend on where in memory frames lie.
    options = {"crf": "10", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(FILE_RATE), options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for image in render_frames(scene, file_times(scene.seconds)):
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode())
    return buffer.getvalue()


def chat_parts(scenes: tuple[Scene, ...], folder: Path) -> list[dict]:
    """Return scenes as parts of a chat's turn: images as drawn, videos as files in `folder`, as a user's are."""
    parts: list[dict] = []
    for number, scene in enumerate(scenes):
        if scene.seconds:
            path = folder / f"{number}.mp4"
            write_atomically(path, encode_video(scene))
            parts.append({"type": "video", "video": str(path)})
        else:
            parts.append({"type": "image", "image": render(scene)})
    return parts
