"""Draws the bundled example image and video: `python -m avis.garden.example`."""

import sys
from dataclasses import replace
from pathlib import Path

from avis.cli import ArgumentParser, run_command
from avis.files import write_atomically
from avis.garden.media import encode_video
from avis.garden.placement import place
from avis.garden.render import render
from avis.garden.scenes import LEVELS, Scene, rng_for
from avis.garden.tasks.hops import with_hops
from avis.garden.tasks.videos import as_video, place_for_video

# Kind and wear of each animal.
IMAGE_ANIMALS = [
    ("rabbit", "glasses"),
    ("cat", "hat"),
    ("rabbit", "glasses"),
    ("bear", "scarf"),
    ("duck", "nothing"),
    ("rabbit", "hat"),
]
VIDEO_ANIMALS = [("rabbit", "glasses"), ("cat", "hat"), ("rabbit", "scarf"), ("bear", "glasses")]
HOPS = (2, 0, 1, 3)  # of each animal of the video


def image_scene(candidate: int = 0) -> Scene:
    """Return the scene of `example.jpg`.

    It is the first candidate about which the bundled model answers "How many wooden rabbits are wearing glasses?"
    rightly in every mode, with at least four of five sampling seeds where it samples. How the model does on scenes at
    large is what `avis.evaluation.run` measures.
    """
    return place(rng_for("train", 77, candidate), LEVELS[0], 392, 504, IMAGE_ANIMALS)


def video_scene(candidate: int = 0) -> Scene:
    """Return the scene of `example.mp4`: seven seconds in which three of four animals hop.

    It is the first candidate about which the model answers the image's question rightly (one), by the same measure.
    """
    rng = rng_for("train", 78, candidate)
    scene = as_video(place_for_video(rng, LEVELS[0], 252, 224, VIDEO_ANIMALS), 7.0)
    hops = dict(zip(VIDEO_ANIMALS, HOPS, strict=True))
    animals = [with_hops(rng, LEVELS[0], scene, a, hops[a.kind, a.wears]) for a in scene.animals]
    return replace(scene, animals=tuple(animals))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for a folder that cannot be written."""
    parser = ArgumentParser(prog="python -m avis.garden.example", description="Draw example.jpg and example.mp4.")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write them to (default: %(default)s)")
    out = parser.parse_args(argv).out

    def command() -> None:
        out.mkdir(parents=True, exist_ok=True)
        render(image_scene()).save(out / "example.jpg", quality=92)
        write_atomically(out / "example.mp4", encode_video(video_scene()))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
