"""Video files for tests, small and quick to write."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def shade(number: int) -> tuple[int, int, int]:
    """The colour of frame `number`: neighbours differ by more than a codec changes."""
    return (number * 37) % 256, (number * 101) % 256, (number * 11) % 256


def write_clip(
    path: Path,
    count: int,
    rate: float | Fraction = 12,
    size: tuple[int, int] = (64, 64),
    keys: int = 12,
    repeat: int = 1,
    rotation: int = 0,
) -> Path:
    """An H.264 clip of `count * repeat` one-coloured frames, see `shade`, with a keyframe every `keys`.

    Args:
        path: its suffix chooses the container.
        size: width and height in pixels, even.
        repeat: how often the same packets are written one after the other, which is much quicker than encoding.
        rotation: degrees, counterclockwise, by which a player has to turn the frames.
    """
    rate = Fraction(rate).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "g": str(keys), "bf": "0", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        packets = []
        for number in range(count):
            frame = np.full((size[1], size[0], 3), shade(number), np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        packets += stream.encode(None)
        # Muxing rescales a packet's times to its container's.
        times = [(packet.pts, packet.dts, packet.time_base) for packet in packets]
        step = times[1][0] - times[0][0] if count > 1 else 1
        for turn in range(repeat):
            for packet, (pts, dts, unit) in zip(packets, times, strict=True):
                packet.time_base = unit
                packet.pts, packet.dts = pts + turn * step * count, dts + turn * step * count
                container.mux(packet)
    return path
