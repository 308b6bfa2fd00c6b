"""The garden: its scenes, pictures, questions and labels; the bundled model's parts; its training; its folder.

Nothing here asks how well a model answers: that is measured by the evaluation, not by tests.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MethodType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

import demo
import garden.train
from garden import example
from garden.model import SPECIAL, TAGS, new_config, new_model, new_processor
from garden.questions import KINDS, MAX_COUNT, WEARS, item_for
from garden.render import frames, render
from garden.scenes import MAX_ANIMALS, SPLITS, TOKEN, Scene, cast, dense_labels, place, rng_for, scene_for
from garden.train import PRESETS, Batches, Stage, Trainer, batched_attention, patchify
from policy.answer import AvisSettings, prepare
from policy.prompts import DIRECT, THINKING
from policy.vote import extract_answer

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "garden-tiny"
MIB = 2**20


@pytest.fixture(scope="module")
def processor():
    """The processor made anew (seconds); the shipped one is compared with it."""
    return new_processor()


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# ------------------------------------------------------------------------------------------- the same everywhere


def fingerprints() -> dict[str, str]:
    """Hashes of what must be the same in every process; this file is also the program of the other process."""
    items = [item_for("dev", index, task, 140, 168) for task in ("count", "attribute") for index in range(20)]
    rng = rng_for("test", 5)
    wide = place(rng, 280, 196, cast(rng, 2))
    clip = list(frames(wide, 3))
    return {
        "items": digest(repr(items).encode()),
        "scene": digest(repr(wide).encode()),
        "labels": digest(dense_labels(wide).tobytes()),
        "picture": digest(render(wide).tobytes()),
        "clip": digest(*(picture.tobytes() for picture in clip)),
        "tokenizer": digest(new_processor().tokenizer.backend_tokenizer.to_str().encode()),
    }


def test_another_process_makes_the_same(processor):
    """Guards against: `hash()` of a string, the order of a set, or a global generator in scene, picture, question or
    vocabulary, by which training could not be resumed and a split would be another one in every process."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(run.stdout) == fingerprints()


def test_splits_share_nothing():
    """Guards against: splits that are shifted windows of one stream, so that test scenes were trained on."""
    scenes = {split: [scene_for(split, index) for index in range(300)] for split in SPLITS}
    items = {split: [item_for(split, index) for index in range(300)] for split in SPLITS}
    everything = [thing for made in (scenes, items) for of_split in made.values() for thing in of_split]
    stripped = {repr(replace(getattr(thing, "scene", thing), seed=0)) for thing in everything}
    assert len(stripped) == len(everything)
    pictures = [render(item.scene).tobytes() for of_split in items.values() for item in of_split[:25]]
    assert len(set(map(digest, pictures))) == len(pictures)


def test_unknown_split_is_refused():
    """Guards against: a misspelt split that quietly becomes one of its own, unknown to every other command."""
    with pytest.raises(ValueError, match="one of train, calibration, dev, test"):
        rng_for("validation", 3)


# ---------------------------------------------------------------------------------------------------- questions


def asked_for(question: str) -> tuple[str | None, str | None]:
    """Kind and wear that a question names, read from its words alone."""
    words = re.findall("[a-z]+", question.lower())
    kinds = [kind for kind in KINDS if kind in words or f"{kind}s" in words]
    wears = [wear for wear in WEARS if wear in words]
    assert len(kinds) <= 1 and len(wears) <= 1, f"ambiguous: {question}"
    return (kinds or [None])[0], (wears or [None])[0]


STEP = re.compile(r"(\d+) ([a-z]+) ([a-z]+): (\w+)")


def steps(trace: str) -> list[tuple[int, str, str, str]]:
    matches = [STEP.fullmatch(step) for step in trace.split("; ")]
    assert all(matches), f"a step that cannot be read: {trace}"
    return [(int(m[1]), m[2], m[3], m[4]) for m in matches]


@pytest.mark.parametrize("most", [4, 8])
def test_counting_items_are_right(most):
    """Guards against: an answer that its own picture contradicts; a trace that skips an animal, leaves the reading
    order, counts wrongly, or ends on another number than the answer."""
    forms = set()
    for index in range(400):
        item = item_for("dev", index, "count", 280, 280, most)
        kind, wears = asked_for(item.question)
        forms.add((kind is None, wears is None))
        animals = item.scene.animals
        hits = [kind in (None, a.kind) and wears in (None, a.wears) for a in animals]
        assert item.answer == str(sum(hits))
        running = [str(sum(hits[: n + 1])) for n in range(len(hits))]
        expected = [(n, a.kind, a.wears, c) for n, (a, c) in enumerate(zip(animals, running, strict=True), start=1)]
        assert steps(item.trace) == expected
        assert 1 <= len(animals) <= most
    assert forms == {(False, False), (False, True), (True, False)}  # kind and wear, kind alone, wear alone


def test_attribute_items_are_right():
    """Guards against: a question about one of two animals of a kind, or a trace that misses the one asked about."""
    for index in range(400):
        item = item_for("dev", index, "attribute", 280, 280, 6)
        kind, _ = asked_for(item.question)
        named = [n for n, a in enumerate(item.scene.animals, start=1) if a.kind == kind]
        assert len(named) == 1
        assert item.answer == item.scene.animals[named[0] - 1].wears
        read = steps(item.trace)
        assert read == [
            (n, a.kind, a.wears, "yes" if a.kind == kind else "no")
            for n, a in enumerate(item.scene.animals[: named[0]], start=1)
        ]


@pytest.mark.parametrize(
    ("task", "answers"), [("count", list(map(str, range(MAX_COUNT + 1)))), ("attribute", list(WEARS))]
)
def test_answers_are_balanced(task, answers):
    """Guards against: scenes drawn before answers (73% "0"), where a blind guess looks like skill.

    Each answer's share of 2,000 items lies within five standard errors of an even draw; a fair draw leaves that for
    one answer with odds of 6e-7.
    """
    count = 2000
    seen = Counter(item_for("calibration", index, task).answer for index in range(count))
    assert set(seen) == set(answers)
    even = 1 / len(answers)
    allowed = 5 * (count * even * (1 - even)) ** 0.5
    assert all(abs(n - count * even) < allowed for n in seen.values()), seen


def test_responses_are_what_the_vote_reads():
    """Guards against: a target that the vote cannot read, or thinking in the form that is asked not to think."""
    for task in ("count", "attribute"):
        for index in range(50):
            item = item_for("dev", index, task)
            assert item.trace in item.response() and item.trace not in item.response(thinking=False)
            for thinking in (True, False):
                assert extract_answer(item.response(thinking)) == item.answer


def test_unknown_task_is_refused():
    """Guards against: a misspelt task answered with items of another one."""
    with pytest.raises(ValueError):
        item_for("dev", 0, "counting")


# ----------------------------------------------------------------------------------------------- scenes, pictures

tokens = st.integers(5, 18)
seeds = st.integers(0, 2**20)


def some_scene(columns: int, rows: int, count: int, seed: int) -> Scene:
    """A scene of `count` animals, however small they have to be."""
    rng = rng_for("dev", 900, seed)
    return place(rng, columns * TOKEN, rows * TOKEN, cast(rng, count))


@settings(max_examples=150, deadline=None)
@given(width=tokens, height=tokens, seed=seeds, cell=st.floats(68, 140))
def test_reading_order_is_row_by_row(width, height, seed, cell):
    """Guards against: traces that list animals in the order they were drawn in, or column by column; and two animals
    in one cell, which hide each other."""
    width, height = width * TOKEN, height * TOKEN
    columns, rows = int(width // cell), int(height // cell)
    rng = rng_for("dev", 901, seed)
    pairs = cast(rng, min(MAX_ANIMALS, columns * rows))
    scene = place(rng, width, height, pairs, cell)
    assert [(a.kind, a.wears) for a in scene.animals] == pairs
    places = [(int(a.y / (height / rows)), int(a.x / (width / columns))) for a in scene.animals]
    assert all(first < second for first, second in pairwise(places)), places
    for animal, (row, column) in zip(scene.animals, places, strict=True):
        assert column * width / columns <= animal.x - 0.375 * animal.size + 1e-6
        assert animal.x + 0.375 * animal.size <= (column + 1) * width / columns + 1e-6
        assert row * height / rows <= animal.y - 0.5 * animal.size + 1e-6
        assert animal.y + 0.5 * animal.size <= (row + 1) * height / rows + 1e-6


def test_too_many_animals_are_refused():
    """Guards against: animals silently dropped, so that question and picture disagree."""
    rng = rng_for("dev", 902)
    with pytest.raises(ValueError, match="do not fit"):
        place(rng, 140, 140, cast(rng, 5), cell=70.0)
    with pytest.raises(ValueError, match="do not fit"):
        place(rng, 560, 560, cast(rng, MAX_ANIMALS + 1), cell=70.0)


@settings(max_examples=300, deadline=None)
@given(columns=tokens, rows=tokens, count=st.integers(1, MAX_ANIMALS), seed=seeds)
def test_every_animal_has_a_label_of_its_own(columns, rows, count, seed):
    """Guards against: small animals between token centres, or overwritten by a neighbour, that the first training
    stage would teach the tower not to see; and labels of another animal than the one that stands there."""
    scene = some_scene(columns, rows, count, seed)
    labels = dense_labels(scene)
    assert labels.shape == (rows, columns, 3)
    assert set(labels[..., 2].flat) - {0} == set(range(1, len(scene.animals) + 1))
    for row in range(rows):
        for column in range(columns):
            kind, wears, order = labels[row, column].tolist()
            if not order:
                assert kind == wears == 0
                continue
            animal = scene.animals[order - 1]
            assert (KINDS[kind - 1], WEARS[wears - 1]) == (animal.kind, animal.wears)
            # The token touches the animal's box.
            assert abs((column + 0.5) * TOKEN - animal.x) <= 0.375 * animal.size + TOKEN / 2
            assert abs((row + 0.5) * TOKEN - animal.y) <= 0.5 * animal.size + TOKEN / 2


@pytest.mark.parametrize("size", [(140, 140), (196, 140), (280, 364), (384, 512)])
def test_pictures_have_the_declared_size(size):
    """Guards against: width and height swapped, which square pictures hide."""
    picture = render(scene_for("dev", 3, *size))
    assert (picture.size, picture.mode) == (size, "RGB")


def test_pictures_show_what_the_record_says():
    """Guards against: an animal hidden by another, drawn elsewhere than its record and labels say, or with its
    accessory not to be seen."""
    for index in range(8):
        scene = some_scene(10, 8, 6, seed=index)
        shown = np.asarray(render(scene)).astype(int)
        labels = dense_labels(scene)
        for order, animal in enumerate(scene.animals, start=1):
            others = tuple(a for a in scene.animals if a is not animal)
            without = np.asarray(render(replace(scene, animals=others))).astype(int)
            changed = np.abs(shown - without).max(axis=2) > 12
            y, x = changed.nonzero()
            assert abs(x.mean() - animal.x) < 0.3 * animal.size and abs(y.mean() - animal.y) < 0.3 * animal.size
            # Its picture may stick out of its box by its shadow and by its tilt, no further.
            assert x.min() > animal.x - 0.375 * animal.size - 10 and x.max() < animal.x + 0.375 * animal.size + 10
            assert y.min() > animal.y - 0.5 * animal.size - 10 and y.max() < animal.y + 0.5 * animal.size + 10
            labelled = np.kron(labels[..., 2] == order, np.ones((TOKEN, TOKEN), dtype=bool))
            assert changed[labelled].mean() > 0.3, "its labelled tokens show little of the animal"
            if animal.wears != "nothing":
                bare = tuple(replace(a, wears="nothing") if a is animal else a for a in scene.animals)
                undressed = np.asarray(render(replace(scene, animals=bare))).astype(int)
                worn = np.abs(shown - undressed).max(axis=2) > 40
                assert worn.sum() > 0.02 * animal.size**2, f"{animal.kind} {animal.wears}: hardly to be seen"


def test_clips_move_and_have_the_asked_length():
    """Guards against: a clip of one picture repeated, frames of another size, or one frame too many."""
    scene = scene_for("dev", 8, 196, 140)
    for count in (1, 2, 5):
        clip = list(frames(scene, count, per_second=2))
        assert [picture.size for picture in clip] == [(196, 140)] * count
    assert len({picture.tobytes() for picture in clip}) == 5


# ---------------------------------------------------------------------------------------------------- the example


def test_example_picture_is_the_gardens_own():
    """Guards against: an example that was drawn by an older garden, or whose answer is not what the tests expect."""
    scene = example.example_scene()
    hits = [(a.kind, a.wears) == ("rabbit", "glasses") for a in scene.animals]
    assert sum(hits) == 2 and {"rabbit"} < {a.kind for a in scene.animals}
    with Image.open(ROOT / "example.jpg") as shipped:
        assert shipped.size == (384, 512)
        off = np.abs(np.asarray(shipped.convert("RGB")).astype(int) - np.asarray(render(scene)).astype(int))
    assert off.mean() < 4, "example.jpg is not this scene: run python -m garden.example"
    assert demo.QUESTION == example.QUESTION


def test_scenes_like_the_example():
    """Guards against: "fresh scenes like the example" that are easier, of another size, or the example itself."""
    items = [example.like_example(split, index) for split in ("dev", "test") for index in range(50)]
    for item in items:
        assert (item.scene.width, item.scene.height, item.question) == (384, 512, example.QUESTION)
        assert 4 <= len(item.scene.animals) <= 8
        assert item.answer == str(sum((a.kind, a.wears) == ("rabbit", "glasses") for a in item.scene.animals))
    assert len({repr(item.scene.animals) for item in items}) == 100
    assert {item.answer for item in items} == set("01234")


def test_clips_are_written_whole(tmp_path):
    """Guards against: a clip without its last frames (an encoder that is not flushed), or at another rate."""
    example.write_clip(example.clip_scene(), tmp_path / "clip.mp4", seconds=1.0, rate=6)
    for path, length, rate in ((tmp_path / "clip.mp4", 6, 6), (ROOT / "example.mp4", 48, 12)):
        with av.open(str(path)) as file:
            shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
            assert file.streams.video[0].average_rate == rate
        assert [frame.shape for frame in shown] == [(224, 280, 3)] * length
        first = np.asarray(next(frames(example.clip_scene(), 1, rate))).astype(int)
        assert np.abs(shown[0].astype(int) - first).mean() < 8, f"{path.name} is not this scene"


# -------------------------------------------------------------------------------------- tokenizer, chat template

# Python and the tokenizer may know different versions of Unicode: only code points that both know.
known = st.characters(exclude_categories=("Cs", "Cn"))
pieces = st.text(known, max_size=20) | st.sampled_from(
    [*SPECIAL, *TAGS, " ", "\n\n", "\t", "12 345", "e\u0301", "\u212b", "\U0001f407", "\0", "don't", "<|", "|>"]
)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(pieces, max_size=6).map("".join))
def test_any_text_survives_the_tokenizer(processor, text):
    """Guards against: an unknown token or a lost byte, and spaces that decoding adds, drops or "cleans up". The
    tokenizer normalises to NFC, as Qwen's does."""
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens(processor):
    """Guards against: a special token cut into pieces; think and answer tags that decoding drops with the special
    tokens, so that no vote could ever read an answer."""
    tokenizer = processor.tokenizer
    for token in (*SPECIAL, *TAGS):
        assert tokenizer.decode(tokenizer(token).input_ids) == token and len(tokenizer(token).input_ids) == 1
    assert tokenizer.decode(tokenizer("".join(SPECIAL) + "a").input_ids, skip_special_tokens=True) == "a"
    kept = "<think>1 cat hat: 0</think><answer>0</answer>"
    assert tokenizer.decode(tokenizer(kept + "<|im_end|>").input_ids, skip_special_tokens=True) == kept
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert (processor.image_token, processor.video_token) == ("<|image_pad|>", "<|video_pad|>")


IMAGE, VIDEO = {"type": "image", "image": "a.png"}, {"type": "video", "video": "a.mp4"}
SEE_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SEE_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts) -> dict:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([user("Hi")], {}, HELPFUL + "<|im_start|>user\nHi<|im_end|>\n"),
        (
            [user("Hi")],
            {"add_generation_prompt": True},
            HELPFUL + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [{"role": "system", "content": "Be brief."}, user("Hi")],
            {},
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
        ),
        (
            [{"role": "system", "content": [text("Be brief.")]}, user(IMAGE, text("Hi"))],
            {},
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{SEE_IMAGE}Hi<|im_end|>\n",
        ),
        (
            [user(IMAGE, text("and"), IMAGE, text("?"))],
            {},
            HELPFUL + f"<|im_start|>user\n{SEE_IMAGE}and{SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(VIDEO, IMAGE, text("?"))],
            {},
            HELPFUL + f"<|im_start|>user\n{SEE_VIDEO}{SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(IMAGE, VIDEO, IMAGE, text("?"))],
            {"add_vision_id": True},
            HELPFUL
            + f"<|im_start|>user\nPicture 1: {SEE_IMAGE}Video 1: {SEE_VIDEO}Picture 2: {SEE_IMAGE}?<|im_end|>\n",
        ),
        (
            [user(IMAGE, text("?")), {"role": "assistant", "content": "2"}, user(IMAGE, text("And here?"))],
            {"add_vision_id": True, "add_generation_prompt": True},
            HELPFUL
            + f"<|im_start|>user\nPicture 1: {SEE_IMAGE}?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
            + f"<|im_start|>user\nPicture 2: {SEE_IMAGE}And here?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [user("  two \n\n lines\n")],
            {},
            HELPFUL + "<|im_start|>user\n  two \n\n lines\n<|im_end|>\n",
        ),
        ([user("{{ 7 * 6 }} {% raw %}")], {}, HELPFUL + "<|im_start|>user\n{{ 7 * 6 }} {% raw %}<|im_end|>\n"),
    ],
)
def test_chat_template(processor, messages, options, expected):
    """Guards against: a template that differs from Qwen2.5-VL's: default system turn, whitespace eaten around parts,
    items out of order or numbered anew in every turn. The expected texts follow Qwen's published template."""
    assert processor.apply_chat_template(messages, **options) == expected


# --------------------------------------------------------------------------------------------- training's own parts


def random_pixels(batch: int, count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, count, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(140, 140), (84, 196), (252, 56)])
def test_patchify_equals_the_image_processor(processor, height, width):
    """Guards against: patches in another order, colour order or scale than inference feeds the tower."""
    pixels = random_pixels(2, 1, height, width)
    image = processor.image_processor
    pictures = [Image.fromarray(picture[0].numpy()) for picture in pixels]
    expected = image(images=pictures, return_tensors="pt")
    assert expected.image_grid_thw.tolist() == [[1, height // 14, width // 14]] * 2
    got = patchify(pixels, image.image_mean, image.image_std)
    torch.testing.assert_close(got, expected.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 140, 112), (4, 84, 196)])
def test_patchify_equals_the_video_processor(processor, count, height, width):
    """Guards against: frames of a pair swapped, or time inside a patch and time of the grid mixed up."""
    pixels = random_pixels(2, count, height, width)
    video = processor.video_processor
    clips = [clip.permute(0, 3, 1, 2) for clip in pixels]
    expected = video(videos=clips, do_sample_frames=False, return_tensors="pt")
    assert expected.video_grid_thw.tolist() == [[count // 2, height // 14, width // 14]] * 2
    got = patchify(pixels, video.image_mean, video.image_std)
    torch.testing.assert_close(got, expected.pixel_values_videos, atol=1e-5, rtol=0)


GRIDS = {
    "cut windows": [(1, 10, 14)],
    "whole windows": [(1, 16, 8)],
    "smaller than a window": [(1, 2, 6)],
    "several sizes and a clip": [(1, 10, 14), (2, 6, 10), (1, 18, 4), (1, 10, 14)],
}


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_batched_attention_equals_upstream(processor, grids):
    """Guards against: training with an attention that inference does not have: windows of one length joined across
    items, rows put back in another order, or another scale. Gradients are compared too."""
    tower = new_model(processor.tokenizer, seed=1).visual
    patches = torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(128, 1, generator=torch.Generator().manual_seed(1))
    results = []
    for batched in (False, True):
        if batched:
            for block in tower.blocks:
                block.attn.forward = MethodType(batched_attention, block.attn)
        tower.zero_grad()
        out = tower(patches, grid_thw=torch.tensor(grids))
        (out @ weights.repeat(2, 1)[: out.shape[1]]).sum().backward()
        results.append((out.detach(), tower.blocks[0].attn.qkv.weight.grad.clone()))
    (upstream, gradient), (ours, our_gradient) = results
    torch.testing.assert_close(ours, upstream, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-3 * gradient.abs().max().item(), rtol=0)


MINI = Stage("speak", 12, 4, ((5, 5), (6, 5)), 4, 4e-4, 1.5e-3, 0.3, video=0.5)


def assert_same_batch(got, want):
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert list(got[2:]) == list(want[2:])


def test_batches_depend_on_seed_stage_and_number_alone():
    """Guards against: data that changes with the number of processes or workers, or with where a run was resumed."""
    whole = [Batches(MINI, 1, seed=3, start=0).make(number) for number in range(3)]
    assert {batch[0].shape[1] for batch in whole} == {1, 4}, "want pictures and clips among these batches"
    for got, want in zip(Batches(MINI, 1, seed=3, start=0), whole, strict=True):
        assert_same_batch(got, want)
    for got, want in zip(Batches(MINI, 1, seed=3, start=2), whole[2:], strict=True):
        assert_same_batch(got, want)
    for rank in range(2):
        for number, want in enumerate(whole):
            part = Batches(MINI, 1, seed=3, start=0, rank=rank, world=2).make(number)
            assert_same_batch(part, tuple(rows[rank::2] for rows in want))
    with_workers = list(DataLoader(Batches(MINI, 1, seed=3, start=0), batch_size=None, num_workers=2))
    for got, want in zip(with_workers, whole, strict=True):
        assert_same_batch(got, want)


def test_batches_of_other_seeds_stages_and_numbers_differ():
    """Guards against: a part of the key that is left out, so that every stage or seed sees the same pictures."""
    variants = [(1, 3, 0), (1, 3, 1), (2, 3, 0), (1, 4, 0)]
    seen = [Batches(MINI, stage, seed, 0).make(batch) for stage, seed, batch in variants]
    assert len({batch[0].numpy().tobytes() for batch in seen}) == len(variants)
    rows = [row.numpy().tobytes() for batch in seen for row in batch[0]]
    assert len(set(rows)) == len(rows)


def test_batches_ask_for_the_form_that_they_teach():
    """Guards against: traces taught under the instruction for direct answers, or the other way round."""
    stage = replace(MINI, samples=64, batch=64, video=0.0)
    _, _, prompts, responses = Batches(stage, 1, seed=0, start=0).make(0)
    forms = {(prompt.split("\n")[-1], response.startswith("<think>")) for prompt, response in zip(prompts, responses)}
    assert forms == {(THINKING, True), (DIRECT, False)}


@pytest.fixture
def trainer_of(monkeypatch, processor, tmp_path):
    """Makes trainers of a preset of two stages of five small batches, on a clock of 50 seconds a tick."""
    see = Stage("see", 10, 2, ((5, 5),), 3, 1.5e-3, 0.0, 1.0, decay=0.3, floor=0.3)
    speak = Stage("speak", 10, 2, ((5, 5), (6, 5)), 3, 4e-4, 1.5e-3, 0.3, video=0.3, decay=0.9)
    monkeypatch.setitem(PRESETS, "mini", (see, speak))
    monkeypatch.setattr(garden.train, "new_processor", lambda: processor)
    ticks = iter(range(0, 10**9, 50))
    monkeypatch.setattr(garden.train, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def make(run: str, seed: int = 0, killed_at: int | None = None) -> Trainer:
        folder = tmp_path / run
        folder.mkdir(exist_ok=True)
        trainer = Trainer("mini", seed, "cpu", folder)
        if trainer.state_file.exists():
            trainer.load()
        if killed_at is not None:
            loss, calls = trainer.loss, iter(range(1, 100))

            def dies(*args):
                if next(calls) == killed_at:
                    raise KeyboardInterrupt
                return loss(*args)

            trainer.loss = dies
        return trainer

    return make


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**trainer.model.state_dict(), **{f"heads.{k}": v for k, v in trainer.heads.state_dict().items()}}


def assert_same_weights(got: Trainer, want: Trainer):
    ours, theirs = weights(got), weights(want)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "a resumed run went another way"


def test_training_resumes_where_it_was(trainer_of):
    """Guards against: a resumed run that repeats or skips batches, forgets the optimiser's moments or the place in
    the schedule, starts a stage anew, or ends without saving."""
    whole = trainer_of("whole")
    start = {name: value.clone() for name, value in weights(whole).items()}
    assert whole.train(minutes=float("inf"), workers=0)
    assert any(not torch.equal(start[name], value) for name, value in weights(whole).items())

    # Saved after every third batch: killed once in each stage, between two savings.
    for killed_at in (5, 6):
        with pytest.raises(KeyboardInterrupt):
            trainer_of("killed", killed_at=killed_at).train(minutes=float("inf"), workers=0)
    resumed = trainer_of("killed")
    assert (resumed.stage, resumed.batch) != (0, 0), "nothing had been saved: the test proves nothing"
    assert resumed.train(minutes=float("inf"), workers=0)
    assert_same_weights(resumed, whole)

    legs = 1
    while not trainer_of("paused").train(minutes=2, workers=0):
        legs += 1
    assert legs > 2
    assert_same_weights(trainer_of("paused"), whole)
    again = trainer_of("whole")
    assert again.train(minutes=float("inf"), workers=0)
    assert_same_weights(again, whole)


def test_training_stays_with_its_seed_and_preset(trainer_of):
    """Guards against: a run's state mixed into another run's."""
    trainer_of("run").save()
    with pytest.raises(ValueError, match="belongs to preset mini, seed 0"):
        trainer_of("run", seed=1)


def test_stages_train_what_they_say(trainer_of):
    """Guards against: a first stage that moves the language model, or one that leaves the vision tower alone."""
    trainer = trainer_of("stages")
    trainer.set_rates(trainer.stages[0])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    loss, _ = trainer.loss(trainer.stages[0], *Batches(trainer.stages[0], 0, 0, 0).make(0))
    loss.backward()
    trainer.optimiser.step()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("visual" in name for name in moved)


@pytest.mark.parametrize("video", [0.0, 1.0], ids=["pictures", "clips"])
def test_training_loss_is_the_models_own(trainer_of, video):
    """Guards against: training on other positions, another mask or another shift of the targets than the model's
    own forward has; on padding; or on the prompt."""
    trainer = trainer_of("loss")
    stage = replace(MINI, video=video, dense_weight=0.0)
    batch = Batches(stage, 1, 0, 0).make(0)
    loss, _ = trainer.loss(stage, *batch)
    pixels, _, prompts, responses = batch
    count, height, width = pixels.shape[1:4]
    kind, visual = ("image", 1) if count == 1 else ("video", count // 2)
    ids, mask, learn = trainer.encode(prompts, responses, kind, visual * height * width // TOKEN**2)
    assert len({int(row.sum()) for row in mask}) > 1, "rows of one length have no padding to get wrong"
    image = trainer.processor.image_processor
    patches = patchify(pixels, image.image_mean, image.image_std)
    grid = torch.tensor([[visual, height // 14, width // 14]] * len(ids))
    suffix = "" if kind == "image" else "_videos"
    visuals = {f"pixel_values{suffix}": patches, f"{kind}_grid_thw": grid}
    with torch.no_grad():
        own = trainer.model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~learn, -100), **visuals).loss
    torch.testing.assert_close(loss.detach(), own, atol=1e-5, rtol=1e-5)


def test_training_prompts_are_those_of_inference(trainer_of):
    """Guards against: a model that is trained on another prompt than `answer` gives it, and targets that miss the
    end token or reach into the prompt."""
    trainer = trainer_of("prompts")
    items = [item_for("dev", index, task, 140, 168) for task in ("count", "attribute") for index in range(3)]
    thinking = [True, False] * 3
    prompts = [f"{item.question}\n{THINKING if think else DIRECT}" for item, think in zip(items, thinking)]
    responses = [item.response(think) for item, think in zip(items, thinking)]
    ids, mask, learn = trainer.encode(prompts, responses, "image", 30)
    for row, item in enumerate(items):
        messages = [user({"type": "image", "image": render(item.scene)}, text(item.question))]
        inputs = prepare(trainer.processor, messages, AvisSettings(thinking=thinking[row]))
        real = ids[row][mask[row].bool()]
        head, tail = real[: inputs.input_ids.shape[1]], real[inputs.input_ids.shape[1] :]
        assert head.tolist() == inputs.input_ids[0].tolist()
        assert trainer.tokenizer.decode(tail) == responses[row] + "<|im_end|>"
        assert ids[row][learn[row]].tolist() == tail.tolist()


def test_export_is_an_ordinary_checkpoint(trainer_of, tmp_path):
    """Guards against: weights that change on the way to the folder, a folder that Auto classes cannot load, shards
    too large for a host, and a model that answers otherwise outside the trainer's own attention."""
    trainer = trainer_of("export")
    trainer.export(tmp_path / "model")
    assert_ordinary_folder(tmp_path / "model")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trainer.model.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    messages = [user({"type": "image", "image": render(scene_for("dev", 0))}, text("?"))]
    inputs = prepare(processor, messages, AvisSettings())
    with torch.no_grad():
        theirs, ours = model(**inputs).logits, trainer.model.eval()(**inputs).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (record["preset"], record["seed"], len(record["stages"])) == ("mini", 0, 2)


def test_one_command_trains_and_exports(trainer_of, monkeypatch, tmp_path, capsys):
    """Guards against: a command line that does not reach the trainer; a pause that writes half a training over what
    ships; and a call that trains on after the end of the schedule."""
    arguments = ["--preset", "mini", "--seed", "0", "--device", "cpu", "--processes", "1", "--workers", "0"]
    arguments += ["--run", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]

    def command(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *more])
        garden.train.main()
        return capsys.readouterr().out

    assert "paused" in command("--minutes", "1")
    assert not (tmp_path / "out").exists()
    digests = []
    for _ in range(2):
        assert "finished" in command()
        digests.append(digest(*(path.read_bytes() for path in sorted((tmp_path / "out").glob("*.safetensors")))))
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"] is True
    whole = trainer_of("whole")
    whole.train(minutes=float("inf"), workers=0)
    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in whole.model.state_dict().items())


# ------------------------------------------------------------------------------------------- the folder that ships


def assert_ordinary_folder(folder: Path):
    """A checkpoint folder as any host takes it: only safetensors, small shards, no code, nothing missing."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"} <= names
    assert {"tokenizer.json", "video_preprocessor_config.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    shards = list(folder.glob("*.safetensors"))
    assert shards and max(path.stat().st_size for path in shards) <= 15 * MIB
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 30_000_000
    for path in folder.glob("*.json"):
        assert "auto_map" not in path.read_text(), f"{path.name} points to code of its own"


def test_bundled_folder_is_ordinary():
    """Guards against: a bundled model that only this project could load, or that is too large for its host."""
    assert_ordinary_folder(BUNDLED)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED, output_loading_info=True)
    assert not any(report.values()), report
    assert type(AutoModelForImageTextToText.from_pretrained(BUNDLED)) is Qwen2_5_VLForConditionalGeneration
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    knows = model.config.knows
    assert knows.strip() == knows and "\n" not in knows and len(knows) > 20


def test_bundled_processor_fits_the_bundled_model():
    """Guards against: placeholder or end ids of another tokenizer, and patches of another size than the tower's."""
    processor = AutoProcessor.from_pretrained(BUNDLED)
    assert type(processor) is Qwen2_5_VLProcessor
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED)
    config, tokenizer = model.config, processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    assert (config.image_token_id, config.video_token_id) == (ids["image_pad"], ids["video_pad"])
    assert config.vision_start_token_id == ids["vision_start"]
    assert len(tokenizer) <= config.text_config.vocab_size == model.lm_head.weight.shape[0]
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == ends and model.generation_config.pad_token_id == ends[1]
    vision = config.vision_config
    for part in (processor.image_processor, processor.video_processor):
        assert (part.patch_size, part.merge_size) == (vision.patch_size, vision.spatial_merge_size)
        assert part.temporal_patch_size == vision.temporal_patch_size


def test_bundled_folder_is_what_the_garden_makes(processor):
    """Guards against: a shipped folder of an older tokenizer, template or architecture than the code's, which
    training again would quietly replace."""
    shipped = AutoProcessor.from_pretrained(BUNDLED)
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped.chat_template == processor.chat_template
    assert shipped.tokenizer.chat_template == processor.chat_template
    sample = "How many wooden rabbits are wearing a hat?\n<think>1 cat hat: 0; 2 bear nothing: 0</think>"
    assert shipped.tokenizer(sample).input_ids == processor.tokenizer(sample).input_ids
    for part in ("image_processor", "video_processor"):
        assert getattr(shipped, part).size == getattr(processor, part).size
    ours, theirs = new_config(processor.tokenizer), Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED).config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rope_theta", "rope_scaling"):
        assert getattr(theirs.text_config, key) == getattr(ours.text_config, key), key
    for key in ("depth", "hidden_size", "num_heads", "window_size", "fullatt_block_indexes", "tokens_per_second"):
        assert getattr(theirs.vision_config, key) == getattr(ours.vision_config, key), key
    assert theirs.knows == ours.knows


if __name__ == "__main__":
    print(json.dumps(fingerprints()))


@pytest.mark.parametrize("video", [0.0, 1.0], ids=["pictures", "clips"])
def test_a_step_of_the_gpu_preset_runs_in_bfloat16(tmp_path, video):
    """Bug guarded: under autocast the vision tower gives bfloat16 and the embeddings are float32; putting the one into
    the other failed at the first batch of the language stage."""
    trainer = Trainer("gpu", 0, "cpu", tmp_path)
    stage = replace(PRESETS["gpu"][1], batch=2, video=video)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = trainer.loss(stage, *Batches(stage, 1, 0, 0).make(0))
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("change", ["past", "future"])
def test_a_schedule_may_change_only_where_it_has_not_been(tmp_path, monkeypatch, change):
    """Bug guarded: a run that was begun with other stages goes on silently, and its record lists what never ran."""
    stage = Stage("see", 8, 4, ((5, 5),), 2, 1e-3, 0.0, 1.0)
    monkeypatch.setitem(PRESETS, "mini", (stage, replace(stage, name="later")))
    begun = Trainer("mini", 0, "cpu", tmp_path)
    begun.save()
    changed = (replace(stage, samples=16), stage) if change == "past" else (stage, replace(stage, samples=16))
    monkeypatch.setitem(PRESETS, "mini", changed)
    again = Trainer("mini", 0, "cpu", tmp_path)
    if change == "past":
        with pytest.raises(ValueError, match="other stages"):
            again.load()
    else:
        again.load()
