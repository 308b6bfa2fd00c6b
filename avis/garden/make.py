"""Writes a split of the garden as files: pictures, clips, and its questions for this and for other programs.

    python -m avis.garden.make --split dev --out out/dev

The folder then holds `images/*.png` and `videos/*.mp4` (one for a scene, whatever number of questions is asked about
it; two for a pair of pictures), `items.jsonl` (one line a question), `garden_<split>_mcq.tsv` and
`garden_<split>_vqa.tsv` (the questions about one picture, for VLMEvalKit), `README.md` and the `metadata.jsonl` files
(for Hugging Face's `load_dataset`), `SHA256SUMS`, `plan.json` and, last of all, `manifest.json`. The same split gives
the same bytes in any process; a run that was killed goes on when it is started again.
"""

import argparse
import base64
import csv
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import av
import numpy as np
import PIL
from tqdm import tqdm

from avis.garden.render import frames, render
from avis.garden.scenes import FILE_RATE, Scene, clip_times
from avis.garden.tasks import LETTERS, QUESTIONS, SPLIT_SIZES, Item, item_for

CHUNK = 5 * QUESTIONS  # items in a row that share no picture with any other
CARD = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: {path}
---
{text}
"""
ABOUT = """# The garden, split {split}

Wooden animals, drawn, with questions, answers and reasoning traces. `load_dataset` on this folder reads the items about
pictures; on `videos/`, those about clips. `items.jsonl` has all of them, with the names of their files."""


def file_times(seconds: float) -> np.ndarray:
    """The seconds at which the frames of a clip's file are drawn: `FILE_RATE` a second, in ascending order.

    A reader that samples the file evenly from the first to the last frame, `scenes.RATE` a second, gets exactly the
    moments of `clip_times`: the frames it takes are moved there, by half a frame's time at most.
    """
    times = np.arange(round(seconds * FILE_RATE)) / FILE_RATE
    seen = clip_times(seconds)
    times[np.linspace(0, len(times) - 1, len(seen)).round().astype(int)] = seen
    return times


def write_clip(scene: Scene, path: Path) -> None:
    """Encode a clip as H.264 of `FILE_RATE` frames a second, nearly without loss; the same scene gives the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    # The number of threads shows in the bytes; and the macroblock tree's sums depend on where in memory frames lie.
    options = {"crf": "10", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(FILE_RATE), options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for picture in frames(scene, file_times(scene.seconds)):
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())


def chat_parts(scenes: tuple[Scene, ...], folder: Path) -> list[dict]:
    """Scenes as parts of a chat: pictures drawn, clips written into `folder`, as a user's are files."""
    parts = []
    for number, scene in enumerate(scenes):
        if scene.seconds:
            path = folder / f"{number}.mp4"
            write_clip(scene, path)
            parts.append({"type": "video", "video": str(path)})
        else:
            parts.append({"type": "image", "image": render(scene)})
    return parts


def file_names(item: Item) -> list[str]:
    """The item's files, relative to its split's folder; items with the same `scene_id` name the same ones."""
    if item.medium == "video":
        return [f"videos/{item.scene_id:06d}.mp4"]
    ends = [""] if len(item.scenes) == 1 else ["_1", "_2"]
    return [f"images/{item.scene_id:06d}{end}.png" for end in ends]


def record(index: int, item: Item) -> dict:
    """The item's line in `items.jsonl`. `question` is as put, with the options; `question_text` is without them."""
    fields = ("task", "medium", "level", "form", "question", "options", "answer", "value", "trace")
    line = {"index": index} | {name: getattr(item, name) for name in (*fields, "scene_id", "answerable")}
    return line | {"question_text": item.question.split("\n")[0], "files": file_names(item)}


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written under another name and renamed: a file that exists is whole, even after a power cut."""
    part = path.with_name("." + path.name)
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda part: part.write_bytes(text.encode()))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _draw(split: str, out: Path, indices: range) -> list[tuple[dict, list[str]]]:
    """Write the files of these items that are not there yet; the items' lines, and their files' hashes."""
    lines, hashes = [], {}
    for index in indices:
        item = item_for(split, index)
        line = record(index, item)
        for scene, name in zip(item.scenes, line["files"], strict=True):
            if name not in hashes:
                if not (out / name).exists():
                    if scene.seconds:
                        _write(out / name, partial(write_clip, scene))
                    else:
                        # On noise the lowest level is the fastest and packs best.
                        _write(out / name, partial(render(scene).save, compress_level=1))
                hashes[name] = _sha256(out / name)
        lines.append((line, [hashes[name] for name in line["files"]]))
    return lines


def _end_with_parent() -> None:
    """Have this worker end when the program is killed, which could not tell it to."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()


def _drawn(split: str, out: Path, count: int, processes: int) -> list[tuple[dict, list[str]]]:
    """What `_draw` makes of all items, in their order, in as many processes."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    draw, drawn = partial(_draw, split, out), []
    with ExitStack() as stack:
        apply = map
        if processes > 1:
            apply = stack.enter_context(ProcessPoolExecutor(processes, initializer=_end_with_parent)).map
        progress = stack.enter_context(tqdm(total=count, desc=split, unit="item", disable=None))
        for lines in apply(draw, chunks):
            drawn += lines
            progress.update(len(lines))
    return drawn


def _tsv(path: Path, lines: list[dict], out: Path) -> None:
    """A table for VLMEvalKit. A picture that an earlier row has is given as that row's index, as its reader allows."""
    letters = list(LETTERS) if lines and lines[0]["form"] == "choice" else []
    rows: dict[str, int] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "image", "question", *letters, "answer", "category", "l2-category"])
        for line in lines:
            name = line["files"][0]
            first = rows.setdefault(name, line["index"])
            drawn = first == line["index"]
            image = base64.b64encode((out / name).read_bytes()).decode() if drawn else first
            options = [*line["options"], *[""] * (len(letters) - len(line["options"]))]
            table.writerow(
                [line["index"], image, line["question_text"], *options, line["answer"], line["task"], line["level"]]
            )


def _jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _write_tables(split: str, out: Path, lines: list[dict]) -> list[str]:
    """Write every file but the pictures and clips, the plan and the manifest; their names."""
    texts = {"items.jsonl": _jsonl(lines)}
    clips = [line for line in lines if line["medium"] == "video"]
    pictures = [line for line in lines if line["medium"] != "video"]
    rows = [{"file_names": [Path(name).name for name in line["files"]]} | line for line in pictures]
    texts["images/metadata.jsonl"] = _jsonl(rows)
    texts["README.md"] = CARD.format(split=split, path="images/**", text=ABOUT.format(split=split))
    if clips:
        texts["videos/metadata.jsonl"] = _jsonl([{"file_name": Path(line["files"][0]).name} | line for line in clips])
        texts["videos/README.md"] = CARD.format(split=split, path="'[0-9m]*'", text=f"# The clips of {split}")
    for name, text in texts.items():
        _write_text(out / name, text)
    tables = []
    for name, form in (("mcq", "choice"), ("vqa", "free")):
        asked = [line for line in pictures if line["medium"] == "image" and line["form"] == form]
        if asked:
            tables.append(f"garden_{split}_{name}.tsv")
            _write(out / tables[-1], partial(_tsv, lines=asked, out=out))
    return [*texts, *tables]


def _plan(split: str, count: int) -> dict:
    """What determines the folder's bytes: the items, the code that draws them, and what that code runs on."""
    here = Path(__file__).parent
    code = [here / "make.py", here / "render.py", here / "scenes.py", *sorted((here / "tasks").glob("*.py"))]
    return {
        "split": split,
        "items": count,
        "command": f"python -m avis.garden.make --split {split} --limit {count}",
        "code_sha256": hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest(),
        "versions": {"av": av.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
    }


def _begin(out: Path, plan: dict) -> None:
    """Claim the folder for this plan, or find that it was claimed for the same one before."""
    path = out / "plan.json"
    if path.exists():
        held = json.loads(path.read_text())
        for name, value in plan.items():
            if held.get(name) != value:
                raise ValueError(f"{out} was begun with {name} {held.get(name)}, not {value}: choose another folder")
    elif out.is_dir() and any(entry.name != ".plan.json" for entry in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no split: choose another folder")
    for folder in ("images", "videos"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(plan, indent=1) + "\n")


def make(split: str, out: Path, limit: int | None = None, processes: int | None = None) -> dict:
    """Write a split, or its first `limit` items, into a folder that is empty or holds a part of the same.

    Returns:
        what `manifest.json` says: the plan, counts, and the SHA-256 of `items.jsonl` and of `SHA256SUMS`, which has
        every other file's.

    Raises:
        ValueError: no such split, a limit or a number of processes below 1, or the folder holds something else.
        OSError: the folder cannot be written.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_SIZES)}, got {split!r}")
    for name, value in (("limit", limit), ("processes", processes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    count = min(SPLIT_SIZES[split], limit or SPLIT_SIZES[split])
    processes = min(processes or os.cpu_count() or 1, -(-count // CHUNK))
    plan = _plan(split, count)
    _begin(out, plan)

    drawn = _drawn(split, out, count, processes)
    lines = [line for line, _ in drawn]
    hashes = {name: digest for line, digests in drawn for name, digest in zip(line["files"], digests, strict=True)}
    hashes |= {name: _sha256(out / name) for name in _write_tables(split, out, lines)}
    # As `sha256sum --check SHA256SUMS` reads it.
    _write_text(out / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())))
    manifest = plan | {
        "counts": {
            name: {str(key): n for key, n in sorted(Counter(line[name] for line in lines).items())}
            for name in ("task", "level", "form", "medium", "answerable")
        },
        "sha256": {name: _sha256(out / name) for name in ("items.jsonl", "SHA256SUMS")},
    }
    _write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m avis.garden.make", description="Write a split of the garden as files."
    )
    parser.add_argument("--split", required=True, help=f"one of {', '.join(SPLIT_SIZES)}")
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, empty, or begun with the same")
    parser.add_argument("--limit", type=int, help="write the first n items only")
    parser.add_argument("--processes", type=int, help="default: one a core")
    args = parser.parse_args(argv)
    try:
        manifest = make(args.split, args.out, args.limit, args.processes)
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {manifest['items']} items of {args.split}, {manifest['counts']['medium']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
