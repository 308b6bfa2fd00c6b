"""The bundled model's parts: its tokenizer, template and processors, its training, and the folder that ships.

Nothing here asks how well a model answers: that is measured by the evaluation, not by tests. Scenes, pictures and
questions have tests of their own.
"""

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_5_vl.flops import decode_flops, prefill_flops

import avis.garden.train
from avis.answers import extract_answer
from avis.config import AvisConfig
from avis.garden.model import SPECIAL, TAGS, VOCABULARY, new_config, new_model, new_processor
from avis.garden.render import render
from avis.garden.scenes import CLASSES, LABELS, SPLITS, TOKEN, dense_labels, rng_for
from avis.garden.tasks import SPLIT_SIZES, TASKS, item_for, make_item
from avis.garden.train import (
    PRESETS,
    SMALL,
    Batches,
    Pack,
    Stage,
    Trainer,
    batched_attention,
    make_pack,
    one_hot,
    patchify,
)
from avis.inputs import prepare_inputs
from avis.prompts import DIRECT, THINKING, answer_format_for, with_instruction

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "garden-tiny"
MIB = 2**20


@pytest.fixture(scope="module")
def processor():
    """The processor made anew (seconds); the shipped one is compared with it."""
    return new_processor()


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# -------------------------------------------------------------------------------------- tokenizer, chat template


def vocabulary_of(processor: Qwen2_5_VLProcessor) -> str:
    return digest(processor.tokenizer.backend_tokenizer.to_str().encode())


def test_another_process_makes_the_same_tokenizer(processor):
    """Guards against: `hash()` of a string or the order of a set in the words that the vocabulary is learnt from, by
    which a model would be read with another vocabulary than it was trained with."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == vocabulary_of(processor)


# Python and the tokenizer may know different versions of Unicode: only code points that both know.
known = st.characters(exclude_categories=("Cs", "Cn"))
pieces = st.text(known, max_size=20) | st.sampled_from(
    [*SPECIAL, *TAGS, " ", "\n\n", "\t", "12 345", "e\u0301", "\u212b", "\U0001f407", "\0", "don't", "<|", "|>", "A7 K"]
)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces, max_size=6).map("".join))
def test_any_text_survives_the_tokenizer(processor, text):
    """Guards against: an unknown token or a lost byte, and spaces that decoding adds, drops or "cleans up". The
    tokenizer normalises to NFC, as Qwen's does."""
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens(processor):
    """Guards against: a special token cut into pieces; think and answer tags that decoding drops with the special
    tokens, so that no vote could ever read an answer; more tokens than the model has embeddings for."""
    tokenizer = processor.tokenizer
    for token in (*SPECIAL, *TAGS):
        assert tokenizer.decode(tokenizer(token).input_ids) == token and len(tokenizer(token).input_ids) == 1
    assert tokenizer.decode(tokenizer("".join(SPECIAL) + "a").input_ids, skip_special_tokens=True) == "a"
    kept = "<think>left: 1 cat hat 0; 0</think><answer>0</answer>"
    assert tokenizer.decode(tokenizer(kept + "<|im_end|>").input_ids, skip_special_tokens=True) == kept
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert (processor.image_token, processor.video_token) == ("<|image_pad|>", "<|video_pad|>")
    assert len(tokenizer) <= VOCABULARY


def test_signs_and_numbers_are_cut_into_single_letters(processor):
    """Guards against: letters of signs and digits of numbers merged into tokens of two or three, which cannot be
    spelt out, or standing apart from their space, which doubles the length of every trace."""
    cut = processor.tokenizer.tokenize
    for sign in ("A7KX", "HELP", "TRUNK", "23467"):
        assert len(cut(sign)) == len(sign)
    for words, tokens in ((" 3 rabbit glasses 2,", 5), (" N H L 4 Y", 5), (" 12", 2), ("left: 1", 3)):
        assert len(cut(words)) == tokens, cut(words)


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


def random_pixels(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(140, 140), (84, 196), (252, 56)])
def test_patchify_equals_the_image_processor(processor, height, width):
    """Guards against: patches in another order, colour order or scale than inference feeds the tower."""
    shown = random_pixels(1, height, width)
    image = processor.image_processor
    expected = image(images=[Image.fromarray(shown[0])], return_tensors="pt")
    assert expected.image_grid_thw.tolist() == [[1, height // 14, width // 14]]
    got = patchify(torch.from_numpy(shown), image.image_mean, image.image_std)
    torch.testing.assert_close(got, expected.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 140, 112), (4, 84, 196)])
def test_patchify_equals_the_video_processor(processor, count, height, width):
    """Guards against: frames of a pair swapped, or time inside a patch and time of the grid mixed up."""
    shown = random_pixels(count, height, width)
    video = processor.video_processor
    clip = torch.from_numpy(shown).permute(0, 3, 1, 2)
    expected = video(videos=[clip], do_sample_frames=False, return_tensors="pt")
    assert expected.video_grid_thw.tolist() == [[count // 2, height // 14, width // 14]]
    got = patchify(torch.from_numpy(shown), video.image_mean, video.image_std)
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


EASY = (0.5, 0.3, 0.2, 0.0, 0.0)
TINY = ((5, 5), (6, 5))
MINI = Stage("speak", 9, 3, TINY, (0.4, 0.3, 0.3), EASY, 3, 4e-4, 1.5e-3, 0.3)


@pytest.fixture(autouse=True)
def small_clips(monkeypatch):
    """Pairs and clips are drawn at sizes of training's own: here they are tiny."""
    monkeypatch.setattr(avis.garden.train, "SMALL", TINY)


def assert_same_pack(got: Pack, want: Pack):
    assert (got.medium, got.asked) == (want.medium, want.asked)
    for ours, theirs in ((got.shown, want.shown), (got.dense, want.dense)):
        assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_same_batch(got: list[Pack], want: list[Pack]):
    for ours, theirs in zip(got, want, strict=True):
        assert_same_pack(ours, theirs)


def test_batches_depend_on_seed_stage_and_number_alone():
    """Guards against: data that changes with the number of processes or workers, or with where a run was resumed; and
    rows of a batch that two processes train on both, or neither."""
    whole = [Batches(MINI, 1, seed=3, start=0).make(number) for number in range(3)]
    assert all(len(batch) == MINI.batch for batch in whole)
    for start in (0, 2):
        made = list(Batches(MINI, 1, seed=3, start=start))
        assert len(made) == 3 - start
        for got, want in zip(made, whole[start:], strict=True):
            assert_same_batch(got, want)
    parts = [Batches(MINI, 1, seed=3, start=0, rank=rank, world=2).make(1) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 1]
    for rank, part in enumerate(parts):
        assert_same_batch(part, whole[1][rank::2])
    with_workers = list(DataLoader(Batches(MINI, 1, seed=3, start=0), batch_size=None, num_workers=2))
    for got, want in zip(with_workers, whole, strict=True):
        assert_same_batch(got, want)


def test_batches_of_other_seeds_stages_and_numbers_differ():
    """Guards against: a part of the key that is left out, so that every stage or seed sees the same pictures."""
    stage = replace(MINI, media=(1.0, 0.0, 0.0))
    variants = [(1, 3, 0), (1, 3, 1), (2, 3, 0), (1, 4, 0)]
    packs = [pack for number, seed, batch in variants for pack in Batches(stage, number, seed, 0).make(batch)]
    assert len({pack.shown[0].tobytes() for pack in packs}) == len(packs)


def pack_of(medium: str, number: int, questions: int = 4, size: tuple[int, int] = (6, 5), **change) -> Pack:
    """A pack as training makes it."""
    return make_pack(rng_for("train", 900, number), replace(MINI, questions=questions, **change), medium, size)


def test_packs_hold_what_is_asked_about_them():
    """Guards against: labels of another size than the picture, questions of one task only, traces taught under the
    instruction for direct answers or the other way round, and only one form of question."""
    asked = []
    for number in range(6):
        for medium, count in (("image", 1), ("images", 2), ("video", 1)):
            pack = pack_of(medium, number, questions=6)
            assert len(pack.shown) == len(pack.dense) == count and len(pack.asked) == 6
            for shown, dense in zip(pack.shown, pack.dense, strict=True):
                frames, height, width, _ = shown.shape
                assert (height, width) == (5 * TOKEN, 6 * TOKEN)
                assert frames == 1 if medium != "video" else frames % 2 == 0
                assert dense.shape == (max(1, frames // 2), 5, 6, len(LABELS))
            asked += pack.asked
            if medium == "image":
                assert len({prompt.split("\n")[0] for prompt, _ in pack.asked}) > 3
    forms = {(prompt.split("\n")[-1], response.startswith("<think>")) for prompt, response in asked}
    assert forms == {(THINKING, True), (DIRECT, False)}
    assert {"\nA. " in prompt for prompt, _ in asked} == {False, True}
    assert all(response.endswith("</answer>") for _, response in asked)


@pytest.fixture
def trainer_of(monkeypatch, processor, tmp_path):
    """Makes trainers of a preset of two stages of five tiny batches, on a clock of 50 seconds a tick."""
    see = Stage("see", 10, 2, TINY, (1.0, 0.0, 0.0), EASY, 1, 1.5e-3, 0.0, 1.0, decay=0.3, floor=0.3)
    speak = Stage("speak", 10, 2, TINY, (0.6, 0.2, 0.2), EASY, 2, 4e-4, 1.5e-3, 0.3, decay=0.9)
    monkeypatch.setitem(PRESETS, "mini", (see, speak))
    monkeypatch.setattr(avis.garden.train, "new_processor", lambda: processor)
    ticks = iter(range(0, 10**9, 50))
    monkeypatch.setattr(avis.garden.train, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def make(run: str, seed: int = 0, killed_at: int | None = None, start: Path | None = None) -> Trainer:
        folder = tmp_path / run
        folder.mkdir(exist_ok=True)
        trainer = Trainer("mini", seed, "cpu", folder, start=start)
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


# --------------------------------------------------------------------- several questions in a row, each as if alone


def enlarge(model: Qwen2_5_VLForConditionalGeneration):
    """Weights with which every token matters: fresh ones hide a wrong position or mask inside any tolerance."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            std = 1.2 / parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * std


def as_asked_alone(trainer: Trainer, pack: Pack, number: int) -> tuple[torch.Tensor, int]:
    """The ordinary model's logits for one question of a pack with its response, and the length of the response.

    Through the processor and the model's own positions, attention and mask, with pictures instead of patches.
    """
    model = Qwen2_5_VLForConditionalGeneration(trainer.model.config).eval()
    model.load_state_dict(trainer.model.state_dict())
    prompt, response = pack.asked[number]
    kind = "video" if pack.medium == "video" else "image"
    chat = [user(*({"type": kind} for _ in pack.shown), text(prompt))]
    words = trainer.processor.apply_chat_template(chat, add_generation_prompt=True)
    if kind == "image":
        visuals = dict(images=[Image.fromarray(shown[0]) for shown in pack.shown])
    else:
        clips = [torch.from_numpy(shown).permute(0, 3, 1, 2) for shown in pack.shown]
        visuals = dict(videos=clips, videos_kwargs=dict(fps=[2.0], do_resize=False, do_sample_frames=False))
    inputs = trainer.processor(text=[words + response + "<|im_end|>"], return_tensors="pt", **visuals)
    length = len(trainer.tokenizer(response).input_ids) + 1
    with torch.no_grad():
        return model(**inputs).logits[0], length


def row_logits(trainer: Trainer, packs: list[Pack]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The language model's logits for packed rows, and the rows."""
    image, model = trainer.processor.image_processor, trainer.model.eval()
    rows = trainer.encoder.rows(packs)
    shown = [torch.from_numpy(pictures) for pack in packs for pictures in pack.shown]
    patches = [patchify(pictures, image.image_mean, image.image_std) for pictures in shown]
    grid = torch.tensor([[d.shape[0], 2 * d.shape[1], 2 * d.shape[2]] for pack in packs for d in pack.dense])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(rows["ids"])
        visual = (rows["ids"] == model.config.image_token_id) | (rows["ids"] == model.config.video_token_id)
        embeds[visual] = model.visual(torch.cat(patches), grid_thw=grid)
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": rows["mask"]},
            position_ids=rows["positions"],
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden), rows


@pytest.mark.parametrize("medium", ["image", "images", "video"])
def test_questions_in_one_row_are_answered_as_if_alone(trainer_of, medium):
    """Guards against: a question that sees another one or its response, positions other than it has at inference (after
    a picture, a pair, a clip), and rows that see their padding. Each response's logits are those of the ordinary model
    that is asked this question alone."""
    trainer = trainer_of("rows")
    enlarge(trainer.model)
    # Two rows of unequal length: the shorter one is padded.
    packs = [pack_of(medium, 1, questions=3), pack_of(medium, 2, questions=1, size=(5, 5))]
    logits, rows = row_logits(trainer, packs)
    assert not rows["learn"][1, -1] and rows["learn"][0, -1]
    for row, pack in enumerate(packs):
        where = rows["learn"][row].nonzero()[:, 0]
        at = 0
        for number, (_, response) in enumerate(pack.asked):
            alone, length = as_asked_alone(trainer, pack, number)
            own = where[at : at + length]
            expected = trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id]
            assert rows["ids"][row, own].tolist() == expected
            # The token before each of them predicts it.
            torch.testing.assert_close(logits[row, own - 1], alone[-length - 1 : -1], atol=1e-4, rtol=1e-4)
            at += length
        assert at == len(where)


def test_loss_is_the_models_own_over_all_responses(trainer_of):
    """Guards against: a loss over the prompt, over padding or over another shift of the targets, features given to the
    placeholders of another picture, and dense targets that do not count as much as the stage says."""
    trainer = trainer_of("loss")
    enlarge(trainer.model)
    trainer.model.eval()
    packs = [pack_of("images", 3, questions=2), pack_of("images", 4, questions=1, size=(5, 5))]
    losses, lengths = [], []
    for pack in packs:
        for number, (_, response) in enumerate(pack.asked):
            alone, length = as_asked_alone(trainer, pack, number)
            targets = torch.tensor(trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id])
            losses.append(F.cross_entropy(alone[-length - 1 : -1], targets, reduction="sum"))
            lengths.append(length)
    batch = trainer.encoder.batch(packs)
    with torch.no_grad():
        text_only, seen = trainer.loss(replace(MINI, dense_weight=0.0), batch)
        dense_only, _ = trainer.loss(replace(MINI, text_rate=0.0), batch)
        both, _ = trainer.loss(replace(MINI, dense_weight=0.3), batch)
    torch.testing.assert_close(text_only, sum(losses) / sum(lengths), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both, text_only + 0.3 * dense_only, atol=1e-4, rtol=1e-4)
    assert 0 <= float(seen["exact"]) <= 1
    longer = [packs[0], pack_of("images", 5, questions=6)]  # more padding after the first row's questions
    first, _ = row_logits(trainer, packs[:1])
    padded, _ = row_logits(trainer, longer)
    torch.testing.assert_close(padded[0, : first.shape[1]], first[0], atol=1e-4, rtol=1e-4)


def test_exact_answers_are_counted_by_response(trainer_of):
    """Guards against: a share of right answers that counts tokens, or joins neighbouring responses."""
    trainer = trainer_of("exact")
    pack = pack_of("image", 6, questions=3)
    stage = replace(MINI, dense_weight=0.0)
    rows = trainer.encoder.rows([pack])
    ids = rows["ids"][:, 1:][rows["learn"][:, 1:]]
    ends = (ids == trainer.tokenizer.eos_token_id).nonzero()[:, 0]
    assert len(ends) == 3

    class Says(torch.nn.Module):
        """A head that says what it is told to, whatever it sees."""

        def __init__(self, words):
            super().__init__()
            self.words = words

        def forward(self, hidden):
            return F.one_hot(self.words, VOCABULARY).float() + 0 * hidden.sum()

    for wrong, share in (((), 1.0), ((0,), 2 / 3), ((0, 1), 2 / 3), ((int(ends[0]), int(ends[0]) + 1), 1 / 3)):
        words = ids.clone()
        words[list(wrong)] = 0
        trainer.model.lm_head = Says(words)
        with torch.no_grad():
            _, seen = trainer.loss(stage, trainer.encoder.batch([pack]))
        assert float(seen["exact"]) == pytest.approx(share)


def test_conclusions_count_as_much_as_the_stage_says(trainer_of, monkeypatch):
    """Guards against: weight on the trace instead of what follows its last semicolon, on a neighbouring response's,
    none on answers without a trace, and a weight that changes the loss where all tokens are conclusions."""
    trainer = trainer_of("conclusions")
    responses = (
        "<think>left: 1 cat hat 1; check: 1; 1 C</think><answer>C</answer>",
        "<answer>B</answer>",
        "<think>1 duck; 1</think><answer>1</answer>",
    )
    ends = (
        " 1 C</think><answer>C</answer><|im_end|>",
        "<answer>B</answer><|im_end|>",
        " 1</think><answer>1</answer><|im_end|>",
    )
    ids = [trainer.tokenizer(response).input_ids + [trainer.tokenizer.eos_token_id] for response in responses]
    number = torch.tensor([n for n, part in enumerate(ids) for _ in part])
    found = trainer.concluding(torch.tensor(sum(ids, [])), number)
    kept = [[word for word, yes in zip(part, found[number == n], strict=True) if yes] for n, part in enumerate(ids)]
    assert [trainer.tokenizer.decode(part) for part in kept] == list(ends)

    enlarge(trainer.model)
    trainer.model.eval()
    stage = replace(MINI, dense_weight=0.0)
    pack = pack_of("image", 9, questions=2)
    direct = replace(pack, asked=[(question, "<answer>B</answer>") for question, _ in pack.asked])
    for shown, alike in ((direct, True), (pack, False)):
        batch = trainer.encoder.batch([shown])
        with torch.no_grad():
            plain, seen = trainer.loss(stage, batch)
            weighted, same = trainer.loss(replace(stage, conclusion=3.0), batch)
        assert torch.equal(seen["loss"], same["loss"])
        assert torch.isclose(plain, weighted) == alike


def test_a_stage_may_ask_for_answers_in_a_box():
    """Guards against: another backbone that is trained on the first one's form of answers, or asked in other words than
    its profile's at inference; and a box that the vote does not read."""
    profile = answer_format_for("", "vl-rethinker")
    stage = replace(PRESETS["boxed"][0], questions=12)
    pack = make_pack(np.random.default_rng(1), stage, "image", (6, 6))
    assert {prompt.rpartition("\n")[2] for prompt, _ in pack.asked} == {profile.thinking, profile.direct}
    plain = make_pack(np.random.default_rng(1), replace(stage, answer_format="avis"), "image", (6, 6))
    for (_, boxed), (_, tagged) in zip(pack.asked, plain.asked, strict=True):
        assert boxed.endswith("}") and "<answer>" not in boxed
        assert extract_answer(boxed) == extract_answer(tagged)
        assert boxed.partition("</think>")[0] == tagged.partition("</think>")[0] or "<think>" not in boxed


def test_stages_ask_as_many_choices_as_they_say():
    """Guards against: a share of multiple choice that a stage does not follow."""
    for share in (0.0, 1.0):
        stage = replace(MINI, choices=share, questions=4)
        packs = [make_pack(np.random.default_rng(seed), stage, "image", (6, 6)) for seed in range(4)]
        assert {"\nA. " in question for pack in packs for question, _ in pack.asked} == {bool(share)}


def test_training_prompts_are_those_of_inference(trainer_of):
    """Guards against: a model that is trained on another prompt than `answer` gives it, and targets that miss the
    end token or reach into the prompt."""
    trainer = trainer_of("prompts")
    for index, task in enumerate(("count", "more", "price")):
        item = make_item(rng_for("dev", 901, index), task, 1, ("free", "choice")[index % 2], (5, 6))
        thinking = index != 1
        prompt = f"{item.question}\n{THINKING if thinking else DIRECT}"
        pictures = [np.asarray(render(scene))[None] for scene in item.scenes]
        dense = [dense_labels(scene) for scene in item.scenes]
        rows = trainer.encoder.rows([Pack(pictures, dense, item.medium, [(prompt, item.response(thinking))])])
        shown = [{"type": "image", "image": Image.fromarray(picture[0])} for picture in pictures]
        inputs = prepare_inputs(
            trainer.processor, [user(*shown, text(item.question))], AvisConfig(enable_thinking=thinking)
        )
        ids, learn = rows["ids"][0], rows["learn"][0]
        assert ids[~learn].tolist() == inputs.input_ids[0].tolist()
        assert trainer.tokenizer.decode(ids[learn]) == item.response(thinking) + "<|im_end|>"


# --------------------------------------------------------------------------------------------- schedule and resuming


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    aside = {"palette": trainer.palette.detach(), "spread": trainer.spread}
    return {**trainer.model.state_dict(), **{f"heads.{k}": v for k, v in trainer.heads.state_dict().items()}, **aside}


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


def test_reasoning_without_pictures_resumes_where_it_was(trainer_of, monkeypatch):
    """Guards against: a palette that a resumed run forgets, or fits anew to a tower that has moved on."""
    see, speak = PRESETS["mini"]
    recite = replace(speak, name="recite", vision_rate=0.0, eyes=False)
    monkeypatch.setitem(PRESETS, "mini", (replace(see, pictures=4), recite, replace(recite, name="reason")))
    monkeypatch.setattr(Trainer, "fit_palette", partialmethod(Trainer.fit_palette, pictures=8))
    whole = trainer_of("whole")
    assert whole.train(minutes=float("inf"), workers=0)
    assert whole.palette.abs().sum() > 0 and whole.spread.abs().sum() > 0
    legs = 1
    while not trainer_of("paused").train(minutes=2, workers=0):
        legs += 1
    assert legs > 2
    assert_same_weights(trainer_of("paused"), whole)


def test_training_stays_with_its_seed_and_preset(trainer_of):
    """Guards against: a run's state mixed into another run's."""
    trainer_of("run").save()
    with pytest.raises(ValueError, match="belongs to preset mini, seed 0"):
        trainer_of("run", seed=1)


@pytest.mark.parametrize("change", ["past", "future"])
def test_a_schedule_may_change_only_where_it_has_not_been(trainer_of, monkeypatch, change):
    """Guards against: a run that was begun with other stages and goes on silently, while its record lists what never
    ran."""
    begun = trainer_of("begun")
    begun.batch = 1
    begun.save()
    first, second = PRESETS["mini"]
    changed = (replace(first, pictures=16), second) if change == "past" else (first, replace(second, pictures=16))
    monkeypatch.setitem(PRESETS, "mini", changed)
    if change == "past":
        with pytest.raises(ValueError, match="other stages"):
            trainer_of("begun")
    else:
        assert trainer_of("begun").stage == 0


def test_stages_train_what_they_say(trainer_of):
    """Guards against: a first stage that moves the language model, or one that leaves the vision tower alone."""
    trainer = trainer_of("stages")
    trainer.set_rates(trainer.stages[0])
    before = {name: value.clone() for name, value in weights(trainer).items()}
    loss, _ = trainer.loss(trainer.stages[0], trainer.encoder.batch(Batches(trainer.stages[0], 0, 0, 0).make(0)))
    loss.backward()
    trainer.optimiser.step()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert any("visual" in name for name in moved) and any("heads" in name for name in moved)
    assert all("visual" in name or "heads" in name for name in moved)


def test_a_stage_without_eyes_trains_language_and_palette_alone(trainer_of):
    """Guards against: pictures drawn for nothing, a tower that moves without seeing, and a palette that stays."""
    trainer = trainer_of("blind")
    blind = replace(trainer.stages[1], eyes=False)
    packs = Batches(blind, 1, 0, 0).make(0)
    assert all(not pack.shown and pack.dense for pack in packs)
    seeing = Batches(replace(blind, eyes=True), 1, 0, 0).make(0)
    assert [pack.asked for pack in packs] == [pack.asked for pack in seeing], "the questions are not those of pictures"
    trainer.palette.data.normal_()
    trainer.set_rates(blind)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    trainer.loss(blind, trainer.encoder.batch(packs))[0].backward()
    trainer.optimiser.step()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert "palette" in moved and "lm_head.weight" in moved
    assert not [name for name in moved if "visual" in name or "heads" in name]


def test_palette_and_tower_are_fitted_to_each_other(trainer_of, monkeypatch):
    """Guards against: rows of the palette given to other labels, tokens in the order of windows beside labels in the
    order of the picture, a spread that is not the features' distance from the palette, and a tower that a stage
    without eyes leaves with features of its own."""
    trainer = trainer_of("palette")
    enlarge(trainer.model)
    stage, last = trainer.stages[0], trainer.model.visual.merger.mlp[-1]
    trainer.fit_palette(stage, pictures=80)
    inputs, labels = trainer.survey(stage, 8)
    rows = trainer.encoder.batch(Batches(replace(stage, batch=8), 90, 0, 0).make(0), text=False)
    assert torch.equal(rows["labels"], labels)
    with torch.no_grad():
        features = trainer.features(rows)
    torch.testing.assert_close(F.linear(inputs[:, :-1], last.weight, last.bias), features, atol=1e-4, rtol=1e-4)
    assert (inputs[:, -1] == 1).all()

    # Labels that the inputs tell: the last layer finds them again, and so do the heads.
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randint(n, (4000,), generator=generator) for n in CLASSES], dim=1)
    which = F.pad(one_hot(labels), (0, inputs.shape[1] - 1 - sum(CLASSES)))
    mixed = which @ torch.randn(which.shape[1], which.shape[1], generator=generator)
    monkeypatch.setattr(trainer, "survey", lambda stage, pictures: (F.pad(mixed, (0, 1), value=1.0), labels))
    trainer.palette.data.normal_()
    trainer.fit_tower(stage)
    with torch.no_grad():
        features = last(mixed)
        assert (features - trainer.described(labels)).square().mean() < 0.02 * trainer.described(labels).var()
        _, right = trainer.dense_loss(features, labels)
    assert min(right.values()) > 0.95
    last.bias.data += 0.5
    trainer.fit_palette(stage)
    torch.testing.assert_close(trainer.described(labels), last(mixed).detach(), atol=0.3, rtol=0)
    assert 0 < float(trainer.spread.mean()) < 0.2


def test_towers_are_fitted_only_where_stages_change(trainer_of, monkeypatch):
    """Guards against: a fit left out, or made again where training would undo it or has gone on."""
    called = []
    monkeypatch.setattr(Trainer, "fit_palette", lambda self, stage: called.append("palette") or self.spread.fill_(1))
    monkeypatch.setattr(Trainer, "fit_tower", lambda self, stage: called.append("tower"))
    see, speak = PRESETS["mini"]
    recite = replace(speak, name="recite", vision_rate=0.0, eyes=False)
    monkeypatch.setitem(PRESETS, "mini", (see, recite, replace(recite, name="reason"), see, speak))
    trainer = trainer_of("changes")
    for trainer.stage, stage in enumerate(trainer.stages):
        trainer.change_over(stage)
    assert called == ["palette", "tower"]


def test_features_are_drawn_towards_the_palette(trainer_of, monkeypatch):
    """Guards against: a match that features equal to the palette do not end, or that the stage's weight does not
    scale; and a palette that follows the tower, where the language model reads the palette."""
    trainer = trainer_of("match")
    trainer.palette.data.normal_()
    batch = trainer.encoder.batch([pack_of("image", 8)])
    stage = replace(MINI, text_rate=0.0, match_weight=2.0)
    without, _ = trainer.loss(replace(stage, match_weight=0.0), batch)
    with_match, seen = trainer.loss(stage, batch)
    torch.testing.assert_close(with_match, without + 2.0 * seen["match"])
    with_match.backward()
    assert trainer.palette.grad is None
    assert float(seen["match"]) > 0.1
    monkeypatch.setattr(trainer, "features", lambda rows: trainer.described(rows["labels"]))
    assert float(trainer.loss(stage, batch)[1]["match"]) == pytest.approx(0, abs=1e-6)


def test_rates_follow_the_schedule(trainer_of):
    """Guards against: a rate that jumps where it should fall, falls below its floor, or rises after its warm-up."""
    trainer = trainer_of("rates")
    stage = Stage("ripen", 4000, 4, TINY, (1.0, 0.0, 0.0), EASY, 1, 4e-4, 1e-3, 0.3, decay=0.5, floor=0.1)
    rates = []
    for trainer.batch in range(1000):
        trainer.set_rates(stage)
        rates.append([group["lr"] for group in trainer.optimiser.param_groups[:2]])
    vision, language = np.array(rates).T
    assert np.allclose(language / vision, 2.5)
    peak = language.argmax()
    assert language[0] < 0.1 * 1e-3 and language[peak] == pytest.approx(1e-3)
    assert (np.diff(language[: peak + 1]) >= 0).all() and (np.diff(language[peak:]) <= 1e-12).all()
    assert language[490] == pytest.approx(1e-3) and language[-1] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("medium", ["image", "images", "video"])
def test_a_step_of_the_gpu_preset_runs_in_bfloat16(processor, monkeypatch, tmp_path, medium):
    """Guards against: under autocast the vision tower gives bfloat16 and the embeddings are float32; putting the one
    into the other failed at the first batch of the language stage."""
    monkeypatch.setattr(avis.garden.train, "new_processor", lambda: processor)
    trainer = Trainer("gpu", 0, "cpu", tmp_path)
    trainer.palette.data.normal_()  # an earlier stage has fitted it
    stage = replace(PRESETS["gpu"][-2], questions=2, levels=EASY)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = trainer.loss(stage, trainer.encoder.batch([pack_of(medium, 7, questions=2)]))
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_presets_can_be_drawn():
    """Guards against: shares that do not add up to one, a schedule that ends before its first batch, sizes that a
    picture's tokens do not divide, and language training on pictures that the tower has not learned to see."""
    for stages in PRESETS.values():
        seeing = [stage for stage in stages if stage.eyes]
        begins_trained = seeing[0].profile != "avis"  # another backbone is made of the bundled model
        assert seeing[0].vision_rate > 0 and (begins_trained or seeing[0].text_rate == 0) and seeing[-1].text_rate > 0
        assert all(stage.text_rate > 0 and not stage.vision_rate for stage in stages if not stage.eyes)
        for stage in stages:
            assert sum(stage.media) == pytest.approx(1) and sum(stage.levels) == pytest.approx(1)
            assert stage.pictures >= 100 * stage.batch and stage.questions >= 1
            assert all(4 <= side <= 28 for size in stage.sizes for side in size)
    # The last stage is made of what is asked for in the end: full size, every level.
    assert all(stages[-1].sizes == avis.garden.train.FULL and min(stages[-1].levels) > 0 for stages in PRESETS.values())
    assert len(SMALL) > 3


# ------------------------------------------------------------------------------------------------- to and from folders


def other_words(folder: Path) -> tuple[str, tuple[str, str]]:
    """Make a folder's tokenizer another one: a word less, and two words that have changed their places.

    Returns the word that is gone and the two that were swapped.
    """
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    words, merges = made["model"]["vocab"], made["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    parts = {part for pair in pairs for part in pair}
    gone = next(word for word in sorted(words, key=words.get, reverse=True) if word not in parts)
    made["model"]["merges"] = [merge for merge, pair in zip(merges, pairs, strict=True) if "".join(pair) != gone]
    one, two = ("rabbit" if "rabbit" in words else "\u0120rabbit"), "\u0120duck"
    words[one], words[two] = words[two], words[one]
    freed = words.pop(gone)
    # Ids stay without a gap: the word with the last id of all takes the free one.
    last = max(words, key=words.get)
    if words[last] > freed:
        words[last] = freed
    for extra in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / extra).unlink(missing_ok=True)
    file.write_text(json.dumps(made))
    return gone, (one, two)


def test_warm_start_keeps_what_it_can(trainer_of, tmp_path):
    """Guards against: weights that are silently not taken over, embeddings that go by number and not by word (a new
    tokenizer numbers its words anew), and a word that was not there with the embedding of another one."""
    folder = tmp_path / "old"
    old = trainer_of("old", seed=7)
    old.export(folder)
    gone, (one, two) = other_words(folder)
    fresh, begun = trainer_of("fresh"), trainer_of("begun", start=folder)
    assert begun.started_from == str(folder)
    numbers = begun.tokenizer.get_vocab()
    known = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    assert gone not in known and known[one] == numbers[two] and known[two] == numbers[one]
    ours, theirs, new = (trainer.model.state_dict() for trainer in (begun, old, fresh))
    for name, value in ours.items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(value, theirs[name]), name
            continue
        assert torch.equal(value[numbers[gone]], new[name][numbers[gone]])
        assert torch.equal(value[numbers[one]], theirs[name][known[one]])
        assert not torch.equal(value[numbers[one]], theirs[name][numbers[one]])
        assert all(torch.equal(value[numbers[word]], theirs[name][known[word]]) for word in known)


def test_warm_start_from_another_shape_is_refused(trainer_of, tmp_path):
    """Guards against: half a model taken over from a checkpoint of another size."""
    folder = tmp_path / "other"
    trainer_of("old").export(folder)
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("mlp.gate_proj.weight"))
    tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        trainer_of("begun", start=folder)


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
    picture = render(make_item(rng_for("dev", 902), "count", 1, size=(5, 6)).scenes[0])
    inputs = prepare_inputs(processor, [user({"type": "image", "image": picture}, text("?"))], AvisConfig())
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
        avis.garden.train.main()
        return capsys.readouterr().out

    assert "paused" in command("--minutes", "1")
    assert not (tmp_path / "out").exists()
    digests = []
    for _ in range(2):
        assert "finished" in command()
        digests.append(digest(*(path.read_bytes() for path in sorted((tmp_path / "out").glob("*.safetensors")))))
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"] is True


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
    for index, task in enumerate(TASKS):
        item = make_item(rng_for("dev", 903, index), task, 3, ("free", "choice")[index % 2])
        words = item.question + item.response()
        assert shipped.tokenizer(words).input_ids == processor.tokenizer(words).input_ids
    for part in ("image_processor", "video_processor"):
        ours, theirs = getattr(processor, part).to_dict(), getattr(shipped, part).to_dict()
        for key in ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std"):
            assert theirs[key] == ours[key], key
    ours, theirs = new_config(processor.tokenizer), Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED).config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rope_theta", "rope_scaling"):
        assert getattr(theirs.text_config, key) == getattr(ours.text_config, key), key
    for key in ("depth", "hidden_size", "num_heads", "window_size", "fullatt_block_indexes", "tokens_per_second"):
        assert getattr(theirs.vision_config, key) == getattr(ours.vision_config, key), key
    assert theirs.knows == ours.knows


def test_pictures_of_splits_reach_the_model_unresized(processor):
    """Guards against: pixel bounds that shrink or enlarge the splits' own pictures, whose tokens then lie elsewhere
    than training's labels."""
    bounds = processor.image_processor.size
    for split in SPLITS[1:]:
        for index in range(100):
            for scene in item_for(split, index).scenes:
                assert scene.width % TOKEN == scene.height % TOKEN == 0
                assert bounds["shortest_edge"] <= scene.width * scene.height <= bounds["longest_edge"]


def test_compute_is_split_as_in_the_paper(processor):
    """Guards against: pictures so small, or traces so long, that pruning cannot show what it saves. The paper's tables
    split LLM FLOPs into .83 visual prefill, .06 text and .11 one trace; the test mix stays within .10 of each, and
    its traces within 0.15 of the visual tokens."""
    tokenizer, config = processor.tokenizer, new_config(processor.tokenizer).text_config
    spent, traces, seen = np.zeros(3), 0, 0
    for index in range(0, SPLIT_SIZES["test"], 7):
        item = item_for("test", index)
        visual = sum(labels.size // len(LABELS) for labels in map(dense_labels, item.scenes))
        kind = "video" if item.medium == "video" else "image"
        content = [*({"type": kind} for _ in item.scenes), {"type": "text", "text": with_instruction(item.question)}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        text = len(tokenizer(prompt).input_ids) - len(item.scenes)
        trace = len(tokenizer(item.response()).input_ids) + 1
        prefill = prefill_flops(config, visual + text)
        shares = (visual / (visual + text), text / (visual + text))
        spent += [prefill * shares[0], prefill * shares[1], decode_flops(config, visual + text, trace)]
        traces, seen = traces + trace, seen + visual
    assert np.abs(spent / spent.sum() - (0.83, 0.06, 0.11)).max() < 0.10, spent / spent.sum()
    assert traces <= 0.15 * seen


if __name__ == "__main__":
    print(vocabulary_of(new_processor()))
