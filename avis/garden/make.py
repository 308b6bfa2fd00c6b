"""Writes a split of the garden as files: images, videos, and questions for this and other programs.

    python -m avis.garden.make --split garden2:dev --out out/dev

The folder then holds `images/*.png` and `videos/*.mp4` (one for each scene, whatever number of questions is about it;
two for a pair of images), `items.jsonl` (one line a question), `garden2_<split>_mcq.tsv` and `garden2_<split>_vqa.tsv`
(the questions about one image, for VLMEvalKit; the first garden's begin with `garden_`), `README.md` and the
`metadata.jsonl` files (for Hugging Face's `load_dataset`), `SHA256SUMS`, `plan.json` and, last of all, `manifest.json`.
The same split gives the same bytes in any process. The same command resumes a run that was killed.
"""

import base64
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import PIL
from tqdm import tqdm

from avis.cli import ArgumentParser, run_command
from avis.files import read_json, sha256, write_atomically, write_json
from avis.garden.hashes import items_sha256, pixels_sha256
from avis.garden.media import encode_image, encode_video
from avis.garden.scenes import SECOND
from avis.garden.tasks import LETTERS, QUESTIONS_PER_IMAGE, SPLIT_SIZES, Item, item_for
from avis.processes import run_in_processes

CHUNK = 5 * QUESTIONS_PER_IMAGE  # items in a row that share no image with any other
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
images; on `videos/`, those about videos. `items.jsonl` has all of them, with the names of their files."""

Line = dict  # of items.jsonl


def make(split: str, out: Path, limit: int | None = None, processes: int | None = None) -> dict:
    """Write a split into a folder that is empty or holds a part of the same.

    Args:
        split: one of `tasks.SPLIT_SIZES`.
        out: the folder.
        limit: write the first items only.
        processes: that draw and encode; None: one a core.

    Returns:
        The content of `manifest.json`: the plan, counts, and the SHA-256 of `items.jsonl` and of `SHA256SUMS`, which
        has that of every other file.

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
    _check_folder(out, {"split": split, "items": count})
    plan = _plan(split, count)
    _begin(out, plan)

    drawn = _draw_all(split, out, count, processes)
    lines = [line for line, _ in drawn]
    hashes = {name: digest for line, digests in drawn for name, digest in zip(line["files"], digests, strict=True)}
    hashes |= {name: sha256([out / name]) for name in _write_tables(split, out, lines)}
    # In the form that `sha256sum --check SHA256SUMS` reads.
    sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    write_atomically(out / "SHA256SUMS", sums.encode())
    manifest = plan | {
        "counts": {
            name: {str(key): n for key, n in sorted(Counter(line[name] for line in lines).items())}
            for name in ("task", *_difficulty(split), "form", "medium", "answerable")
        },
        "sha256": {name: sha256([out / name]) for name in ("items.jsonl", "SHA256SUMS")},
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _plan(split: str, count: int) -> dict:
    """Return what determines the folder's bytes: items, drawing, and the libraries that draw and encode."""
    progress = tqdm(range(count), desc="hashing items", unit="item", disable=None, leave=False)
    return {
        "split": split,
        "items": count,
        "command": f"python -m avis.garden.make --split {split} --limit {count}",
        "items_sha256": items_sha256(split, progress),
        "pixels_sha256": pixels_sha256(split),
        "versions": {"av": av.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
    }


def _check_folder(out: Path, plan: dict) -> None:
    """Raise ValueError when the folder holds anything but a part of this plan."""
    path = out / "plan.json"
    if path.exists():
        begun = read_json(path, "choose another folder")
        for name, value in plan.items():
            if begun.get(name) != value:
                raise ValueError(f"{out} was begun with {name} {begun.get(name)}, not {value}: choose another folder")
    elif out.is_dir() and any(not entry.name.startswith(".plan.json") for entry in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no split: choose another folder")


def _begin(out: Path, plan: dict) -> None:
    """Claim the folder for this plan, or check that it was claimed for the same one before."""
    _check_folder(out, plan)
    for folder in ("images", "videos"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for part in (out / folder).glob(".*.part"):  # of a run that was killed
            part.unlink()
    write_json(out / "plan.json", plan)


def _draw_all(split: str, out: Path, count: int, processes: int) -> list[tuple[Line, list[str]]]:
    """Return what `_draw_chunk` returns of all items, in their order."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    drawn = {}
    with tqdm(total=count, desc=split, unit="item", disable=None) as progress:
        for chunk, lines in _draw_chunks(split, out, chunks, processes):
            drawn[chunk] = lines
            progress.update(len(lines))
    return [line for chunk in chunks for line in drawn[chunk]]


def _draw_chunks(
    split: str, out: Path, chunks: list[range], processes: int
) -> Iterator[tuple[range, list[tuple[Line, list[str]]]]]:
    """Yield every chunk with its lines, in order of completion."""
    draw = partial(_draw_chunk, split, out)
    if processes == 1:
        for chunk in chunks:
            yield chunk, draw(chunk)
        return
    for chunk, job in run_in_processes(draw, chunks, processes):
        yield chunk, job.result()


def _draw_chunk(split: str, out: Path, indices: range) -> list[tuple[Line, list[str]]]:
    """Write the missing files of items; return the items' lines, each with its files' hashes."""
    lines = []
    hashes: dict[str, str] = {}
    for index in indices:
        item = item_for(split, index)
        line = item_line(index, item)
        for scene, name in zip(item.scenes, line["files"], strict=True):
            path = out / name
            if name not in hashes:
                if not path.exists():
                    write_atomically(path, encode_video(scene) if scene.seconds else encode_image(scene))
                hashes[name] = sha256([path])
        lines.append((line, [hashes[name] for name in line["files"]]))
    return lines


def item_line(index: int, item: Item) -> Line:
    """Return an item's line of `items.jsonl`; `question` has options and layout, `question_text` has not."""
    difficulty = ("see", "think", "layout") if item.see else ("level",)
    fields = ("task", "medium", *difficulty, "form", "question", "options", "answer", "value", "trace")
    line = {"index": index} | {name: getattr(item, name) for name in (*fields, "scene_id", "answerable")}
    return line | {"question_text": item.stem, "files": _file_names(item)}


def _difficulty(split: str) -> tuple[str, ...]:
    """Return the names of what says in a split's lines how hard an item is."""
    return ("see", "think") if split.startswith(SECOND) else ("level",)


def _file_names(item: Item) -> list[str]:
    """Return an item's files, relative to its split's folder; items with one `scene_id` share them."""
    if item.medium == "video":
        return [f"videos/{item.scene_id:06d}.mp4"]
    ends = [""] if len(item.scenes) == 1 else ["_1", "_2"]
    return [f"images/{item.scene_id:06d}{end}.png" for end in ends]


def _write_tables(split: str, out: Path, lines: list[Line]) -> list[str]:
    """Write every file but images, videos, plan and manifest; return their names."""
    plain = split.removeprefix(SECOND)
    table = split.replace(":", "_") if split.startswith(SECOND) else f"garden_{split}"
    videos = [line for line in lines if line["medium"] == "video"]
    images = [line for line in lines if line["medium"] != "video"]
    rows = [{"file_names": [Path(name).name for name in line["files"]]} | line for line in images]
    texts = {
        "items.jsonl": _jsonl(lines),
        "images/metadata.jsonl": _jsonl(rows),
        "README.md": CARD.format(split=plain, path="images/**", text=ABOUT.format(split=split)),
    }
    if videos:
        texts["videos/metadata.jsonl"] = _jsonl([{"file_name": Path(line["files"][0]).name} | line for line in videos])
        texts["videos/README.md"] = CARD.format(split=plain, path="'[0-9m]*'", text=f"# The videos of {split}")
    for name, form in (("mcq", "choice"), ("vqa", "free")):
        of_form = [line for line in images if line["medium"] == "image" and line["form"] == form]
        if of_form:
            texts[f"{table}_{name}.tsv"] = _tsv(of_form, out, _difficulty(split))
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return list(texts)


def _tsv(lines: list[Line], out: Path, difficulty: tuple[str, ...]) -> str:
    """Return a table for VLMEvalKit; an image that an earlier row has is given as that row's index."""
    letters = list(LETTERS) if lines[0]["form"] == "choice" else []
    first_rows: dict[str, int] = {}
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["index", "image", "question", *letters, "answer", "category", "l2-category"])
    for line in lines:
        name, index = line["files"][0], line["index"]
        first = first_rows.setdefault(name, index)
        image = base64.b64encode((out / name).read_bytes()).decode() if first == index else first
        options = [*line["options"], *[""] * (len(letters) - len(line["options"]))]
        group = " ".join(str(line[name]) if name == "level" else f"{name} {line[name]}" for name in difficulty)
        table.writerow([index, image, line["question_text"], *options, line["answer"], line["task"], group])
    return text.getvalue()


def _jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 2 for bad input."""
    parser = ArgumentParser(prog="python -m avis.garden.make", description="Write a split of the garden as files.")
    parser.add_argument("--split", required=True, help=f"one of {', '.join(SPLIT_SIZES)}")
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, empty, or begun with the same split")
    parser.add_argument("--limit", type=int, help="write the first items only (default: the whole split)")
    parser.add_argument("--processes", type=int, help="processes that draw and encode (default: one a core)")
    args = parser.parse_args(argv)

    def command() -> None:
        manifest = make(args.split, args.out, args.limit, args.processes)
        print(f"{args.out}: {manifest['items']} items of {args.split}, {manifest['counts']['medium']}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
