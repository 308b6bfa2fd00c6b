"""Files that are damaged, hostile or merely odd, for tests of what reads them; and the demo's flags for one."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import av
from chats import BUNDLED, EXAMPLE_IMAGE, EXAMPLE_VIDEO
from clips import shade
from PIL import Image


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of this size by its header, with hardly any pixels in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + pixels + chunk(b"IEND", b"")


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame("s16", "mono", 800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return path


def frameless(path: Path) -> Path:
    """A Matroska file that announces a video stream and has nothing in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def cut(path: Path, share: float, garbage: bool = False) -> Path:
    content = path.read_bytes()
    end = int(share * len(content))
    path.write_bytes(content[:end] + (b"\xa5" * (len(content) - end) if garbage else b""))
    return path


def model_folder(path: Path, **config) -> Path:
    """A copy of the bundled model's small files, with other values in its config."""
    shutil.copytree(BUNDLED, path, ignore=shutil.ignore_patterns("*.safetensors"))
    old = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(old | config))
    return path


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def solid(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, 0.4 if mode == "F" else 100)  # floats are in [0, 1]


def animation(path: Path) -> Path:
    first, *others = [Image.new("RGB", (40, 30), shade(number)) for number in (2, 5, 6)]
    return saved(path, first, save_all=True, append_images=others)


def damaged_exif(path: Path) -> Path:
    return saved(path, solid("RGB"), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40)


def unreadable_files(folder: Path) -> dict[str, Path]:
    """Files by name that are neither image nor video, or cut off; "none.png" is missing, "folder" is a folder."""
    written(folder / "text.jpg", b"not an image")
    written(folder / "text.mp4", b"not a video")
    written(folder / "empty.jpg", b"")
    written(folder / "cut.jpg", EXAMPLE_IMAGE.read_bytes()[:20_000])
    written(folder / "cut.mp4", EXAMPLE_VIDEO.read_bytes()[:20_000])
    names = ("text.jpg", "text.mp4", "empty.jpg", "cut.jpg", "cut.mp4", "none.png")
    return {name: folder / name for name in names} | {"folder": folder}


def image_flags(path) -> list:
    return ["--image-path", path, "--prompt", "How many cats are there?"]


def video_flags(path, *more) -> list:
    return ["--video-path", path, "--prompt", "How many cats are there?", *more]
