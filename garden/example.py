"""Draws the bundled example picture and clip, and fresh scenes like the picture.

    python -m garden.example
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av

from garden.questions import MAX_COUNT, Item, count_item_of
from garden.render import frames, render
from garden.scenes import Scene, place, rng_for

QUESTION = "How many wooden rabbits are wearing glasses?"
PICTURE = (
    ("rabbit", "glasses"),
    ("bear", "scarf"),
    ("rabbit", "nothing"),
    ("cat", "glasses"),
    ("rabbit", "glasses"),
    ("duck", "hat"),
)
CLIP = (("rabbit", "glasses"), ("cat", "hat"), ("rabbit", "scarf"), ("bear", "glasses"))
WIDTH, HEIGHT, CELL = 384, 512, 125.0


def example_scene() -> Scene:
    """The scene of `example.jpg`.

    It was picked: of candidates 0 to 156, the first that the bundled model answers rightly in every mode with five of
    five sampling seeds. How it does on scenes that nobody picked is measured on `like_example`.
    """
    return place(rng_for("train", 77, 156), WIDTH, HEIGHT, list(PICTURE), CELL)


def clip_scene() -> Scene:
    """The scene of `example.mp4`."""
    return place(rng_for("train", 78, 0), 280, 224, list(CLIP), cell=100.0)


def like_example(split: str, index: int) -> Item:
    """A fresh scene of the example's size with four to eight animals, and the example's question about it."""
    rng = rng_for(split, 79, index)
    answer, total = int(rng.integers(0, MAX_COUNT + 1)), int(rng.integers(4, 9))
    return count_item_of(rng, WIDTH, HEIGHT, "rabbit", "glasses", answer, total, CELL)


def write_clip(scene: Scene, path: Path, seconds: float = 4.0, rate: int = 12) -> None:
    """Encode a clip of the scene as H.264, without loss that one could see."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(rate), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for picture in frames(scene, int(seconds * rate), rate):
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw example.jpg and example.mp4.")
    parser.add_argument("--out", type=Path, default=Path("."))
    out = parser.parse_args().out
    render(example_scene()).save(out / "example.jpg", quality=92)
    write_clip(clip_scene(), out / "example.mp4")


if __name__ == "__main__":
    main()
