"""Splits written as files: their bytes and contents, resuming after a kill, refusals; and what the sheet shows."""

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from avis.garden import hashes, make, media, sprites
from avis.garden import render as render_module
from avis.garden.render import render
from avis.garden.scenes import LEVELS, SPLITS, video_times
from avis.garden.sheet import first_items
from avis.garden.source import GardenSource
from avis.garden.tasks import FORMS, TASKS, Item, item_for
from avis.inputs import read_video
from avis.video import Video, sample_frame_indices

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 12  # one image for each of eight tasks, two pairs, two videos
SMALL = ["--split", "dev", "--limit", str(LIMIT)]


@pytest.fixture(scope="module")
def dev(tmp_path_factory) -> Path:
    """The first items of dev, written in this process."""
    out = tmp_path_factory.mktemp("make") / "dev"
    make.make("dev", out, LIMIT, processes=1)
    return out


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    """The first items of calibration: four questions about one image, and one video."""
    out = tmp_path_factory.mktemp("make") / "calibration"
    make.make("calibration", out, 5, processes=1)
    return out


def start(out: Path, hash_seed: str) -> subprocess.Popen:
    """The command in a process of its own, with two workers that take a few items at a time."""
    code = "import sys; from avis.garden import make; make.CHUNK = 5; sys.exit(make.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *SMALL, "--out", str(out), "--processes", "2"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def items(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict]:
    csv.field_size_limit(2**27)
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def look(item: Item) -> str:
    """A hash of what an item shows. One corner, drawn in one wood: same scenes look the same, and it is quick."""
    digest = hashlib.sha256()
    for scene in item.scenes:
        animals = tuple(replace(animal, tone="oak", colour=0) for animal in scene.animals)
        corner = replace(scene, animals=animals, width=112, height=112)
        digest.update(render(corner, scene.seconds / 2).tobytes())
    return digest.hexdigest()


def test_other_processes_write_the_same_bytes(dev, tmp_path):
    """Guards against: bytes that follow the hash seed, the order of workers, the folder's name or the time of day."""
    process = start(tmp_path / "again", hash_seed="1")
    assert process.communicate()[1].decode() == "" and process.returncode == 0
    assert contents(tmp_path / "again") == contents(dev)


def test_a_video_has_the_same_bytes_wherever_its_frames_lie(monkeypatch):
    """Guards against: an encoder's setting whose sums depend on the alignment of memory: with x264's macroblock tree, 3
    of 24 encodings of this video were other files."""
    scene, rng = item_for("dev", 14).scenes[0], np.random.default_rng(1)
    drawn = list(media.render_frames(scene, media.file_times(scene.seconds)))
    monkeypatch.setattr(media, "render_frames", lambda *_: drawn)
    digests, kept = set(), []
    for _ in range(24):
        kept.append([np.empty(size, np.uint8) for size in rng.integers(1, 200_000, size=rng.integers(30))])
        if rng.random() < 0.5:
            kept.pop(int(rng.integers(len(kept))))
        digests.add(hashlib.sha256(media.encode_video(scene)).hexdigest())
    assert len(digests) == 1


def test_a_killed_run_resumes(dev, tmp_path):
    """Guards against: half a file taken for a whole one, work done twice, items doubled or lost, workers that outlive
    the run."""
    out = tmp_path / "killed"
    process = start(out, hash_seed="2")
    while len(drawn := [*out.glob("images/[0-9]*.png"), *out.glob("videos/[0-9]*.mp4")]) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    process.stderr.close()
    assert len(workers) >= 2 and not alive
    assert not (out / "items.jsonl").exists() and not (out / "manifest.json").exists()
    written = {path: path.stat().st_mtime_ns for path in drawn}
    (out / "images" / ".000004.png.1.part").write_bytes(b"the beginning of an image")
    make.make("dev", out, LIMIT, processes=1)
    assert contents(out) == contents(dev)
    assert {path: path.stat().st_mtime_ns for path in drawn} == written


def test_splits_share_no_scene():
    """Guards against: a split drawn with another's seeds, or two scenes of a split with one seed, by their pixels."""
    seen = {}
    for split in SPLITS:
        for index in range(150):
            item = item_for(split, index)
            assert seen.setdefault(look(item), (split, item.scene_id)) == (split, item.scene_id)
    assert len(set(seen.values())) == len(seen) > 3.2 * 150
    assert look(item_for("dev", 3)) == look(item_for("dev", 3))  # the same scene would have been found


def test_files_show_the_scenes(dev, calibration):
    """Guards against: a file that is missing or another item's; a video whose sampled frames are not the moments of
    training."""
    for split, folder in (("dev", dev), ("calibration", calibration)):
        for line in items(folder):
            item = item_for(split, line["index"])
            assert line == json.loads(json.dumps(make.item_line(line["index"], item)))
            if item.medium == "video":
                scene = item.scenes[0]
                shown, rate = read_video(folder / line["files"][0], (784, 2**24), fps=2.0)
                times = video_times(scene.seconds)
                assert shown.shape == (len(times), 3, scene.height, scene.width) and rate == 2.0
                for frame, second in zip(shown.numpy(), times, strict=True):
                    drawn = np.asarray(render(scene, float(second)), dtype=float)
                    assert np.abs(frame.transpose(1, 2, 0) - drawn).mean() < 3
            else:
                assert len(line["files"]) == (2 if item.medium == "images" else 1)
                for name, scene in zip(line["files"], item.scenes, strict=True):
                    with Image.open(folder / name) as image:
                        assert image.tobytes() == render(scene).tobytes()


def test_sampled_moments_are_those_of_training():
    """Guards against: evaluation sees moments of a video up to half a frame's time from the ones that the model was
    taught on."""
    for seconds in range(2, 9):
        times = media.file_times(float(seconds))
        taken, rate = sample_frame_indices(Video(Path("x"), tuple(range(len(times))), (), 12.0), fps=2.0)
        assert np.array_equal(times[taken], video_times(float(seconds)))
        assert rate == 2.0, "a grid step of two frames lasts one whole second, whose positions no patch has changed"
        assert len(times) == 12 * seconds and (np.diff(times) > 1 / 24).all()


def test_tables_for_vlmevalkit(dev, calibration):
    """Guards against: options inside the question, wrong columns, an image that does not decode or is another row's."""
    for folder, name, form in (
        (dev, "garden_dev_mcq.tsv", "choice"),
        (dev, "garden_dev_vqa.tsv", "free"),
        (calibration, "garden_calibration_mcq.tsv", "choice"),
    ):
        rows, lines = table(folder / name), {str(line["index"]): line for line in items(folder)}
        asked = [line for line in lines.values() if line["medium"] == "image" and line["form"] == form]
        assert [int(row["index"]) for row in rows] == [line["index"] for line in asked] and rows
        letters = ["A", "B", "C", "D"] if form == "choice" else []
        assert list(rows[0]) == ["index", "image", "question", *letters, "answer", "category", "l2-category"]
        images = {row["index"]: row["image"] for row in rows}
        for row, line in zip(rows, asked, strict=True):
            image = row["image"] if len(row["image"]) > 64 else images[row["image"]]
            data = base64.b64decode(image, validate=True)
            assert data == (folder / line["files"][0]).read_bytes() and Image.open(io.BytesIO(data)).format == "PNG"
            assert (row["category"], row["l2-category"]) == (line["task"], str(line["level"]))
            assert [row[letter] for letter in letters if row[letter]] == line["options"]
            assert row["question"] in line["question"] and "A. " not in row["question"]
            assert (row[row["answer"]] if letters else row["answer"]) == line["value"]
    assert sum(len(row["image"]) > 64 for row in rows) == 1 < len(rows)  # calibration: one image, written once


def test_folders_for_hugging_face(dev):
    """Guards against: metadata that names files which are not beside it, leaves items out, or a card that points to
    nothing."""
    lines = []
    for folder in ("images", "videos"):
        for row in map(json.loads, (dev / folder / "metadata.jsonl").read_text().splitlines()):
            names = row.pop("file_names", None) or [row.pop("file_name")]
            assert [f"{folder}/{name}" for name in names] == row["files"]
            lines.append(row)
    assert sorted(lines, key=lambda line: line["index"]) == items(dev)
    for folder, count in ((dev, 12), (dev / "videos", 2)):
        card = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
        (named,) = card["configs"][0]["data_files"]
        media = [p for p in folder.glob(named["path"].replace("**", "**/*")) if p.suffix in (".png", ".mp4")]
        assert named["split"] == "dev" and len(media) == count


def test_manifest_counts_and_hashes(dev):
    """Guards against: hashes of something else than the files, a file without one, counts that are not those of the
    items."""
    manifest, lines = json.loads((dev / "manifest.json").read_text()), items(dev)
    files = contents(dev)
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].decode().splitlines())
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert sums == {n: d for n, d in hashes.items() if n not in ("SHA256SUMS", "plan.json", "manifest.json")}
    assert manifest["sha256"] == {name: hashes[name] for name in ("items.jsonl", "SHA256SUMS")}
    assert manifest["split"] == "dev" and manifest["items"] == len(lines) == LIMIT
    for name, counts in manifest["counts"].items():
        assert counts == Counter(str(line[name]) for line in lines)


def test_hashes_follow_what_is_drawn_and_not_how_it_is_written(dev, monkeypatch):
    """Guards against: another plan after a reformatting, and the same plan after a change of items or of pixels."""
    plan = json.loads((dev / "plan.json").read_text())
    assert (
        plan["items_sha256"] == hashes.items_sha256("dev", range(LIMIT)) != hashes.items_sha256("dev", range(1, LIMIT))
    )
    assert GardenSource("dev").sha256 == hashes.items_sha256("dev", range(len(GardenSource("dev"))))
    pixels = hashes.pixels_sha256()
    assert plan["pixels_sha256"] == pixels
    with monkeypatch.context() as change:
        change.setattr(sprites, "CREAM", (246, 240, 227))
        clear_caches()
        assert hashes.pixels_sha256() != pixels
    clear_caches()
    assert hashes.pixels_sha256() == pixels


def clear_caches():
    """Have sprites drawn anew."""
    for cached in (sprites.animal_sprite, sprites.prop_sprite, render_module._sized_animal, render_module._sized_prop):
        cached.cache_clear()


def test_refusals(dev, tmp_path, capsys):
    """Guards against: a traceback, two splits mixed in one folder, somebody's files written over."""
    (tmp_path / "file").write_text("")
    before = contents(dev)
    for *flags, said in (
        ("--split", "prod", "--out", tmp_path / "a", "split must be one of"),
        ("--split", "dev", "--limit", 0, "--out", tmp_path / "a", "limit must be at least 1"),
        ("--split", "dev", "--processes", 0, "--out", tmp_path / "a", "processes must be at least 1"),
        ("--split", "test", "--limit", LIMIT, "--out", dev, "was begun with split dev"),
        ("--split", "dev", "--limit", LIMIT + 1, "--out", dev, "was begun with items 12"),
        ("--split", "dev", "--limit", 1, "--out", tmp_path, "is not empty"),
        ("--split", "dev", "--limit", 1, "--out", tmp_path / "file" / "a", "Not a directory"),
    ):
        assert make.main([str(flag) for flag in flags]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and said in error
    assert contents(dev) == before and not (tmp_path / "a").exists()


def test_sheet_shows_two_items_a_task_and_level():
    """Guards against: a contact sheet with a task, level or form left out, or an item under another's heading."""
    found = first_items()
    assert list(found) == [(task, level.number) for task in TASKS for level in LEVELS]
    for (task, level), pair in found.items():
        assert [(item.task, item.level, item.form) for item in pair] == [(task, level, form) for form in FORMS]
